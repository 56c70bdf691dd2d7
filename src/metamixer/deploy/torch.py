"""PyTorch's own format: the captured program, for ``torch.export.load``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metamixer.deploy.report import Outputs, Runtime, as_list, one_or_all
from metamixer.deploy.settings import PLAIN, Settings

if TYPE_CHECKING:
    from torch import Tensor, nn

REFUSES = {"int8": "PyTorch runs a quantised program as float arithmetic; take onnx, executorch or litert for int8"}
RUNS_ON = ("torch",)


def check() -> None:
    """PyTorch is always there."""


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write one ``.pt2`` file with an extra file ``metadata.json``.

    With ``fp16`` weights and arithmetic are in half precision behind float32 doors (the transforms stay in float32).
    """
    import torch

    from metamixer.deploy.graph import capture, in_half

    program = capture(in_half(model) if settings.weights == "fp16" else model, example, settings)
    for node in program.graph.nodes:  # source lines of the exporting machine
        node.meta.pop("stack_trace", None)
    program.example_inputs = None  # the user's picture, and all others it was read with
    content = io.BytesIO()  # PyTorch's own writing of files ends the process where the disk is full
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(dict(settings.metadata))})
    path.write_bytes(content.getbuffer())
    return "torch.export program"


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The program as a function from float32 ``B × C × H × W`` to its outputs, eagerly on the CPU."""
    import torch

    torch.set_num_threads(threads)
    return runtime_of(torch.export.load(path).module())


def runtime_of(module: Callable[[Tensor], Any]) -> Runtime:
    """A module as a function of arrays, without gradients."""
    import torch

    @torch.inference_mode()
    def run(pictures: np.ndarray) -> Outputs:
        return one_or_all([output.numpy() for output in as_list(module(torch.from_numpy(pictures)))])

    return run
