"""ExecuTorch with its Vulkan delegate: a program for the GPUs of Android devices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from metamixer.deploy.executorch import REFUSES as _FIXED
from metamixer.deploy.executorch import RUNS_ON, described, load, write_program
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import require

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["REFUSES", "RUNS_HERE", "RUNS_ON", "check", "load", "write"]

REFUSES = {**_FIXED, "int8": "nothing but a device could tell what it costs; take executorch, litert or onnx"}
RUNS_HERE = False  # ExecuTorch's Python package has no Vulkan runtime


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    require("executorch_vulkan", "executorch")


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write one ``.pte`` file; returns what Vulkan leaves to ExecuTorch's own kernels on the CPU.

    With ``fp16`` Vulkan stores and computes in half precision.
    """
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    from metamixer.deploy.graph import capture

    partitioner = VulkanPartitioner({"force_fp16": settings.weights == "fp16"})
    return described("Vulkan", write_program(capture(model, example), partitioner, path, settings))
