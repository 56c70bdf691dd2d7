"""Core ML: an ML program for iOS 17 and macOS 14, converted anywhere and run on macOS."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metamixer.deploy.report import Outputs, Runtime, one_or_all
from metamixer.deploy.settings import PLAIN, Settings
from metamixer.deploy.targets import require
from metamixer.errors import MetamixerError

if TYPE_CHECKING:
    from torch import Tensor, nn

_FIXED = "flexible shapes keep a program off the neural engine"
REFUSES = {"dynamic_batch": _FIXED, "sizes": _FIXED}
RUNS_ON = ("coremltools",)
RUNS_HERE = sys.platform == "darwin"

# Apple publishes no list of what its neural engine takes. These are the operations of an ML program that Apple's own
# networks for it are made of (github.com/apple/ml-ane-transformers, ml-mobileone, ml-fastvit: convolutions, products,
# pointwise arithmetic and activations, means, and moves of data), in float16 and with at most five axes, which are the
# two conditions that Core ML Tools' guide names. An operation outside the list may still run there, and Core ML
# itself decides; the list says what to look at first on a device, with Xcode's performance report.
_LISTED = """
const constexpr_affine_dequantize constexpr_blockwise_shift_scale cast conv conv_transpose linear matmul add sub
mul real_div maximum minimum square sqrt rsqrt abs clip exp log relu relu6 leaky_relu prelu sigmoid sigmoid_hard
tanh silu gelu softmax reduce_mean reduce_sum reduce_max reduce_sum_square avg_pool max_pool batch_norm
instance_norm layer_norm concat split stack reshape transpose expand_dims squeeze slice_by_index slice_by_size
pad tile upsample_nearest_neighbor upsample_bilinear identity
"""
NEURAL_ENGINE = frozenset(_LISTED.split())


def check() -> None:
    """Raises MetamixerError where a package is missing."""
    require("coreml", "coremltools")


def write(model: nn.Module, example: Tensor, path: Path, settings: Settings = PLAIN) -> str:
    """Write an ``.mlpackage``; returns what the neural engine may not take of it.

    ``fp16`` computes in half precision, which the neural engine asks for; with ``int8`` the weights alone are
    quantised, per channel, and the arithmetic is in half precision: activations' ranges can be learned on macOS alone.
    """
    import coremltools
    import torch

    from metamixer.deploy.graph import capture

    if path.suffix != ".mlpackage":
        raise MetamixerError(f"{path.name}: the name of a Core ML package ends in .mlpackage")
    unfold: Any = torch.ops.aten.unfold.default  # of forecasting, which Core ML Tools do not know
    program = capture(model, example).run_decompositions({unfold: unfolded})
    precision = coremltools.precision
    converted: Any = coremltools.convert(
        program,
        convert_to="mlprogram",
        inputs=[coremltools.TensorType(name=settings.input_name, shape=tuple(example.shape))],
        outputs=[coremltools.TensorType(name=name) for name in settings.outputs],
        minimum_deployment_target=coremltools.target.iOS17,
        compute_precision=precision.FLOAT32 if settings.weights == "fp32" else precision.FLOAT16,
        skip_model_load=True,
    )
    if settings.weights == "int8":
        from coremltools.optimize import coreml as optimize

        per_channel = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=512)
        converted = optimize.linear_quantize_weights(converted, optimize.OptimizationConfig(per_channel))
    converted.user_defined_metadata.update(settings.metadata)
    converted.save(str(path))
    off = off_the_list(converted)
    listed = ", ".join(f"{count} × {name}" for name, count in off.items())
    verdict = f"off the neural engine's list: {listed}" if off else "every operation is on the neural engine's list"
    if settings.weights == "fp32":
        verdict += ", but float32 runs on CPU and GPU alone"
    return f"ML program, iOS 17; {verdict}"


def unfolded(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """``x.unfold(dimension, size, step)`` of slices."""
    import torch

    reach = (x.shape[dimension] - size) // step * step + 1
    slices = [x.movedim(dimension, -1)[..., i : i + reach : step] for i in range(size)]
    return torch.stack(slices, -1).movedim(-2, dimension)


def off_the_list(converted: Any) -> Counter[str]:
    """Operations of a converted program that are not in :data:`NEURAL_ENGINE`, or have more than five axes."""
    found: Counter[str] = Counter()
    for function in converted.get_spec().mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            if operation.type not in NEURAL_ENGINE:
                found[operation.type] += 1
            elif any(output.type.tensorType.rank > 5 for output in operation.outputs):
                found[f"{operation.type} of more than five axes"] += 1
    return found


def load(path: str | Path, threads: int = 1) -> Runtime:
    """The package as a function from float32 ``1 × C × H × W`` to its outputs. Raises MetamixerError but on macOS."""
    if not RUNS_HERE:
        raise MetamixerError("Core ML runs on macOS alone")
    import coremltools

    model = coremltools.models.MLModel(str(path))
    description = model.get_spec().description
    taken, names = description.input[0].name, [output.name for output in description.output]

    def run(pictures: np.ndarray) -> Outputs:
        given = model.predict({taken: pictures})
        return one_or_all([np.asarray(given[name]) for name in names])

    return run
