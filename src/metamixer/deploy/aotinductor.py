"""AOTInductor: the captured program compiled to a shared library for processors like this machine's."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from metamixer.deploy.report import Runtime
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import private
from metamixer.deploy.torch import runtime_of
from metamixer.errors import MetamixerError

if TYPE_CHECKING:
    from torch import Tensor, nn

_FIXED = "the code is compiled for one picture of one size"
REFUSES = {
    "dynamic_batch": _FIXED,
    "sizes": _FIXED,
    "int8": "AOTInductor would compile a quantised program as float arithmetic; take onnx, executorch or litert",
}
RUNS_ON = ("torch",)


def check() -> None:
    """Raises MetamixerError where there is no C++ compiler."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as PyTorch chooses
    if shutil.which(compiler) is None:
        raise MetamixerError(
            f"export to AOTInductor needs a C++ compiler: {compiler} was not found; CXX may name another"
        )


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write one ``.pt2`` package, which :func:`torch._inductor.aoti_load_package` opens, with the metadata inside.

    With ``fp16`` weights and arithmetic are in half precision behind float32 doors (the transforms stay in float32).
    Raises MetamixerError for a name that does not end in ``.pt2``.
    """
    from metamixer.deploy.graph import capture, in_half

    if path.suffix != ".pt2":
        raise MetamixerError(f"{path.name}: the name of an AOTInductor package ends in .pt2")
    program = capture(in_half(model) if settings.weights == "fp16" else model, example)
    content = io.BytesIO()  # PyTorch's own writing of files ends the process where the disk is full
    configs = {"aot_inductor.metadata": dict(settings.metadata)}
    compile_and_package = private("torch._inductor", "aoti_compile_and_package")
    compile_and_package(program, package_path=content, inductor_configs=configs)
    path.write_bytes(content.getbuffer())
    return "AOTInductor package"


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The package as a function from float32 ``1 × C × H × W`` to its outputs, on the CPU."""
    import torch

    torch.set_num_threads(threads)
    return runtime_of(private("torch._inductor", "aoti_load_package")(str(path)))
