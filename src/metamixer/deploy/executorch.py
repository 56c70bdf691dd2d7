"""ExecuTorch: a program for phones whose work is handed to XNNPACK."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metamixer.deploy.report import Runtime
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import require

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
    from executorch.exir import to_edge_transform_and_lower

    from metamixer.deploy.graph import capture, in_half

    if settings.weights == "fp16":
        model = in_half(model)
    program = _with_buffers(capture(model, example), example)
    if settings.weights == "int8":
        assert settings.calibration is not None
        program = torch.export.export(_quantised(program.module(), settings.calibration), (example,))
    methods = {"metadata": json.dumps(dict(settings.metadata))} if settings.metadata else None
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=methods)
    path.write_bytes(lowered.to_executorch().buffer)
    return "ExecuTorch, XNNPACK"


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
    """The file's ``forward`` as a function from float32 ``1 × C × H × W`` to its output, on the CPU."""
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime as ExecuTorch

    _unsafe_reset_threadpool(threads)
    program = ExecuTorch.get().load_program(Path(path))
    method = program.load_method("forward")
    assert method is not None

    def run(pictures: np.ndarray) -> np.ndarray:
        return method.execute([torch.from_numpy(pictures)])[0].numpy()

    run.program = program  # type: ignore[attr-defined]  # the method reads from it and does not keep it alive
    return run
