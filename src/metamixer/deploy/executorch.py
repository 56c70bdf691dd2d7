"""ExecuTorch: a program for phones whose work is handed to XNNPACK (to other delegates: ``executorch_*.py``)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metamixer.deploy.report import Outputs, Runtime, one_or_all
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import private, require

if TYPE_CHECKING:
    from torch import Tensor, nn

_FIXED = "memory is planned ahead of time, for one picture of one size"
REFUSES = {"dynamic_batch": _FIXED, "sizes": _FIXED}
RUNS_ON = ("torch", "executorch.runtime", "executorch.extension.pybindings.portable_lib")


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    require("executorch", "executorch", "torchao")


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write one ``.pte`` file with a method ``forward`` and, where there is metadata, a method ``metadata`` (JSON).

    With ``fp16`` weights and arithmetic are in half precision behind float32 doors (the transforms stay in float32);
    with ``int8`` weights are quantised per channel and activations per tensor, by PyTorch's PT2E flow.
    """
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    from metamixer.deploy.graph import capture, in_half
    from metamixer.deploy.wide_depthwise import split_wide_depthwise

    model = split_wide_depthwise(model)
    if settings.weights == "fp16":
        model = in_half(model)
    program = _with_buffers(capture(model, example), example)
    if settings.weights == "int8":
        assert settings.calibration is not None
        program = torch.export.export(_quantised(program.module(), settings.calibration), (example,))
    write_program(program, XnnpackPartitioner(), path, settings)
    return "ExecuTorch, XNNPACK"


def write_program(program: Any, partitioner: Any, path: Path, settings: Settings) -> Counter[str]:
    """Lower a captured program to one delegate and write it; returns the operations that the delegate left over."""
    from executorch.exir import to_edge_transform_and_lower

    methods = {"metadata": json.dumps(dict(settings.metadata))} if settings.metadata else None
    lowered = to_edge_transform_and_lower(program, partitioner=[partitioner], constant_methods=methods)
    nodes = [node for node in lowered.exported_program().graph.nodes if node.op == "call_function"]
    names = [getattr(node.target, "__name__", str(node.target)) for node in nodes]
    path.write_bytes(lowered.to_executorch().buffer)
    return Counter(name for name in names if "getitem" not in name and "call_delegate" not in name)


def described(delegate: str, left: Counter[str]) -> str:
    """What a report says of a program: its delegate, and what of it falls to ExecuTorch's portable kernels."""
    listed = ", ".join(f"{count} × {name}" for name, count in left.items())
    return f"ExecuTorch, {delegate}; " + (f"left to portable kernels: {listed}" if left else "every operation in it")


def _with_buffers(program: Any, example: Tensor) -> Any:
    """The program with its constants as buffers: one that several XNNPACK parts share cannot be found otherwise."""
    import torch

    module = program.module()
    for name in program.constants:
        place, _, leaf = name.rpartition(".")
        owner = module.get_submodule(place)
        value = getattr(owner, leaf)
        delattr(owner, leaf)
        owner.register_buffer(leaf, value)
    return torch.export.export(module, (example,))


def _quantised(model: Any, calibration: np.ndarray) -> Any:
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(model, quantizer)
    with torch.no_grad():
        for picture in torch.from_numpy(calibration).split(1):
            prepared(picture)
    return convert_pt2e(prepared)


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The file's ``forward`` as a function from float32 ``1 × C × H × W`` to its outputs, on the CPU."""
    import torch
    from executorch.runtime import Runtime as ExecuTorch

    private("executorch.extension.pybindings.portable_lib", "_unsafe_reset_threadpool")(threads)
    program = ExecuTorch.get().load_program(Path(path))
    method = program.load_method("forward")
    assert method is not None

    def run(pictures: np.ndarray) -> Outputs:
        return one_or_all([output.numpy() for output in method.execute([torch.from_numpy(pictures)])])

    run.program = program  # type: ignore[attr-defined]  # the method reads from it and does not keep it alive
    return run
