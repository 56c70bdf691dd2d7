"""Everything the demo does, up to the numbers; ``page`` and ``figure`` show them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from metamixer.bench.machine import Machine, this_machine
from metamixer.bench.macs import count_macs
from metamixer.data.files import make_folder, replace_when_done
from metamixer.data.pictures import read_picture
from metamixer.data.transforms import Preprocessing, evaluation_transform
from metamixer.demo.photographs import PHOTOGRAPHS, Photograph
from metamixer.deploy import onnx
from metamixer.deploy.export import export
from metamixer.deploy.merge import merge
from metamixer.deploy.report import ExportReport, Runtime
from metamixer.deploy.timing import Timing, time_interleaved, torch_threads
from metamixer.errors import MetamixerError
from metamixer.models import class_names, load_model
from metamixer.printing import Table, say, working
from metamixer.tasks.predict import predict
from metamixer.weights.embedded import Embedded, embedded_weights

TOP = 5
REPEATS = 50
Verdict = Literal["right", "in the top 5", "wrong", "not among its classes"]


@dataclass(frozen=True)
class Guess:
    """One class that a model names: its label, its probability, and whether it is right for the photograph."""

    label: str
    score: float
    right: bool


@dataclass(frozen=True)
class Answer:
    """What a model says of one photograph: its five likeliest classes, best first, and how good that is."""

    guesses: tuple[Guess, ...]
    verdict: Verdict


@dataclass(frozen=True)
class ModelResult:
    """One model: its answers in the order of the photographs, its size, its export and its speed.

    Args:
        name: ``architecture.tag``.
        classes: how many it knows.
        image_size: side of its input in pixels.
        accuracy: top-1 on its validation pictures in percent, as its card's figures say; None where there are none.
        macs: multiply-accumulates of one picture, transforms included.
        export: the ONNX export and how it compares with PyTorch on the photographs.
        torch, onnx: milliseconds for one picture with one thread, measured in turns with all others.
    """

    name: str
    classes: int
    image_size: int
    accuracy: float | None
    macs: int
    export: ExportReport
    torch: Timing
    onnx: Timing
    answers: tuple[Answer, ...]

    @property
    def speed_ratio(self) -> float:
        """How many times as fast ONNX Runtime is as eager PyTorch."""
        return self.torch.median_ms / self.onnx.median_ms


@dataclass(frozen=True)
class Demo:
    """The whole demo."""

    photographs: tuple[Photograph, ...]
    models: tuple[ModelResult, ...]
    machine: Machine
    made: date

    def to_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""
        return {
            "made": self.made.isoformat(),
            "machine": asdict(self.machine),
            "photographs": [
                {"name": p.name, "caption": p.caption, "credit": p.credit, "package": p.package}
                for p in self.photographs
            ],
            "models": [{**asdict(model), "speed_ratio": model.speed_ratio} for model in self.models],
        }


def run_demo(out: Path = Path("demo")) -> None:
    """See the shipped models at work: predictions, exports, speed, on one page.

    Args:
        out: folder for ``report.html``, ``report.png``, ``report.json`` and the exported models.
    """
    with working("Predicting, exporting and timing …"):
        demo = make_demo(out)
    _summary(demo).show()
    say(f"The report: {out / 'report.html'}")


def make_demo(out: str | Path, weights: Mapping[str, Embedded] | None = None, repeats: int = REPEATS) -> Demo:
    """Run the demo and write its files into ``out``.

    Args:
        out: folder for ``report.html``, ``report.png``, ``report.json`` and one ONNX file per model.
        weights: classifiers' checkpoints by name; by default those shipped with the package.
        repeats: rounds of timing.

    Raises MetamixerError where there are no weights, a package of the ``demo`` extra is missing, ``out`` cannot be
    written, or an export disagrees with PyTorch.
    """
    from metamixer.demo.figure import draw_figure
    from metamixer.demo.page import render_page

    folder = make_folder(out)
    if weights is None:
        weights = {name: shipped for name, shipped in embedded_weights().items() if shipped.metadata.classes}
    if not weights:
        raise MetamixerError("no weights are shipped with this installation of metamixer, so the demo has no models")
    onnx.check()
    pictures = [read_picture(photograph.path) for photograph in PHOTOGRAPHS]

    parts = {name: _examine(name, weights[name], pictures, folder) for name in _in_order(weights)}
    calls = {(name, runtime): call for name, (_, calls) in parts.items() for runtime, call in calls.items()}
    with torch_threads(1), torch.inference_mode():
        timings = time_interleaved(calls, repeats, warmup=5)
    models = [
        ModelResult(**facts, torch=timings[name, "torch"], onnx=timings[name, "onnx"])
        for name, (facts, _) in parts.items()
    ]
    demo = Demo(PHOTOGRAPHS, tuple(models), this_machine(), date.today())

    first = weights[models[0].name]
    inputs = [_as_seen(picture, first) for picture in pictures]
    with replace_when_done(folder / "report.json") as path:
        path.write_text(json.dumps(demo.to_dict(), indent=2) + "\n", encoding="utf-8")
    with replace_when_done(folder / "report.png") as path:
        draw_figure(demo, pictures, path)
    with replace_when_done(folder / "report.html") as path:
        path.write_text(render_page(demo, pictures, inputs), encoding="utf-8")
    return demo


def _in_order(weights: Mapping[str, Embedded]) -> list[str]:
    """Models that know the same classes together, those that know most first."""

    def key(name: str) -> tuple[int, str]:
        return -len(weights[name].metadata.classes or ()), name

    return sorted(weights, key=key)


def _examine(
    name: str, shipped: Embedded, pictures: list[Image.Image], folder: Path
) -> tuple[dict[str, Any], dict[str, Callable[[], object]]]:
    """All of a :class:`ModelResult` but its timings, and the functions to be timed."""
    model = load_model(shipped.path)
    count: Any = model.num_classes
    labels = class_names(model, readable=True) or [str(i) for i in range(count)]
    answers = []
    for photograph, picture in zip(PHOTOGRAPHS, pictures, strict=True):
        result = predict(model, picture, TOP)
        guesses = tuple(
            Guess(labels[i].split(",")[0], score, photograph.is_right(labels[i]))
            for i, score in zip(result.indices, result.scores, strict=True)
        )
        answers.append(Answer(guesses, _verdict(guesses, any(map(photograph.is_right, labels)))))

    path = folder / f"{name}.onnx"
    report = export(model, "onnx", path, pictures=pictures, repeats=0, name=name)
    merged, runtime = merge(model), onnx.load(path, threads=1)
    facts = {
        "name": name,
        "classes": len(labels),
        "image_size": report.image_size,
        "accuracy": shipped.top1,
        "macs": count_macs(merged, report.image_size),
        "export": report,
        "answers": tuple(answers),
    }
    return facts, _calls(merged, runtime, report.image_size)


def _calls(model: torch.nn.Module, runtime: Runtime, image_size: int) -> dict[str, Callable[[], object]]:
    example = torch.zeros(1, 3, image_size, image_size)
    array = example.numpy()
    return {"torch": lambda: model(example), "onnx": lambda: runtime(array)}


def _verdict(guesses: tuple[Guess, ...], knows: bool) -> Verdict:
    if not knows:
        return "not among its classes"
    if guesses[0].right:
        return "right"
    return "in the top 5" if any(guess.right for guess in guesses) else "wrong"


def _as_seen(picture: Image.Image, shipped: Embedded) -> Image.Image:
    """The few pixels that the network gets."""
    preprocessing = shipped.metadata.preprocessing or Preprocessing(64)
    pixels = evaluation_transform(preprocessing)(picture)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def _summary(demo: Demo) -> Table:
    headings = ("model", "accuracy", "ONNX size", "max difference", "torch", "ONNX Runtime")
    result = Table(headings, title="The shipped models on photographs, with one thread")
    for model in demo.models:
        result.add(
            model.name,
            "–" if model.accuracy is None else f"{model.accuracy:.1f} %",
            f"{model.export.size_bytes / 1e6:.1f} MB",
            f"{model.export.max_abs_difference:.0e}",
            f"{model.torch.median_ms:.1f} ms",
            f"{model.onnx.median_ms:.1f} ms",
        )
    return result
