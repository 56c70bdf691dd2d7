"""Predict what pictures show, and draw it; for other networks, hand on to where that is done."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import nn
from tyro.conf import Positional, arg

from metamixer.data.files import make_folder, replace_when_done
from metamixer.data.pictures import picture_files, read_picture, to_rgb
from metamixer.data.transforms import Preprocessing, evaluation_transform
from metamixer.errors import MetamixerError
from metamixer.finite import watch_outputs
from metamixer.heads.base import DenseModel
from metamixer.limits import Count, Share, Side, checked, require_memory_for_pictures
from metamixer.models import class_names, require_rgb
from metamixer.printing import Table, as_utf8, complain
from metamixer.tasks import other_networks
from metamixer.tasks.classification import default_device
from metamixer.tasks.dense import SURE, load_any_model, predict_dense, predict_files
from metamixer.tasks.evaluation_mode import evaluation_mode
from metamixer.tasks.other_networks import KINDS, predict_one


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one picture, best first.

    Args:
        labels: class names, or class indices for a model without names.
        scores: probabilities in 0…1.
        indices: class indices.
        picture: the picture, upright and RGB.
        source: its path, if it came from a file.
    """

    labels: tuple[str, ...] | tuple[int, ...]
    scores: tuple[float, ...]
    indices: tuple[int, ...]
    picture: Image.Image = field(repr=False, compare=False)
    source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the picture, ready for JSON."""
        return {
            "source": self.source and as_utf8(self.source),
            "labels": list(self.labels),
            "scores": list(self.scores),
            "indices": list(self.indices),
        }

    def draw(self, side: int = 360) -> Image.Image:
        """The picture, fitted into ``side × side`` pixels, with its classes and bars of their scores on the right."""
        return _draw(self, side)


@checked
@torch.inference_mode()
def predict(
    model: nn.Module | str | Path,
    picture: Image.Image | str | Path,
    topk: Count = 5,
    image_size: Side | None = None,
) -> Any:
    """What a picture shows: a :class:`Prediction` with the ``topk`` likeliest classes; of a detector or segmenter (see
    :func:`metamixer.build`) a :class:`~metamixer.tasks.results.Result` with objects of score 0.5 or more, or a class
    map; of the networks for super-resolution, forecasting and point clouds an
    :class:`~metamixer.tasks.super_resolution.Enlargement`, a :class:`~metamixer.tasks.forecasting.Forecast` or a
    :class:`~metamixer.tasks.point_clouds.LabelledCloud`.

    Args:
        model: a model (left in its mode, used on its device), its name, or the path of a checkpoint.
        picture: a picture or its path; for forecasting the path of a CSV file, for point clouds that of a scene.
        topk: classes in the result, at most as many as the model has.
        image_size: side of the network's input in pixels; by default the model's own.

    Raises MetamixerError for an unknown model, an unreadable picture, a model without classifier, outputs that are not
    finite, and ``topk`` below 1.
    """
    if not isinstance(model, nn.Module):
        model = load_any_model(model).to(default_device())
    if not isinstance(model, KINDS):
        require_rgb(model)
    with watch_outputs(model):
        if isinstance(model, DenseModel):
            return predict_dense(model, picture, image_size)
        if isinstance(model, KINDS):
            return predict_one(model, picture)
        upright = (
            to_rgb(ImageOps.exif_transpose(picture)) if isinstance(picture, Image.Image) else read_picture(picture)
        )
        preprocessing = Preprocessing.of(model.pretrained_cfg, image_size)
        side, device = preprocessing.image_size, next(model.parameters()).device
        require_memory_for_pictures(1, side, side, at_once=device.type == "cpu")
        pixels = evaluation_transform(preprocessing)(upright)[None].to(device)
        with evaluation_mode(model):
            logits = model(preprocessing.normalise(pixels))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or getattr(model, "num_classes", 1) == 0:
        raise MetamixerError("the model has no classifier; predict wants one output per class")

    scores, best = logits[0].float().softmax(0).topk(min(topk, logits.shape[1]))
    indices = tuple(best.tolist())
    names = class_names(model, readable=True)
    labels = indices if names is None else tuple(names[i] for i in indices)
    source = None if isinstance(picture, Image.Image) else str(picture)
    return Prediction(labels, tuple(scores.tolist()), indices, upright, source)


@checked
def predict_command(
    model: Positional[Annotated[str, arg(metavar="MODEL")]],
    picture: Positional[Annotated[Path, arg(metavar="PICTURE")]],
    more: Positional[Annotated[tuple[Path, ...], arg(metavar="MORE")]] = (),
    *,
    topk: Count = 5,
    image_size: Side | None = None,
    score: Share = SURE,
    out: Path | None = None,
    time_column: str | None = None,
    views: bool = False,
) -> int:
    """Name what pictures show; detectors and segmenters take videos too, other networks series and point clouds.

    Args:
        model: a model's name, ``name.tag`` for particular weights, or the path of a checkpoint.
        picture: a picture, or a folder of pictures; a CSV file to forecast, or a scene of points to label.
        more: further pictures and folders.
        topk: classes shown per picture.
        image_size: side of the network's input in pixels; the model's own by default.
        score: surest objects only, of a detector.
        out: folder for the drawn predictions and ``predictions.json``; enlarged pictures, forecasts and labels of
            points need one.
        time_column: column of times of a CSV file; by default as in training.
        views: label points by ten views of the scene (test-time voting).
    """
    classifier = load_any_model(model).to(default_device())
    if isinstance(classifier, (DenseModel, *KINDS)):  # of a classifier, the function below does it
        watch_outputs(classifier)
    other_networks.check_settings(classifier, time_column=time_column, views=views)
    if isinstance(classifier, DenseModel):
        return predict_files(classifier, (picture, *more), out, image_size, score)
    if isinstance(classifier, KINDS):
        return other_networks.predict_files(classifier, (picture, *more), out, views, time_column)
    files = picture_files((picture, *more))
    folder = None if out is None else make_folder(out)
    results = []
    for file in files:
        try:
            result = predict(classifier, file, topk, image_size)
        except MetamixerError as error:
            complain(error)
            continue
        results.append(result)
        _print_table(result)
        if folder is not None:
            _save_drawing(result, folder / f"{len(results):04}_{file.stem}.png")
    if folder is not None:
        with replace_when_done(folder / "predictions.json") as temporary:
            temporary.write_text(json.dumps([result.to_dict() for result in results], indent=2) + "\n")
    return 0 if len(results) == len(files) else 1


def _print_table(result: Prediction) -> None:
    table = Table(("class", "score"), title=result.source or "", header=False)
    for label, score in zip(result.labels, result.scores, strict=True):
        table.add(label, f"{100 * score:.1f} %")
    table.show()


def _save_drawing(result: Prediction, path: Path) -> None:
    with replace_when_done(path) as temporary:
        result.draw().save(temporary, "PNG")


_MARGIN, _ROW, _BAR_WIDTH, _FONT_SIZE = 16, 56, 320, 20


def _draw(result: Prediction, side: int) -> Image.Image:
    picture = ImageOps.contain(result.picture, (side, side), Image.Resampling.LANCZOS)
    rows = len(result.labels)
    height = max(picture.height, rows * _ROW) + 2 * _MARGIN
    canvas = Image.new("RGB", (picture.width + _BAR_WIDTH + 3 * _MARGIN, height), "white")
    canvas.paste(picture, (_MARGIN, (height - picture.height) // 2))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), _FONT_SIZE)
    left = picture.width + 2 * _MARGIN
    top = (height - rows * _ROW) // 2
    for row, (label, score) in enumerate(zip(result.labels, result.scores, strict=True)):
        y = top + row * _ROW
        percent = f"{100 * score:.1f} %"
        draw.text((left + _BAR_WIDTH, y), percent, "black", font, anchor="ra")
        room = _BAR_WIDTH - draw.textlength(percent, font) - _MARGIN
        draw.text((left, y), _shortened(str(label), room, font), "black", font)
        colour = "#1f6fb2" if row == 0 else "#8db8dc"
        bar = Image.new("RGB", (_BAR_WIDTH, 12), "#e8eaed")
        bar.paste(colour, (0, 0, round(_BAR_WIDTH * score), bar.height))
        canvas.paste(bar, (left, y + _FONT_SIZE + 8))
    return canvas


def _shortened(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """``text`` on one line of at most ``width`` pixels, ending in … where it was cut."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
