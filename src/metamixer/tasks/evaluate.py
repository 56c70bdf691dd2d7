"""How well a model does on a folder of pictures, or on other data that its task reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn
from tyro.conf import Positional, arg

from metamixer.data.annotations import Policy
from metamixer.data.annotations.find import Format
from metamixer.data.image_folder import ImageFolder, class_folders, split_of
from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError
from metamixer.finite import watch_outputs
from metamixer.heads.base import DenseModel
from metamixer.limits import BatchSize, PixelValue, Scale, Side, Workers, checked, require_memory_for_pictures
from metamixer.models import class_names, require_rgb
from metamixer.printing import Table
from metamixer.tasks.classification import (
    VALIDATION_FOLDERS,
    default_device,
    evaluate_folder,
)
from metamixer.tasks.dense import evaluate_dense, load_any_model
from metamixer.tasks.dense_inference import SegmentationInference
from metamixer.tasks.other_networks import KINDS, check_settings, evaluate_data


@checked
def evaluate(
    model: nn.Module | str | Path,
    data: str | Path,
    image_size: Side | None = None,
    batch_size: BatchSize = 128,
    workers: Workers | None = None,
    progress: bool = False,
) -> Any:
    """Top-1 and top-5 accuracy and cross-entropy on the pictures of a folder, as :class:`ClassificationMetrics`; of a
    detector or segmenter what :func:`metamixer.tasks.dense.evaluate_dense` gives for the validation part, a dict, and
    of the networks for super-resolution, forecasting and point clouds what
    :func:`metamixer.tasks.other_networks.evaluate_data` gives, a dict too.

    Args:
        model: a model (left in its mode, used on its device), its name, or the path of a checkpoint.
        data: folder with one sub-folder per class, or one that holds such a folder named ``val``, ``validation`` or
            ``test``. Where the model knows its classes' names, sub-folders are matched by name and may be fewer;
            otherwise the sorted sub-folders are taken for classes 0, 1, 2 …. For super-resolution a folder of large
            pictures, for forecasting a CSV file, of which the test part counts, for point clouds labelled scenes.
        image_size: side of the network's input in pixels; by default the model's own.
        batch_size: pictures at a time.
        workers: processes that read pictures; by default from the machine.
        progress: show a progress bar on a terminal.

    Raises MetamixerError for an unknown model, an unreadable picture, a missing folder, outputs that are not finite,
    and a sub-folder whose name is none of the model's classes.
    """
    if not isinstance(model, nn.Module):
        model = load_any_model(model).to(default_device())
    if not isinstance(model, KINDS):
        require_rgb(model)
    with watch_outputs(model):
        if isinstance(model, DenseModel):
            return evaluate_dense(model, data, image_size=image_size, workers=workers)
        if isinstance(model, KINDS):
            return evaluate_data(model, data)
        folder = _folder_for(model, split_of(data, VALIDATION_FOLDERS) or Path(data))
        preprocessing = Preprocessing.of(model.pretrained_cfg, image_size)
        device = next(model.parameters()).device
        side, count = preprocessing.image_size, min(batch_size, len(folder))
        require_memory_for_pictures(count, side, side, at_once=count if device.type == "cpu" else 0)
        title = f"{folder.root}" if progress else None
        return evaluate_folder(model, folder, preprocessing, device, workers, batch_size, title)


@checked
def evaluate_command(
    model: Positional[Annotated[str, arg(metavar="MODEL")]],
    data: Path,
    image_size: Side | None = None,
    batch_size: BatchSize = 128,
    workers: Workers | None = None,
    split: Literal["train", "val", "test"] | None = None,
    format: Format = "auto",
    bad_entries: Policy = "raise",
    void: PixelValue = 255,
    zero_is_void: bool = False,
    window: Side | None = None,
    stride: Side | None = None,
    scales: tuple[Scale, ...] = (1.0,),
    mirror: bool = False,
    time_column: str | None = None,
    small: Path | None = None,
    views: bool = False,
) -> None:
    """Measure a model on a folder of pictures, a series or scenes of points.

    Args:
        model: a model's name, ``name.tag`` for particular weights, or the path of a checkpoint.
        data: folder with ``CLASS/*.jpg``, or with ``val/CLASS/*.jpg`` (``validation`` or ``test`` also serve); large
            pictures for super-resolution, a CSV file for forecasting, labelled scenes for point clouds.
        image_size: side of the network's input in pixels; the model's own by default.
        batch_size: pictures at a time.
        workers: processes that read pictures, 0 for none; by default from the machine.
        split: part of data with boxes, masks or class maps ("val" by default) or of a series ("test" by default).
        format: layout of boxes and masks; found out by default.
        bad_entries: refuse data with bad boxes, masks or class maps, leave those out ("drop"), or also cut boxes at the
            picture's edge ("clip").
        void: value of pixels without a class in class maps, beside 255.
        zero_is_void: 0 is void too in class maps, and the first class is 1.
        window: side in pixels of windows that slide over the picture to make its class map; the whole picture at once
            by default.
        stride: pixels between windows; two thirds of the window by default.
        scales: sizes, as multiples of the network's own, whose class maps are averaged.
        mirror: average class maps over the mirrored picture too.
        time_column: column of times of a CSV file; by default as in training.
        small: folder of the small pictures for super-resolution; made bicubically by default.
        views: label points by ten views of the scene (test-time voting).
    """
    how = SegmentationInference(window, stride, scales, mirror)
    network = load_any_model(model).to(default_device())
    if isinstance(network, (DenseModel, *KINDS)):  # of a classifier, the function below does it
        watch_outputs(network)
    check_settings(network, split=split, time_column=time_column, small=small, views=views)
    found: dict[str, float] | None = None
    if isinstance(network, DenseModel):
        found = evaluate_dense(
            network,
            data,
            split or "val",
            image_size,
            how,
            workers,
            format,
            bad_entries,
            void=void,
            zero_is_void=zero_is_void,
        )
    elif isinstance(network, KINDS):
        found = evaluate_data(network, data, split, time_column, small, views)
    if found is not None:
        rows = Table(("metric", model))
        for name, value in found.items():
            rows.add(name, str(value) if isinstance(value, int) else f"{value:.4f}")
        rows.show()
        return
    metrics = evaluate(network, data, image_size, batch_size, workers, progress=True)
    table = Table(("model", "pictures", "top-1 %", "top-5 %", "loss"))
    table.add(model, str(metrics.count), f"{metrics.top1:.2f}", f"{metrics.top5:.2f}", f"{metrics.loss:.4f}")
    table.show()


def _folder_for(model: nn.Module, root: Path) -> ImageFolder:
    """The folder with labels in the order of the model's classes."""
    names = class_names(model)
    if names is not None:
        return ImageFolder(root, classes=names)
    found, expected = len(class_folders(root)), model.num_classes
    if found and found != expected:
        raise MetamixerError(
            f"{root} holds {found} class folders, the model has {expected} classes and no names to match them by"
        )
    return ImageFolder(root)
