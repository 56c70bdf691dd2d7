"""ExecuTorch with its Core ML delegate: a program for apps on iPhones and Macs, which no other machine runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamixer.deploy.executorch import REFUSES as _FIXED
from metamixer.deploy.executorch import RUNS_ON, described, load, write_program
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import require

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["REFUSES", "RUNS_HERE", "RUNS_ON", "check", "load", "write"]

REFUSES = {**_FIXED, "int8": "nothing but a device could tell what it costs; take executorch, litert or onnx"}
RUNS_HERE = False


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    require("executorch_coreml", "executorch", "coremltools")


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write one ``.pte`` file for iOS 17 and macOS 14; returns what Core ML leaves to ExecuTorch's own kernels.

    With ``fp16`` Core ML computes in half precision, which the neural engine asks for.
    """
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    from metamixer.deploy.graph import capture

    precision: Any = coremltools.precision
    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=precision.FLOAT32 if settings.weights == "fp32" else precision.FLOAT16,
    )
    partitioner = CoreMLPartitioner(compile_specs=specs)
    return described("Core ML", write_program(capture(model, example), partitioner, path, settings))
