"""The demo as one HTML page that opens without a network: pictures inlined, bars in CSS, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from PIL import Image, ImageOps

from metamixer.demo.run import Answer, Demo, ModelResult
from metamixer.deploy.timing import Timing
from metamixer.html_page import definitions, facts, html_page, picture_uri, table

_PHOTOGRAPH_SIDE = 560  # twice the pixels that the page shows, for dense screens
_FAMILIES = ("affnet", "casvit", "ffnet", "dsm")
_VERDICT_CLASSES = {"right": "right", "wrong": "wrong"}


def render_page(demo: Demo, pictures: Sequence[Image.Image], inputs: Sequence[Image.Image]) -> str:
    """The page.

    Args:
        demo: the numbers.
        pictures: the photographs, in the demo's order.
        inputs: the same as a network gets them, cropped and small.
    """
    style = files("metamixer.demo").joinpath("page.css").read_text(encoding="utf-8")
    body = f"""<h1>metamixer: the shipped models at work</h1>
<p class="soft">{len(demo.models)} small networks look at {len(demo.photographs)} photographs that they were not
trained on. Each is exported to ONNX, compared with PyTorch on the same photographs, and timed in both.</p>
{_facts(demo)}
<h2>Photographs</h2>
<p class="soft">The five likeliest classes of each network; right ones are marked ✓. A network can only be
right about classes it knows: where a photograph shows none of them, the bars are pale and tell what it resembles.</p>
{"".join(_photograph(demo, i, pictures[i], inputs[i]) for i in range(len(demo.photographs)))}
<h2>Models</h2>
{_models_table(demo.models)}
<h2>Latency</h2>
<p class="soft">One picture, one thread: median of calls made in turns within one process, all networks and both
runtimes; the thin line spans the quartiles. PyTorch runs the merged network eagerly.</p>
{_latency(demo.models)}
<h2>How this page was made</h2>
{_made(demo)}"""
    return html_page("metamixer demo", body, style)


def _facts(demo: Demo) -> str:
    known = [answer for model in demo.models for answer in model.answers if answer.verdict != "not among its classes"]
    right = sum(answer.verdict == "right" for answer in known)
    worst = max(model.export.max_relative_difference for model in demo.models)
    agreement = min(model.export.top1_agreement for model in demo.models)
    largest = max(model.export.parameters_after for model in demo.models)
    ratios = [model.speed_ratio for model in demo.models]
    entries = [
        (f"{right} of {len(known)}", "answers right, where the network knows the class"),
        (f"{100 * agreement:.0f} %", "same first class in PyTorch and ONNX Runtime"),
        (f"{worst:.0e}", "largest difference of a logit, as a share of the largest logit"),
        (f"{min(ratios):.1f}–{max(ratios):.1f} ×", "as fast in ONNX Runtime as in eager PyTorch"),
        (f"≤ {largest / 1e6:.2f} M", "parameters per network"),
    ]
    return facts(entries)


def _photograph(demo: Demo, index: int, picture: Image.Image, seen: Image.Image) -> str:
    photograph = demo.photographs[index]
    answers = "".join(_answer(model, model.answers[index]) for model in demo.models)
    size = "{} × {}".format(*seen.size)
    caption, credit, package = (escape(text) for text in (photograph.caption, photograph.credit, photograph.package))
    large = picture_uri(ImageOps.contain(picture, (_PHOTOGRAPH_SIDE, _PHOTOGRAPH_SIDE)))
    small = picture_uri(seen, "PNG")
    return f"""<section class="photograph">
<figure>
<img src="{large}" alt="{caption}">
<figcaption><strong>{caption[:1].upper() + caption[1:]}</strong>{credit}<br>from {package}
<span class="seen"><img src="{small}" alt=""><span>what the networks get: {size} pixels</span></span>
</figcaption>
</figure>
<div class="models">{answers}</div>
</section>
"""


def _answer(model: ModelResult, answer: Answer) -> str:
    outside = answer.verdict == "not among its classes"
    rows = "".join(
        f'<li><span class="label{" right" if guess.right else ""}" title="{escape(guess.label)}">'
        f"{'✓ ' if guess.right else ''}{escape(guess.label)}</span>"
        f'<span class="track"><span class="fill" style="width:{100 * guess.score:.1f}%"></span></span>'
        f'<span class="value">{100 * guess.score:.0f} %</span></li>'
        for guess in answer.guesses
    )
    verdict = f'<span class="verdict {_VERDICT_CLASSES.get(answer.verdict, "")}">{answer.verdict}</span>'
    header = f'<header><h3><span class="dot"></span>{escape(model.name)}</h3>{verdict}</header>'
    kind = "model outside" if outside else "model"
    return f'<div class="{kind}" style="{_colour(model)}">{header}<ol class="bars">{rows}</ol></div>'


def _models_table(models: Sequence[ModelResult]) -> str:
    headings = (
        *("network", "classes", "validation top-1", "parameters", "MACs", "ONNX file"),
        *("largest difference", "same top-1", "PyTorch", "ONNX Runtime", "speed"),
    )
    rows = []
    for model in models:
        report = model.export
        cells = (
            f'<span class="dot" style="{_colour(model)}"></span>{escape(model.name)}',
            f"{model.classes}<small>{model.image_size} px</small>",
            "–" if model.accuracy is None else f"{model.accuracy:.1f} %",
            f"{report.parameters_after:,}<small>{report.parameters_before:,} unmerged</small>",
            f"{model.macs / 1e6:.1f} M",
            f"{report.size_bytes / 1e6:.2f} MB",
            f"{report.max_abs_difference:.1e}<small>{report.max_relative_difference:.1e} relative</small>",
            f"{100 * report.top1_agreement:.0f} %<small>of {report.count}</small>",
            _milliseconds(model.torch),
            _milliseconds(model.onnx),
            f"{model.speed_ratio:.1f} ×",
        )
        rows.append(cells)
    return table(headings, rows)


def _milliseconds(timing: Timing) -> str:
    return f"{timing.median_ms:.2f} ms<small>{timing.low:.2f}–{timing.high:.2f}</small>"


def _latency(models: Sequence[ModelResult]) -> str:
    longest = max(timing.high for model in models for timing in (model.torch, model.onnx))
    rows = []
    for model in models:
        for first, runtime, kind, timing in (
            (True, "PyTorch", "torch", model.torch),
            (False, "ONNX Runtime", "onnx", model.onnx),
        ):
            width, low, high = (100 * value / longest for value in (timing.median_ms, timing.low, timing.high))
            rows.append(
                f'<div class="row{" first" if first else ""}" style="{_colour(model)}">'
                f'<span class="name">{escape(model.name) if first else ""}</span><span class="soft">{runtime}</span>'
                f'<span class="track"><span class="fill {kind}" style="width:{width:.1f}%"></span>'
                f'<span class="spread" style="left:{low:.1f}%;width:{high - low:.1f}%"></span></span>'
                f'<span class="value">{timing.median_ms:.2f} ms</span></div>'
            )
    return f'<div class="latency">{"".join(rows)}</div>'


def _made(demo: Demo) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in demo.machine.versions.items())
    entries = {
        "command": "<code>metamixer demo</code>",
        "date": demo.made.isoformat(),
        "machine": escape(f"{demo.machine.processor}, {demo.machine.cores} cores, {demo.machine.system}"),
        "versions": escape(versions),
        "parameters": "after merging norms and parallel kernels, which changes no logit by more than "
        f"{max(model.export.merge_difference for model in demo.models):.0e} of the largest",
        "largest difference": "of a logit, merged PyTorch against ONNX Runtime; relative: to the largest logit",
        "MACs": "convolutions and matrix products of one picture, the spectral transforms included",
        "validation top-1": "as the network’s model card gives it",
        "numbers": "<code>report.json</code>; per export <code>NAME.onnx.json</code>",
    }
    return definitions(entries)


def _colour(model: ModelResult) -> str:
    family = model.name.split("_")[0]
    return f"--colour:var(--{family if family in _FAMILIES else 'other'})"
