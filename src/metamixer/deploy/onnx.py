"""ONNX: written by PyTorch's exporter, quantised and run by ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metamixer.deploy.report import Outputs, Runtime, as_list, one_or_all
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import TARGETS, require

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 20  # the first with Gelu as one operator; ONNX Runtime 1.17 and newer run it
REFUSES: dict[str, str] = {}
RUNS_ON = ("onnxruntime",)
SELECTS = True

# Quantised to integers: the layers that hold nearly all weights. Products with the transforms' matrices stay in
# float32, because a spectrum's range, mean against high frequencies, is far wider than eight bits.
_QUANTISED = ["Conv", "Gemm"]


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    require("onnx", "onnx", "onnxscript", "onnxruntime")


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write one self-contained file. Returns the name of the format.

    Args:
        model: merged, in evaluation mode, on the CPU.
        example: ``B × C × H × W``; the file takes exactly this shape unless the settings say otherwise.
        path: file to write.
        settings: ``fp16`` stores the weights in half precision and computes in float32; ``int8`` quantises weights
            per channel and activations per tensor in all convolutions and linear layers (QDQ format).
    """
    import onnx

    from metamixer.deploy.onnx_graph import (
        drop_zero_points,
        forget_sources,
        in_eight_bits,
        in_half_precision,
        name_outputs,
        shorten_names,
        split_convolutions,
    )
    from metamixer.deploy.onnx_selection import CANDIDATES, append_selection

    file = to_onnx(model, example, settings).model_proto
    forget_sources(file)
    split_convolutions(file.graph)
    if settings.weights == "int8":
        file = _quantised(file, settings, path.parent)
        in_eight_bits(file.graph)
    if settings.weights != "fp32":
        in_half_precision(file.graph)
    if settings.weights == "int8":
        drop_zero_points(file.graph)
        shorten_names(file.graph)
    name_outputs(file.graph, settings.outputs if settings.selection is None else CANDIDATES)
    if settings.selection is not None:
        append_selection(file.graph, *settings.selection)
        onnx.checker.check_model(file, full_check=True)
    onnx.helper.set_model_props(file, dict(settings.metadata))
    onnx.save(file, path)
    return f"ONNX, opset {OPSET}"


def to_onnx(model: nn.Module, example: Tensor, settings: Settings) -> Any:
    """The model as a ``torch.onnx.ONNXProgram``."""
    import torch

    from metamixer.deploy.graph import capture

    program = torch.onnx.export(
        capture(model, example, settings),
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=[settings.input_name],
        custom_translation_table=_of_symbolic_sizes() if settings.sizes is not None else None,
    )
    assert program is not None  # it is only with dynamo=False
    return program


def _of_symbolic_sizes() -> dict[Any, Any]:
    """What PyTorch's exporter cannot translate of matrices that are computed from a size."""
    import torch
    from onnxscript import opset20 as op

    def remainder(dividend: Any, divisor: Any) -> Any:
        return op.Mod(dividend, op.CastLike(divisor, dividend))  # both are integers

    def square_root(size: Any) -> Any:
        return op.Sqrt(size)

    return {torch.ops.aten.remainder.Scalar: remainder, torch.sym_sqrt: square_root}


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The file as a function from float32 ``B × C × H × W`` to its outputs, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(pictures: np.ndarray) -> Outputs:
        return one_or_all(session.run(None, {name: pictures}))

    return run


def first_divergence(model: nn.Module, example: Tensor, path: Path, settings: Settings, tolerance: float) -> str | None:
    """The first layer whose values in ONNX Runtime differ from PyTorch's by more than ``tolerance`` of the largest.

    Compares every value that both graphs know by the same name. None where all of those agree.
    """
    import onnx
    import torch

    from metamixer.deploy.runtime_process import RuntimeProcess

    program = to_onnx(model, example, settings).exported_program
    file = onnx.load(path)
    known = {name for node in file.graph.node for name in node.output}
    values: dict[str, tuple[np.ndarray, str]] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and n.name in known:
                modules = n.meta.get("nn_module_stack") or {"": ("", None)}
                values[n.name] = value.numpy(), list(modules.values())[-1][0]
            return value

    with torch.no_grad():
        Recorder(program.module()).run(example)
    names = list(values)
    file.graph.ClearField("output")
    file.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        watched = Path(folder, "watched.onnx")
        onnx.save(file, watched)
        with RuntimeProcess(TARGETS["onnx"], watched) as runtime:
            outputs = as_list(runtime(example.numpy()))
    for name, output in zip(names, outputs, strict=True):
        expected, layer = values[name]
        if not np.abs(expected - output).max() <= tolerance * np.abs(expected).max():  # NaN diverges too
            return f"{layer or 'the graph'} (value {name})"
    return None


def _quantised(file: Any, settings: Settings, room: Path) -> Any:
    """The model with 8-bit weights and activations, their ranges taken from the calibration pictures.

    Files that are needed on the way are written into ``room``.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    assert settings.calibration is not None

    class Pictures(CalibrationDataReader):
        def __init__(self, pictures: np.ndarray) -> None:
            self.batches: Iterator[np.ndarray] = iter(np.split(pictures, len(pictures)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {settings.input_name: batch}

    with tempfile.TemporaryDirectory(dir=room) as folder:
        floats, integers = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(file, floats)
        quantize_static(
            str(floats),
            str(integers),
            Pictures(settings.calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(integers)
