"""OpenVINO: converted from the ONNX file, since its PyTorch front end does not know every operation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metamixer.deploy import onnx
from metamixer.deploy.report import Outputs, Runtime, one_or_all
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import require

if TYPE_CHECKING:
    from torch import Tensor, nn

REFUSES: dict[str, str] = {}
RUNS_ON = ("openvino",)
SELECTS = True


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    require("openvino", "openvino", "onnx", "onnxscript", "onnxruntime")


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write a folder with ``model.xml``, ``model.bin`` and ``metadata.json``; arguments as of :func:`onnx.write`.

    With ``fp16`` the weights are stored in half precision; with ``int8`` they and the activations are what ONNX
    Runtime's static quantisation makes of them.
    """
    import openvino

    floats = Settings(**{**vars(settings), "weights": "int8" if settings.weights == "int8" else "fp32"})
    path.mkdir()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        file = Path(folder, "model.onnx")
        onnx.write(model, example, file, floats)
        converted = openvino.convert_model(file)
        openvino.save_model(converted, path / "model.xml", compress_to_fp16=settings.weights == "fp16")
    (path / "metadata.json").write_text(json.dumps(dict(settings.metadata), indent=2) + "\n")
    return "OpenVINO IR"


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The folder's model as a function from float32 ``B × C × H × W`` to its outputs, computed in float32 on the CPU.

    Left to itself OpenVINO computes in bfloat16 on processors that have it, which moves logits by a few percent.
    """
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(Path(path) / "model.xml", "CPU", options)

    def run(pictures: np.ndarray) -> Outputs:
        given = compiled(pictures)
        return one_or_all([given[place] for place in range(len(compiled.outputs))])

    return run
