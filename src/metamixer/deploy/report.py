"""What an export is worth: its outputs against PyTorch's, its size and its speed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metamixer.deploy.settings import Precision
from metamixer.printing import Table

# Float32 arithmetic in another order moves an output by 1e-6 of its largest value, and a map by 9e-6 at most in all
# that we export (4e-5 in one untrained peer). Of wrong operators the subtlest, GELU by tanh for erf, does 3e-4 to 9e-4.
TOLERANCE = 1e-4
# Half precision keeps 11 bits (5e-4), of which rounding in every layer costs a few: up to 5e-3 in the matrix's networks
# of 20 to 60 layers, and more in deeper ones.
HALF_TOLERANCE = 3e-2
# Eight bits move every logit; what counts is whether the answer stays. The rest is for a validation set to tell.
INT8_AGREEMENT = 0.8
# A channel of a map is measured by its own largest value, but not by less than this share of the whole output's: in one
# that is nearly zero everywhere the rounding of the sums that cancelled is all there is.
_OWN_SCALE = 0.1

Array = np.ndarray
Outputs = Array | list[Array]
"""The output of an artefact, or all of them in their order where it has several."""
Runtime = Callable[[Array], Outputs]


def as_list(outputs: Any) -> list[Any]:
    """The outputs of a network or an artefact, also where there is but one."""
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def one_or_all(outputs: Sequence[Array]) -> Outputs:
    """The inverse of :func:`as_list`."""
    return outputs[0] if len(outputs) == 1 else list(outputs)


@dataclass(frozen=True)
class Agreement:
    """How far a runtime's outputs are from the reference's.

    Args:
        max_abs: largest difference of two values.
        max_relative: the largest difference as a share of the largest magnitude beside it, see :func:`agreement`.
        top1: share of pictures with the same first class, 0 to 1.
        fault: why nothing could be compared, as the end of a sentence about the export; None where it could.
    """

    max_abs: float
    max_relative: float
    top1: float
    fault: str | None = None

    def worse(self, other: Agreement) -> Agreement:
        """The worse of both in every respect."""
        return Agreement(
            max(self.max_abs, other.max_abs),
            max(self.max_relative, other.max_relative),
            min(self.top1, other.top1),
            self.fault or other.fault,
        )


def different(fault: str) -> Agreement:
    """No agreement at all, for a reason that is the end of a sentence."""
    return Agreement(float("inf"), float("inf"), 0.0, fault)


def agreement(reference: Array, outputs: Array, name: str = "its output") -> Agreement:
    """Compare ``N × …`` outputs, classes (or whatever is scored) on the second axis.

    Every picture, and every channel of maps, is measured by its own largest magnitude, so that none hides behind a
    larger one (but by a tenth of the whole output's at least). A shape that differs or a value that is not finite
    counts as an infinite difference.

    Args:
        reference: finite.
        outputs: what is compared with it.
        name: what a fault calls the output.
    """
    if reference.shape != outputs.shape:
        shapes = (" × ".join(map(str, array.shape)) for array in (outputs, reference))
        return different("gives {} of shape {} where PyTorch's has {}".format(name, *shapes))
    if not np.isfinite(outputs).all():
        return different(f"gives values that are not finite in {name}")
    reference, outputs = reference.astype(np.float64), outputs.astype(np.float64)
    difference = np.abs(reference - outputs)
    magnitude = np.abs(reference)
    largest = float(magnitude.max(initial=0.0))
    alone = tuple(range(2 if reference.ndim > 2 else 1, reference.ndim))  # axes that share a scale
    scale = np.maximum(magnitude.max(alone, keepdims=True, initial=0.0), _OWN_SCALE * largest)
    same = reference.argmax(1) == outputs.argmax(1)
    return Agreement(
        float(difference.max(initial=0.0)),
        float((difference / scale).max(initial=0.0)) if largest else float(difference.max(initial=0.0)),
        float(same.mean()),
    )


def tolerance(weights: Precision) -> float:
    """Share of the largest value by which an output in floating point may differ from PyTorch's in float32."""
    return TOLERANCE if weights == "fp32" else HALF_TOLERANCE


def complaint(found: Agreement, weights: Precision) -> str | None:
    """What is wrong with an export that agrees so far, as the end of a sentence; None where nothing is."""
    if found.fault is not None:
        return found.fault
    if weights == "int8":
        if found.top1 >= INT8_AGREEMENT:
            return None
        return f"names PyTorch's first class in {found.top1:.0%} of the pictures (at least {INT8_AGREEMENT:.0%} must)"
    limit = tolerance(weights)
    if found.max_relative <= limit:
        return None
    return f"differs from PyTorch by {found.max_relative:.1e} of the largest value (at most {limit:g} is accepted)"


@dataclass(frozen=True)
class ExportReport:
    """A verified export.

    Args:
        target: runtime it is for.
        path: the artefact.
        model: architecture, with the tag of its weights where it has one.
        image_size: side of the input in pixels, the shorter one; of a forecasting network its lookback.
        weights: number format of the weights.
        format: the artefact's format, and what is to be said of it.
        ran: whether its runtime exists on this machine; else nothing was compared or timed.
        size_bytes: size of the artefact.
        count: different pictures (or whatever goes in) on which it was compared with PyTorch.
        checked_sizes: sides of the inputs on which it was compared; of a range, at ``image_size`` on all pictures,
            at the others on eight or fewer.
        max_abs_difference: largest difference of an output from merged PyTorch in float32; NaN where it could not run.
        max_relative_difference: the largest difference as a share of that output's largest magnitude in the same
            picture, and map where it has such (:func:`agreement`). Where boxes are chosen inside the graph, both are
            those of the scores.
        top1_agreement: share of pictures with the same first class, 0 to 1, of a range of sizes the worst of them; NaN
            where it could not run, or names none.
        parameters_before: parameters of the trained model.
        parameters_after: parameters after merging.
        merge_difference: largest change of an output by merging, as a share of its largest magnitude.
        load_ms: milliseconds that the runtime took to load it, None where it could not run.
        latency_torch_ms: median of merged PyTorch, eager, one picture, one thread; None if not timed.
        latency_runtime_ms: median of the runtime, likewise, in turns with PyTorch.
    """

    target: str
    path: str
    model: str
    image_size: int
    weights: Precision
    format: str
    ran: bool
    size_bytes: int
    count: int
    checked_sizes: list[int]
    max_abs_difference: float
    max_relative_difference: float
    top1_agreement: float
    parameters_before: int
    parameters_after: int
    merge_difference: float
    load_ms: float | None = None
    latency_torch_ms: float | None = None
    latency_runtime_ms: float | None = None

    def to_json(self) -> str:
        """The report as text, NaN as null."""
        content = {key: None if value != value else value for key, value in asdict(self).items()}
        return json.dumps(content, indent=2) + "\n"


def report_path(artefact: str | Path) -> Path:
    """Where the report of an artefact lies: ``model.onnx`` has ``model.onnx.json`` beside it."""
    return Path(f"{artefact}.json")


def merging_line(name: str, before: int, after: int, difference: float) -> str:
    """What merging did to a model, for screen and log: its parameters, and how far the outputs moved."""
    return (
        f"{name} merged: {before / 1e6:.3f} → {after / 1e6:.3f} M parameters, "
        f"outputs moved by at most {difference:.0e} of the largest"
    )


def table(reports: Sequence[ExportReport]) -> Table:
    """The reports of one model's exports as a table for the terminal, which fits into 80 columns."""
    first = reports[0]
    precision = "" if first.weights == "fp32" else f" in {first.weights}"
    title = f"{first.model}{precision} at {first.image_size}: each runtime against PyTorch"
    caption = (
        f"difference: the largest on {first.count} inputs, and as a share of the largest value; load, torch and runtime"
        " in milliseconds"
    )
    headings = ("target", "MB", "difference", "share", "top-1", "load", "torch", "runtime")
    result = Table(headings, title=title, caption=caption, dense=True)
    for r in reports:
        result.add(
            r.target,
            f"{r.size_bytes / 1e6:.2f}",
            f"{r.max_abs_difference:.1e}" if r.ran else "not run",
            f"{r.max_relative_difference:.1e}" if r.ran else "–",
            "–" if r.top1_agreement != r.top1_agreement else f"{r.top1_agreement:.0%}",
            *(_milliseconds(value) for value in (r.load_ms, r.latency_torch_ms, r.latency_runtime_ms)),
        )
    return result


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
