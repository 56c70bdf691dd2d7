"""The runtimes that models are exported for, and what each of their modules offers.

A target is one module with

- ``REFUSES``: what it cannot write, from the name of an option to the reason in one sentence;
- ``check()``, which raises MetamixerError where its packages are missing;
- ``write(model, example, path, settings) -> str``, which writes one artefact (a file, or a folder where the format is
  one) and returns the format's name and what is to be said of it;
- ``load(path, threads) -> Runtime``, which opens an artefact as a function from float32 ``B × C × H × W`` to float32.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from metamixer.errors import MetamixerError


class Target(NamedTuple):
    """Module of a target, suffix of its artefacts, the runtime's name, and the extra that installs its packages."""

    module: str
    suffix: str
    runtime: str
    extra: str | None


TARGETS = {
    "onnx": Target("metamixer.deploy.onnx", ".onnx", "ONNX Runtime", "deploy"),
    "openvino": Target("metamixer.deploy.openvino", ".openvino", "OpenVINO", "openvino"),
    "executorch": Target("metamixer.deploy.executorch", ".pte", "ExecuTorch", "executorch"),
    "litert": Target("metamixer.deploy.litert", ".tflite", "LiteRT", "litert"),
    "ncnn": Target("metamixer.deploy.ncnn", ".ncnn", "ncnn", "ncnn"),
    "coreml": Target("metamixer.deploy.coreml", ".mlpackage", "Core ML", "coreml"),
    "torch": Target("metamixer.deploy.torch", ".pt2", "PyTorch", None),
    "web": Target("metamixer.deploy.web", ".web", "ONNX Runtime Web", "deploy"),
}


def target_module(target: str) -> Any:
    """The module of a target. Raises MetamixerError, naming the known ones, for an unknown target."""
    if target not in TARGETS:
        raise MetamixerError(f"unknown export target {target!r}; known: {', '.join(TARGETS)}")
    return import_module(TARGETS[target].module)


def require(target: str, *packages: str) -> None:
    """Raises MetamixerError, naming the extra to install, where a package of a target cannot be found."""
    for package in packages:
        if not _is_installed(package):
            raise MetamixerError(
                f"export to {TARGETS[target].runtime} needs the package {package}; install it with: "
                f"pip install 'metamixer[{TARGETS[target].extra}]'"
            )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # its parent is missing, or it was made unavailable
        return False
