"""LiteRT (formerly TensorFlow Lite): a ``.tflite`` file, run by its interpreter with XNNPACK."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from metamixer.deploy.report import Outputs, Runtime, one_or_all
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import require

if TYPE_CHECKING:
    from torch import Tensor, nn

_FIXED = "the converter keeps one picture of one size"
REFUSES = {"dynamic_batch": _FIXED, "sizes": _FIXED}
RUNS_ON = ("ai_edge_litert.interpreter",)

# What is quantised: the layers that hold nearly all weights, by operation and by the name of their output. To the
# converter products with the transforms' matrices are linear layers too; filtered spectra do not stand eight bits, and
# the quantiser stumbles over matrices that several layers share.
_QUANTISED = {
    "CONV_2D": ".*",
    "DEPTHWISE_CONV_2D": ".*",
    "FULLY_CONNECTED": r"nn\.modules\.linear\.Linear|serving_default_output",  # the second: a classifier
}


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    require("litert", "litert_torch", "ai_edge_litert", "ai_edge_quantizer")


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write one ``.tflite`` file; pictures go in as ``1 × C × H × W``.

    With ``fp16`` the weights are stored in half precision; with ``int8`` convolutions and linear layers are computed in
    integers, weights quantised per channel and activations per tensor. The format's place for metadata is not written.
    """
    import litert_torch

    from metamixer.deploy.graph import keep_matrices
    from metamixer.deploy.wide_depthwise import split_wide_depthwise

    if settings.weights != "int8":  # dilated depthwise convolutions in integers crash LiteRT's interpreter
        model = split_wide_depthwise(model)
    keep_matrices(model, example)
    # Not the converter's own writing of files, which ends the process where the disk is full.
    content = litert_torch.convert(model, (example,)).model_content()
    if settings.weights == "fp32":
        path.write_bytes(content)
        return "LiteRT flatbuffer"
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        floats = Path(folder, "float32.tflite")
        floats.write_bytes(content)
        _quantise(floats, path, settings)
    return "LiteRT flatbuffer"


def _quantise(floats: Path, path: Path, settings: Settings) -> None:
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

    work = quantizer.Quantizer(str(floats))
    if settings.weights == "fp16":
        casting = algorithm_manager.AlgorithmName.FLOAT_CASTING
        for layer, place in _QUANTISED.items():
            work.add_weight_only_config(place, qtyping.TFLOperationName[layer], num_bits=16, algorithm_key=casting)
        work.quantize().export_model(str(path))
        return
    assert settings.calibration is not None
    for layer, place in _QUANTISED.items():
        work.add_static_config(place, qtyping.TFLOperationName[layer], activation_num_bits=8, weight_num_bits=8)
    samples = [{"args_0": picture[None]} for picture in settings.calibration]
    ranges = work.calibrate({"serving_default": samples}, num_threads=1)
    work.quantize(ranges).export_model(str(path))
    _shorten_names(path)


def _shorten_names(path: Path) -> None:
    """Number the tensors: in a small quantised file their names weigh a fifth. Signatures keep the names to call by."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    for graph in model.subgraphs:
        for number, tensor in enumerate(graph.tensors):
            tensor.name = f"{number:x}".encode()
    flatbuffer_utils.write_model(model, str(path))


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The file as a function from float32 ``1 × C × H × W`` to its outputs, on the CPU."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    taken = interpreter.get_input_details()[0]["index"]
    details = interpreter.get_signature_runner().get_output_details()
    given = [details[f"output_{place}"]["index"] for place in range(len(details))]

    def run(pictures: np.ndarray) -> Outputs:
        interpreter.set_tensor(taken, pictures)
        interpreter.invoke()
        return one_or_all([interpreter.get_tensor(index) for index in given])

    return run
