"""The runtimes that models are exported for, and what each of their modules offers.

A target is one module with

- ``REFUSES``: what it cannot write, from the name of an option to the reason in one sentence;
- ``RUNS_ON``: the modules that a process imports to run an artefact;
- ``check()``, which raises MetamixerError where its packages are missing;
- ``write(model, example, path, settings) -> str``, which writes one artefact (a file, or a folder where the format is
  one) and returns the format's name and what is to be said of it;
- ``load(path, threads) -> Runtime``, which opens an artefact as a function from a float32 array, ``B × C × H × W`` for
  pictures, to the output, or to the list of all outputs in their order where there are several.

Some also say more about themselves:

- ``RUNS_HERE = False`` on machines that can write the artefact but not run it;
- ``ONE_PICTURE = True`` where a call takes one picture, however many the artefact was written for;
- ``SELECTS = True`` where the choice among a detector's boxes can be in the graph (the setting ``selection``);
- ``WHOLE = True`` where only classifiers make sense, with normalisation and softmax in the graph;
- ``first_divergence(model, example, path, settings, tolerance)``, which names the layer where an artefact leaves
  PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metamixer.data.unfinished import reason_of_failed_write
from metamixer.deploy.quiet import quiet
from metamixer.deploy.settings import Settings
from metamixer.errors import MetamixerError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Target(NamedTuple):
    """Module of a target, suffix of its artefacts, the runtime's name, and the extra that installs its packages."""

    module: str
    suffix: str
    runtime: str
    extra: str | None

    def implementation(self) -> Any:
        """The target's module."""
        return import_module(self.module)


TARGETS = {
    "onnx": Target("metamixer.deploy.onnx", ".onnx", "ONNX Runtime", "deploy"),
    "openvino": Target("metamixer.deploy.openvino", ".openvino", "OpenVINO", "openvino"),
    "executorch": Target("metamixer.deploy.executorch", ".pte", "ExecuTorch", "executorch"),
    "executorch_coreml": Target(
        "metamixer.deploy.executorch_coreml", ".coreml.pte", "ExecuTorch with Core ML", "executorch"
    ),
    "executorch_vulkan": Target(
        "metamixer.deploy.executorch_vulkan", ".vulkan.pte", "ExecuTorch with Vulkan", "executorch"
    ),
    "litert": Target("metamixer.deploy.litert", ".tflite", "LiteRT", "litert"),
    "ncnn": Target("metamixer.deploy.ncnn", ".ncnn", "ncnn", "ncnn"),
    "coreml": Target("metamixer.deploy.coreml", ".mlpackage", "Core ML", "coreml"),
    "torch": Target("metamixer.deploy.torch", ".pt2", "PyTorch", None),
    "aotinductor": Target("metamixer.deploy.aotinductor", ".aoti.pt2", "AOTInductor", None),
    "web": Target("metamixer.deploy.web", ".web", "ONNX Runtime Web", "deploy"),
}


def target_module(target: str) -> Any:
    """The module of a target. Raises MetamixerError, naming the known ones, for an unknown target."""
    if target not in TARGETS:
        raise MetamixerError(f"unknown export target {target!r}; known: {', '.join(TARGETS)}")
    return TARGETS[target].implementation()


def convert(target: Target, model: nn.Module, example: Tensor, path: Path, settings: Settings, name: str) -> str:
    """The target's ``write``, silent, with whatever a converter raises as a MetamixerError that names the model.

    Where ``path`` cannot be written its OSError is passed on: the caller knows what the user calls that place.
    """
    try:
        with quiet():
            return target.implementation().write(model, example, path, settings)
    except MetamixerError:
        raise
    except Exception as error:  # converters raise nearly anything
        if isinstance(error, OSError) and reason_of_failed_write(error, path.parent) is not None:
            raise
        raise MetamixerError(f"{name} cannot be exported to {target.runtime} ({in_one_line(error)})") from error


def in_one_line(error: Exception) -> str:
    """Kind and message of an exception, which may be long and of many lines."""
    reason = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {reason if len(reason) <= 300 else f'{reason[:300]} …'}"


def require(target: str, *packages: str) -> None:
    """Raises MetamixerError, naming the extra to install, where a package of a target cannot be found."""
    for package in packages:
        if not _is_installed(package):
            raise MetamixerError(
                f"export to {TARGETS[target].runtime} needs the package {package}; install it with: "
                f"pip install 'metamixer[{TARGETS[target].extra}]'"
            )


def private(module: str, name: str) -> Any:
    """What a package does not promise to keep, and we use for want of anything else; see tests/test_private_names.py.

    Raises MetamixerError where an installed release has it no longer.
    """
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        package = module.partition(".")[0]
        raise MetamixerError(
            f"the installed {package} has no {module}.{name} any more; install one that metamixer was tested with "
            "(constraints.txt)"
        ) from None


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # its parent is missing, or it was made unavailable
        return False
