"""Which machine and which versions a measurement belongs to."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_RUNTIMES = ("onnxruntime", "openvino", "executorch", "ai-edge-litert", "ncnn", "coremltools")


@dataclass(frozen=True)
class Machine:
    """Processor, cores this process may use, operating system, and the versions of Python and the packages."""

    processor: str
    cores: int
    system: str
    versions: dict[str, str]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.processor}, {self.cores} cores, {self.system}; {versions}"


def this_machine() -> Machine:
    """Describe the machine at hand."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    versions = {"Python": platform.python_version()}
    for package in ("metamixer", "torch", "timm", *_RUNTIMES):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # an optional one
            continue
    return Machine(_processor(), cores, f"{platform.system()} {platform.machine()}", versions)


def _processor() -> str:
    """The processor's name as Linux gives it, elsewhere as Python does."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown processor"
