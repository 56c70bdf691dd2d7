"""The demo as one HTML page (``templates/demo.html``) that opens without a network: no script, bars in CSS."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageOps

from metamixer.demo.run import Demo, ModelResult
from metamixer.html_page import picture_uri, render

_PHOTOGRAPH_SIDE = 560  # twice the pixels that the page shows, for dense screens
_FAMILIES = ("affnet", "casvit", "ffnet", "dsm")
_OUTSIDE = "not among its classes"


def render_page(demo: Demo, pictures: Sequence[Image.Image], inputs: Sequence[Image.Image]) -> str:
    """The page.

    Args:
        demo: the numbers.
        pictures: the photographs, in the demo's order.
        inputs: the same as a network gets them, cropped and small.
    """
    photographs = [
        (photograph, _large(picture), picture_uri(seen, "PNG"), "{} × {}".format(*seen.size))
        for photograph, picture, seen in zip(demo.photographs, pictures, inputs, strict=True)
    ]
    return render(
        "templates/demo.html",
        demo=demo,
        facts=_facts(demo),
        photographs=photographs,
        outside=_OUTSIDE,
        family=_family,
        longest=max(timing.high for model in demo.models for timing in (model.torch, model.onnx)),
        merge_difference=max(model.export.merge_difference for model in demo.models),
    )


def _facts(demo: Demo) -> list[tuple[str, str]]:
    known = [answer for model in demo.models for answer in model.answers if answer.verdict != _OUTSIDE]
    right = sum(answer.verdict == "right" for answer in known)
    worst = max(model.export.max_relative_difference for model in demo.models)
    agreement = min(model.export.top1_agreement for model in demo.models)
    largest = max(model.export.parameters_after for model in demo.models)
    ratios = [model.speed_ratio for model in demo.models]
    return [
        (f"{right} of {len(known)}", "answers right, where the network knows the class"),
        (f"{100 * agreement:.0f} %", "same first class in PyTorch and ONNX Runtime"),
        (f"{worst:.0e}", "largest difference of a logit, as a share of the largest logit"),
        (f"{min(ratios):.1f}–{max(ratios):.1f} ×", "as fast in ONNX Runtime as in eager PyTorch"),
        (f"≤ {largest / 1e6:.2f} M", "parameters per network"),
    ]


def _large(picture: Image.Image) -> str:
    return picture_uri(ImageOps.contain(picture, (_PHOTOGRAPH_SIDE, _PHOTOGRAPH_SIDE)))


def _family(model: ModelResult) -> str:
    """The name of the model's colour."""
    family = model.name.split("_")[0]
    return family if family in _FAMILIES else "other"
