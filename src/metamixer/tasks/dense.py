"""Objects and class maps for users: predict pictures, folders and videos, measure on a data set, show the cases."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image, ImageOps
from torch import nn

from metamixer.data.annotations import ClassMaps, ObjectSet, Policy, open_class_maps, open_objects
from metamixer.data.annotations.files import read_annotated
from metamixer.data.annotations.find import Format
from metamixer.data.annotations.records import Picture
from metamixer.data.annotations.shapes import to_masks
from metamixer.data.files import make_folder, replace_when_done
from metamixer.data.pictures import picture_files, read_picture, to_rgb
from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel, SegmentationModel
from metamixer.heads.build import HEADS, build
from metamixer.limits import PixelValue, Share, Side, Workers, checked
from metamixer.models import class_names, load_model, require_rgb
from metamixer.printing import complain, say
from metamixer.tasks.dense_inference import SegmentationInference, detect, read_ahead, segment
from metamixer.tasks.dense_metrics import ClassMapMetrics, objects_found
from metamixer.tasks.detection import evaluate_detection
from metamixer.tasks.gallery import Case, write_gallery
from metamixer.tasks.results import Result, import_supervision
from metamixer.tasks.segmentation import evaluate_segmentation, read_pair
from metamixer.weights.checkpoint import read_metadata

VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
SURE = 0.5  # score from which objects are shown


def load_dense_model(path: str | Path) -> DenseModel | None:
    """The model of a checkpoint of ours that holds a detector or segmenter; None for any other file.

    Raises MetamixerError for a safetensors file that cannot be read.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix != ".safetensors":
        return None
    metadata = read_metadata(path)
    return build(metadata.architecture, checkpoint=path) if metadata and metadata.architecture in HEADS else None


def load_any_model(spec: str | Path) -> nn.Module:
    """The model that a user means, as :func:`metamixer.models.load_model` finds it, detectors and segmenters too."""
    return load_dense_model(spec) or load_model(spec)


@checked
def predict_dense(
    model: DenseModel,
    picture: Image.Image | str | Path,
    image_size: Side | None = None,
    score: Share = SURE,
    how: SegmentationInference | None = None,
) -> Result:
    """Objects with at least ``score``, or the class of every pixel.

    Args:
        model: of :func:`metamixer.build`; left in its mode, used on its device.
        picture: a picture or its path.
        image_size: shorter side in pixels at which the network sees it; the model's own by default.
        score: surest objects only; 0 for all.
        how: windows, scales and mirroring, for class maps.

    Raises MetamixerError for an unreadable picture, a score outside 0…1, and a network of other channels than three.
    """
    require_rgb(model)
    upright = to_rgb(ImageOps.exif_transpose(picture)) if isinstance(picture, Image.Image) else read_picture(picture)
    source = None if isinstance(picture, Image.Image) else str(picture)
    if isinstance(model, SegmentationModel):
        return replace(segment(model, upright, image_size, how), source=source)
    return replace(detect(model, upright, image_size).above(score), source=source)


def predict_files(
    model: DenseModel,
    paths: Sequence[Path],
    out: Path | None = None,
    image_size: int | None = None,
    score: float = SURE,
) -> int:
    """Predict pictures, folders of pictures and videos, and print what they show; gives the exit code of a command.

    ``out``, a folder, gets the drawn pictures (``0001_NAME.png``; of a class map also ``0001_NAME_classes.png``) and
    videos, and ``predictions.json``. A picture that cannot be read is named, and the others are predicted all the same.
    Raises MetamixerError for a folder without pictures, a video without ``out``, and a network of other channels than
    three.
    """
    require_rgb(model)
    files = picture_files(paths)
    folder = None if out is None else make_folder(out)
    if folder is None and any(file.suffix.lower() in VIDEOS for file in files):
        raise MetamixerError("a video needs a folder for the drawn one: name it with --out")
    said: list[dict[str, Any]] = []
    failed = 0
    for number, file in enumerate(files, 1):
        name = f"{number:04}_{file.stem}"
        try:
            if folder is not None and file.suffix.lower() in VIDEOS:
                frames = predict_video(model, file, folder / f"{name}.mp4", image_size, score)
                say(f"{file}: {frames} frames drawn")
                continue
            result = predict_dense(model, file, image_size, score)
        except MetamixerError as error:
            complain(error)
            failed += 1
            continue
        said.append(result.to_dict())
        say(f"{file}: {_summary(result)}")
        if folder is not None:
            with replace_when_done(folder / f"{name}.png") as temporary:
                result.draw().save(temporary, "PNG")
            if result.class_map is not None:
                result.to_png(folder / f"{name}_classes.png")
    if folder is not None:
        with replace_when_done(folder / "predictions.json") as temporary:
            temporary.write_text(json.dumps(said, indent=2) + "\n")
    return 1 if failed else 0


def _summary(result: Result) -> str:
    """``2 dog (0.91, 0.80), 1 cat (0.55)``, or the shares of classes."""
    if result.class_map is not None:
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share in result.shares().items())
    scores: dict[str, list[float]] = {}
    for name, score in zip(result.names, result.scores.tolist(), strict=True):
        scores.setdefault(name, []).append(score)
    texts = (f"{len(s)} {name} ({', '.join(f'{x:.2f}' for x in s)})" for name, s in scores.items())
    return ", ".join(texts) or "nothing found"


def predict_video(
    model: DenseModel, video: str | Path, out: str | Path, image_size: int | None = None, score: float = SURE
) -> int:
    """Write ``out``, the video with predictions drawn on every frame; gives the number of frames.

    Raises MetamixerError where the video cannot be read.
    """
    sv = import_supervision()
    video, out = Path(video), Path(out)
    if not os.path.isfile(video):
        raise MetamixerError(f"{video}: no such file")
    make_folder(out.parent)
    try:
        info = sv.VideoInfo.from_video_path(str(video))
        frames = sv.get_video_frames_generator(str(video))
    except Exception as error:  # whatever the decoder raises
        raise MetamixerError(f"{video} cannot be read as a video ({error})") from None
    count, sink = 0, None
    partial = out.with_name(f".{out.stem}.part{out.suffix}")  # the encoder goes by the ending
    try:
        for frame in frames:
            picture = Image.fromarray(frame[..., ::-1].copy())  # blue comes first
            drawn = predict_dense(model, picture, image_size, score).draw()
            if sink is None:
                sized = replace(info, width=drawn.width // 2 * 2, height=drawn.height // 2 * 2)
                sink = sv.VideoSink(str(partial), sized)
                sink.__enter__()
            fitted = drawn.convert("RGB").resize((sized.width, sized.height)) if _differs(drawn, sized) else drawn
            sink.write_frame(_blue_first(fitted))
            count += 1
        if sink is None:
            raise MetamixerError(f"{video} cannot be read as a video (it has no frames)")
        sink.__exit__(None, None, None)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return count


@checked
def evaluate_dense(
    model: DenseModel,
    data: str | Path,
    split: str = "val",
    image_size: Side | None = None,
    how: SegmentationInference | None = None,
    workers: Workers | None = None,
    format: Format = "auto",
    bad_entries: Policy = "raise",
    void: PixelValue = 255,
    zero_is_void: bool = False,
) -> dict[str, float]:
    """COCO's metrics of a detector (of boxes, and of masks where model and data have them), or a segmenter's ``mIoU``,
    ``pixel_accuracy``, ``class_accuracy`` and ``IoU/NAME`` of every class; all 0…1.

    Args are those of :func:`predict_dense`, :func:`~metamixer.data.annotations.open_objects` and
    :func:`~metamixer.data.annotations.open_class_maps`, and so is what it raises.
    """
    require_rgb(model)
    truth = _truth(model, data, split, format, bad_entries, void, zero_is_void)
    if isinstance(truth, ObjectSet):
        masks = hasattr(model, "mask_heads") and truth.has_masks
        return evaluate_detection(model, truth, image_size, masks, workers)
    metrics = evaluate_segmentation(cast(SegmentationModel, model), truth, image_size, how, workers)
    of_classes = zip(truth.classes, metrics.of_classes().tolist(), strict=True)
    return metrics.summary() | {f"IoU/{name}": value for name, value in of_classes}


def gallery(
    model: DenseModel,
    data: str | Path,
    out: str | Path,
    split: str = "val",
    best: int = 10,
    worst: int = 10,
    image_size: int | None = None,
    how: SegmentationInference | None = None,
    format: Format = "auto",
    bad_entries: Policy = "raise",
    void: PixelValue = 255,
    zero_is_void: bool = False,
) -> list[Case]:
    """Write ``out``, a page with the best and the worst pictures of a split, drawn as found and as annotated, each
    with its metric: F1 of objects with a score of 0.5 or more at an overlap of 0.5, or the mIoU of the picture.

    The file needs nothing beside it. Gives the cases shown, the best first. Raises as :func:`evaluate_dense` does.
    """
    truth = _truth(model, data, split, format, bad_entries, void, zero_is_void)
    rated = sorted(_rated(model, truth, image_size, how), key=lambda pair: -pair[0])
    chosen = rated if len(rated) <= best + worst else rated[:best] + rated[len(rated) - worst :]
    cases = [_case(model, truth, index, metric, image_size, how) for metric, index in chosen]
    name = "F1 at IoU 0.5, score 0.5" if isinstance(truth, ObjectSet) else "mIoU"
    with replace_when_done(out) as temporary:
        write_gallery(temporary, cases, f"{Path(data).name}, {split}", name, len(rated), min(best, len(cases)))
    return cases


def truth_of(truth: ObjectSet | ClassMaps, index: int) -> Result:
    """A picture's annotations, as a perfect network would give them; crowds are left out."""
    if isinstance(truth, ClassMaps):
        picture, labels = read_pair(truth, index)
        size = (picture.height, picture.width)
        return Result(size, class_map=labels, classes=truth.classes, picture=picture, source=str(truth.pairs[index][0]))
    entry = truth.pictures[index]
    return truth_of_objects(entry, truth.classes)


def truth_of_objects(entry: Picture, classes: Sequence[str]) -> Result:
    """The objects of an annotated picture, with scores of 1."""
    shown = [one for one in entry.instances if not one.crowd]
    masks = None
    if shown and all(one.segmentation is not None for one in shown):
        masks = to_masks([one.segmentation for one in shown], entry.size).astype(bool)
    boxes = torch.tensor([one.box for one in shown], dtype=torch.float32).reshape(-1, 4).numpy()
    labels = torch.tensor([one.label for one in shown], dtype=torch.int64).numpy()
    picture = read_annotated(entry.file, entry.size)
    scores = torch.ones(len(shown)).numpy()
    return Result(entry.size, labels, scores, boxes, masks, None, tuple(classes), picture, str(entry.file))


def _truth(
    model: DenseModel,
    data: str | Path,
    split: str,
    format: Format,
    bad_entries: Policy,
    void: int,
    zero_is_void: bool,
) -> ObjectSet | ClassMaps:
    names = class_names(model)
    found: ObjectSet | ClassMaps
    if isinstance(model, SegmentationModel):
        found = open_class_maps(data, split, bad_entries, names, void, zero_is_void)
    else:
        found = open_objects(data, split, format, bad_entries, names)
    if len(found.classes) != model.num_classes:
        raise MetamixerError(f"{data} has {len(found.classes)} classes, the model {model.num_classes}")
    return found


def _rated(
    model: DenseModel, truth: ObjectSet | ClassMaps, image_size: int | None, how: SegmentationInference | None
) -> Iterator[tuple[float, int]]:
    if isinstance(truth, ObjectSet):
        entries = truth.pictures
        pictures = read_ahead(lambda i: read_annotated(entries[i].file, entries[i].size), range(len(entries)), None)
        for i, picture in enumerate(pictures):
            yield objects_found(entries[i], detect(model, picture, image_size)), i
        return
    for i, (picture, labels) in enumerate(read_ahead(lambda i: read_pair(truth, i), range(len(truth.pairs)), None)):
        metrics = ClassMapMetrics.empty(model.num_classes)
        found = segment(cast(SegmentationModel, model), picture, image_size, how)
        metrics.add(torch.from_numpy(labels), torch.from_numpy(found.class_map))
        if metrics.counts.sum():
            yield metrics.summary()["mIoU"], i


def _case(
    model: DenseModel,
    truth: ObjectSet | ClassMaps,
    index: int,
    metric: float,
    image_size: int | None,
    how: SegmentationInference | None,
) -> Case:
    annotated = truth_of(truth, index)
    assert annotated.picture is not None
    found = predict_dense(model, annotated.picture, image_size, how=how)
    return Case(Path(str(annotated.source)).name, metric, found.draw(), annotated.draw(scores=False))


def _differs(drawn: Image.Image, info: Any) -> bool:
    return drawn.size != (info.width, info.height)


def _blue_first(picture: Image.Image) -> Any:
    import numpy as np

    return np.ascontiguousarray(np.asarray(picture)[..., ::-1])
