"""ONNX: written by PyTorch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metamixer.deploy.report import Runtime
from metamixer.errors import MetamixerError

OPSET = 20  # the first with Gelu as one operator; ONNX Runtime 1.17 and newer run it


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MetamixerError(
            f"ONNX export needs the package {error.name}; install it with: pip install 'metamixer[deploy]'"
        ) from None


def write(model: nn.Module, example: Tensor, path: Path, metadata: dict[str, str], dynamic_batch: bool = False) -> int:
    """Write one self-contained file; input ``pictures``, output ``logits``. Returns the version of the operator set.

    Args:
        model: merged, in evaluation mode, on the CPU.
        example: ``B × C × H × W``; the file takes exactly this shape.
        path: file to write.
        metadata: text entries of the file.
        dynamic_batch: except that its first axis may be of any length.
    """
    with torch.no_grad():
        model(example)  # leaves the transforms' matrices in the cache, so that the graph holds them as constants
    shapes = None
    if dynamic_batch:
        example = torch.cat([example, example])  # a batch of one would be taken for a constant of the program
        shapes = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=["pictures"],
        output_names=["logits"],
        dynamic_shapes=shapes,
    )
    assert program is not None  # it is only with dynamo=False
    # The exporter notes source lines of this machine at every node: weight without use in a file to be shared.
    graph = program.model.graph
    parts: list[Any] = [program.model, graph, *graph.all_nodes(), *graph.inputs, *graph.outputs]
    for part in parts:
        part.metadata_props.clear()
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)
    return OPSET


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The file as a function from float32 ``B × C × H × W`` to its first output, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(pictures: np.ndarray) -> np.ndarray:
        return session.run(None, {name: pictures})[0]

    return run
