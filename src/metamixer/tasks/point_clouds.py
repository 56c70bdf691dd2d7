"""Segmentation of point clouds: scenes, cross-entropy and Lovász loss, mIoU on every point, labelled clouds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.data.clouds import (
    ATTRIBUTES,
    IGNORED,
    Cloud,
    CloudAugmentation,
    Layout,
    Scenes,
    centred,
    feature_width,
    nearest_to_a_point,
    voxelise,
)
from metamixer.data.files import replace_when_done
from metamixer.data.source import is_test_name
from metamixer.errors import MetamixerError
from metamixer.limits import Count, Points, Positive, Share, ShareAboveZero, ShareBelowOne, check_settings
from metamixer.networks import FFNetPoints, about, create_network, save_network
from metamixer.printing import as_utf8
from metamixer.tasks.evaluation_mode import evaluation_mode
from metamixer.tasks.figure_picture import figure_picture
from metamixer.tasks.sharing import shared
from metamixer.tasks.task import Task, require

#: (factor on the coordinates, mirrored) of the ten views of the released test for S3DIS.
VIEWS = tuple((scale, mirrored) for mirrored in (False, True) for scale in (0.9, 0.95, 1.0, 1.05, 1.1))

Batch = dict[str, Tensor]


@dataclass
class PointSegmentation(Task):
    """A class for every point of a scene.

    Args:
        model: ``ffnet_points``, or ``ffnet_points_tiny``, our own small one.
        data: folder of the data set.
        train: folders and files in it to train with, as :class:`metamixer.data.clouds.Scenes` reads them.
        val: the same to validate with.
        layout: how scenes are stored; by default from what lies there.
        classes: names of the classes, in the order of their indices.
        features: what the network reads of a point: ``color``, ``normal``, ``strength``, ``coord``.
        grid: side of the finest grid's cells in metres.
        centre: move every scene to the middle of its extent, its lowest point to 0; not for scans whose origin, the
            sensor, tells something.
        points: at most so many cells of a training scene are used, those nearest to a random one.
        share: at most this share of a training scene's cells is used.
        mix: probability that the clouds of a batch are laid over each other in pairs (Mix3D, arXiv 2110.02210).
        augment: random changes of training scenes.
        passes: times that each scene counts in an epoch.
        drop_path_rate: stochastic depth of single points.
        checkpoint: weights to start from.
    """

    model: str = "ffnet_points"
    data: str = ""
    train: tuple[str, ...] = ("train",)
    val: tuple[str, ...] = ("val",)
    layout: Layout = "auto"
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ("color", "normal")
    grid: Positive = 0.02
    centre: bool = True
    points: Points = 102400
    share: ShareAboveZero = 1.0
    mix: Share = 0.8
    augment: CloudAugmentation = field(default_factory=CloudAugmentation)
    passes: Count = 1
    drop_path_rate: ShareBelowOne = 0.3
    checkpoint: str | None = None

    metric = "miou"
    smallest_part = 1

    def __post_init__(self) -> None:
        check_settings(self)
        known = ("coord", *ATTRIBUTES)
        require(bool(self.features) and set(self.features) <= set(known), f"features must be among {', '.join(known)}")

    def open(self) -> None:
        require(len(self.classes) >= 2, "classes must name two or more")
        count = len(self.classes)
        self._train, self._val = (
            [Scenes(Path(self.data, part), count, self.layout) for part in parts] for parts in (self.train, self.val)
        )
        self._places = [(scenes, i) for scenes in self._train for i in range(len(scenes))]
        for scenes in self._val:
            for cloud in scenes:  # read once, as in every evaluation, so that what is wrong is known before training
                _labels_of(cloud)

    def test_part(self) -> str | None:
        return next((str(Path(self.data, part)) for part in self.val if is_test_name(Path(part).name)), None)

    def create_model(self) -> FFNetPoints:
        model = create_network(
            self.model,
            self.checkpoint,
            in_channels=feature_width(self.features),
            num_classes=len(self.classes),
            drop_path_rate=self.drop_path_rate,
        )
        if not isinstance(model, FFNetPoints):
            raise MetamixerError(f"{self.model} reads no point clouds")
        self._levels = len(model.encoder) - 1
        return model

    def __len__(self) -> int:
        return len(self._places) * self.passes

    def describe(self, index: int) -> str:
        scenes, place = self._places[index % len(self._places)]
        return scenes.name(place)

    def sample(self, index: int, size: int | None) -> Batch:
        """``feat`` (``N × features``), ``grid_coord`` (``N × 3``) and ``segment`` (``N``), one point per cell."""
        scenes, place = self._places[index % len(self._places)]
        cloud = scenes[place]
        _labels_of(cloud)
        cloud = self.augment(centred(cloud) if self.centre else cloud)
        cells = voxelise(cloud.coord, self.grid, cloud.name)
        rows = cells.one_of_each()
        near = nearest_to_a_point(cloud.coord[rows], min(self.points, max(2, int(self.share * len(rows)))))
        grid = cells.grid_coord[near]
        if not np.ptp(grid >> self._levels, axis=0).any():
            raise MetamixerError(
                f"{cloud.name} lies in one cell of the network's coarsest grid ({self.grid * 2**self._levels:g} m):"
                " choose a finer grid"
            )
        chosen = cloud.take(rows[near])
        assert chosen.segment is not None
        return {
            "feat": torch.from_numpy(chosen.features(self.features)),
            "grid_coord": torch.from_numpy(grid),
            "segment": torch.from_numpy(chosen.segment),
        }

    def collate(self, samples: Sequence[Any]) -> Batch:
        clouds = list(samples)
        if len(clouds) > 1 and float(torch.rand(())) < self.mix:
            clouds = [_laid_over(clouds[i : i + 2]) for i in range(0, len(clouds), 2)]
        batch = {key: torch.cat([cloud[key] for cloud in clouds]) for key in clouds[0]}
        return batch | {"offset": torch.tensor([len(cloud["feat"]) for cloud in clouds]).cumsum(0)}

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        logits = model(batch["feat"], batch["grid_coord"], batch["offset"]).float()
        labelled = batch["segment"] != IGNORED
        logits, target = logits[labelled], batch["segment"][labelled]
        if not len(target):
            return {"cross_entropy": logits.sum(), "lovasz": logits.sum()}  # 0, with a gradient of zeros
        return {"cross_entropy": F.cross_entropy(logits, target), "lovasz": lovasz_softmax(logits.softmax(1), target)}

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """``miou`` over the classes that occur, ``class_accuracy`` and ``accuracy`` on every point, as fractions."""
        places = [(scenes, i) for scenes in self._val for i in range(len(scenes))]

        def confusion(indices: range) -> NDArray[np.int64]:
            counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
            for scenes, i in (places[index] for index in indices):
                cloud = scenes[i]
                truth = _labels_of(cloud)
                found = label_points(model, cloud, self.features, self.grid, self.centre)
                counts += confusion_matrix(found, truth, len(self.classes))
            return counts

        return segmentation_metrics(np.sum(shared(len(places), confusion), axis=0))

    def save(self, model: nn.Module, path: Path) -> None:
        facts = {
            "classes": list(self.classes),
            "features": list(self.features),
            "grid": self.grid,
            "centre": self.centre,
        }
        save_network(model, path, facts)


def _laid_over(clouds: list[Batch]) -> Batch:
    """Clouds as one, with one point per cell: where several have one, that of the first."""
    together = {key: torch.cat([cloud[key] for cloud in clouds]) for key in clouds[0]}
    rows = np.unique(together["grid_coord"].numpy(), axis=0, return_index=True)[1]
    return {key: values[torch.from_numpy(np.sort(rows))] for key, values in together.items()}


def _labels_of(cloud: Cloud) -> NDArray[np.int64]:
    """Of every point. Raises MetamixerError where there are none."""
    if cloud.segment is None:
        raise MetamixerError(f"{cloud.name} has no labels (an array such as 'segment')")
    if (cloud.segment == IGNORED).all():
        raise MetamixerError(f"{cloud.name} has no labels: all its points are marked as unlabelled")
    return cloud.segment


# --- Loss and metrics ------------------------------------------------------------------------------------------------


def lovasz_softmax(probabilities: Tensor, target: Tensor) -> Tensor:
    """The Lovász extension of the Jaccard loss, mean over the classes that occur (arXiv 1705.08790, algorithm 1).

    Args:
        probabilities: ``N × classes``.
        target: ``N`` class indices, at least one.
    """
    losses = []
    for label in target.unique():
        own = (target == label).to(probabilities)
        errors, order = (own - probabilities[:, label]).abs().sort(descending=True)
        own = own[order]
        intersection = own.sum() - own.cumsum(0)
        jaccard = 1 - intersection / (own.sum() + (1 - own).cumsum(0))
        losses.append(errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1)))
    return torch.stack(losses).mean()


def confusion_matrix(found: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """``classes × classes`` counts: true classes in rows, found ones in columns; points without label do not count.

    Raises MetamixerError for a true label that the network has no class for.
    """
    if truth.max(initial=IGNORED) >= classes:
        at = int((truth >= classes).argmax())
        raise MetamixerError(
            f"the label {truth[at]} of point {at} is out of range: the network knows {classes} classes"
        )
    labelled = truth != IGNORED
    places = truth[labelled] * classes + found[labelled]
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def class_ious(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of every class; NaN for those that neither occur nor were found."""
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return np.where(union > 0, confusion.diagonal() / np.maximum(union, 1), np.nan)


def segmentation_metrics(confusion: NDArray[np.int64]) -> dict[str, float]:
    """As fractions: ``miou`` and ``class_accuracy``, means over the classes that occur in the truth, and ``accuracy``.

    Raises MetamixerError where no point has a label.
    """
    occurs = confusion.sum(1) > 0
    if not occurs.any():
        raise MetamixerError("none of the validation points has a label")
    recalls = confusion.diagonal()[occurs] / confusion.sum(1)[occurs]
    return {
        "miou": float(class_ious(confusion)[occurs].mean()),
        "class_accuracy": float(recalls.mean()),
        "accuracy": float(confusion.trace() / confusion.sum()),
    }


# --- Labels for every point ------------------------------------------------------------------------------------------


@torch.inference_mode()
def label_points(
    model: nn.Module, cloud: Cloud, features: Sequence[str], grid: float, centre: bool = True
) -> NDArray[np.int64]:
    """The class of every point: that of the point which stands for its cell, the first of the cell in the file.

    Args:
        model: the network (left in its mode, used on its device).
        cloud: the scene.
        features, grid, centre: as in :class:`PointSegmentation`.
    """
    cloud = centred(cloud) if centre else cloud
    cells = voxelise(cloud.coord, grid, cloud.name)
    first = cells.order[cells.starts[:-1]]
    return _logits(model, cloud.take(first), cells.grid_coord, features).argmax(1).numpy()[cells.cell_of]


def vote(
    model: nn.Module,
    cloud: Cloud,
    features: Sequence[str],
    grid: float,
    centre: bool = True,
    views: Sequence[tuple[float, bool]] = VIEWS,
) -> NDArray[np.int64]:
    """The class of every point, by the sum of its probabilities in several views of the scene.

    In every view each point is looked at itself, in fragments of one point per cell. That takes as many passes as the
    fullest cell has points, for each of the views: scaled copies, plain and mirrored along x and y.

    Args:
        model, cloud, features, grid, centre: as for :func:`label_points`.
        views: (factor on the coordinates, mirrored).
    """
    cloud = centred(cloud) if centre else cloud
    total: Tensor | None = None
    for scale, mirrored in views:
        signs = np.array([-1, -1, 1] if mirrored else [1, 1, 1], np.float32)
        attributes = dict(cloud.attributes)
        if "normal" in attributes:
            attributes["normal"] = attributes["normal"] * signs
        view = replace(cloud, coord=cloud.coord * signs * np.float32(scale), attributes=attributes)
        cells = voxelise(view.coord, grid, cloud.name)
        for rows in cells.fragments():
            with torch.inference_mode():
                probabilities = _logits(model, view.take(rows), cells.grid_coord, features).softmax(1)
            if total is None:
                total = torch.zeros(len(cloud), probabilities.shape[1])
            total[torch.from_numpy(rows)] += probabilities
    assert total is not None, "no views"
    return total.argmax(1).numpy()


def _logits(model: nn.Module, cloud: Cloud, grid_coord: NDArray[np.int64], features: Sequence[str]) -> Tensor:
    """Logits of a cloud with one point per cell, in evaluation mode, on the CPU."""
    device = next(model.parameters()).device
    inputs = (
        torch.from_numpy(cloud.features(features)),
        torch.from_numpy(grid_coord),
        torch.tensor([len(cloud)]),
    )
    with evaluation_mode(model):
        return model(*(tensor.to(device) for tensor in inputs)).float().cpu()


@dataclass(frozen=True)
class LabelledCloud:
    """A scene with a class for every point.

    Args:
        cloud: the scene, with its true labels where they are known.
        labels: ``N`` class indices.
        classes: their names.
    """

    cloud: Cloud
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Points by class, and mIoU where the truth is known, ready for JSON."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        said: dict[str, Any] = {
            "source": as_utf8(self.cloud.name),
            "points": {name: int(count) for name, count in zip(self.classes, counts, strict=True) if count},
        }
        if self.cloud.segment is not None and (self.cloud.segment != IGNORED).any():
            confusion = confusion_matrix(self.labels, self.cloud.segment, len(self.classes))
            said |= segmentation_metrics(confusion)
        return said

    def draw(self, points: int = 60000) -> Image.Image:
        """The cloud from above, coloured by class, beside the true labels where they are known, and a legend.

        Of more than ``points`` points an even choice is drawn.
        """
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        rows = np.arange(0, len(self.cloud), max(1, -(-len(self.cloud) // points)))
        rows = rows[np.argsort(self.cloud.coord[rows, 2], kind="stable")]  # what is higher covers what is lower
        panels = {"found": self.labels[rows]}
        if self.cloud.segment is not None:
            panels["truth"] = self.cloud.segment[rows]
        colours = np.array([colormaps["tab20"](i % 20)[:3] for i in range(len(self.classes))] + [(0.88, 0.88, 0.88)])
        figure = Figure(figsize=(7 * len(panels), 7.5), layout="constrained")
        x, y, _ = self.cloud.coord[rows].T
        for axes, (title, labels) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            axes.scatter(x, y, s=max(0.3, min(12.0, 3e4 / len(rows))), c=colours[labels], linewidths=0)
            axes.set(title=title, aspect="equal")
            axes.set_axis_off()
        used = np.unique(np.concatenate(list(panels.values())))
        for label in used[used != IGNORED]:
            figure.axes[0].scatter([], [], color=colours[label], label=self.classes[label])
        figure.legend(loc="outside lower center", ncols=8, frameon=False)
        return figure_picture(figure)

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write the labels ``NAME.npy`` and the picture ``NAME.png`` into a folder; returns their paths."""
        table, picture = Path(folder, f"{name}.npy"), Path(folder, f"{name}.png")
        with replace_when_done(table) as temporary, temporary.open("wb") as file:
            np.save(file, self.labels)
        with replace_when_done(picture) as temporary:
            self.draw().save(temporary, "PNG")
        return [table, picture]


def segment_cloud(
    model: FFNetPoints,
    cloud: Cloud,
    features: Sequence[str] | None = None,
    grid: float | None = None,
    centre: bool | None = None,
    views: Sequence[tuple[float, bool]] = (),
) -> LabelledCloud:
    """A class for every point of a scene.

    Args:
        model: the network (left in its mode, used on its device).
        cloud: a scene, such as ``Scenes(path)[0]``.
        features, grid, centre: as in :class:`PointSegmentation`; by default as the model's file says, else the released
            settings for ScanNet and S3DIS.
        views: by none, the scene as it is; ``VIEWS`` for test-time voting.

    Raises MetamixerError for a network without classifier, and a scene without the features that the network reads.
    """
    facts = about(model)
    features = tuple(features or facts.get("features", ("color", "normal")))
    grid, centre = grid or facts.get("grid", 0.02), facts.get("centre", True) if centre is None else centre
    classes = _classes_of(model)
    if feature_width(features) != model.in_channels:
        raise MetamixerError(f"the network reads {model.in_channels} numbers a point, not {', '.join(features)}")
    names = tuple(facts.get("classes") or (f"class {i}" for i in range(classes)))
    if views:
        return LabelledCloud(cloud, vote(model, cloud, features, grid, centre, views), names)
    return LabelledCloud(cloud, label_points(model, cloud, features, grid, centre), names)


def _classes_of(model: FFNetPoints) -> int:
    if not model.num_classes:
        raise MetamixerError("the network has no classifier: it cannot tell classes")
    return model.num_classes


def evaluate_scenes(
    model: FFNetPoints, data: str | Path, layout: Layout = "auto", views: Sequence[tuple[float, bool]] = ()
) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of a network on all scenes of a folder or a file, on every point, and the IoU of every class.

    Args:
        model: a network whose file tells its classes, features and grid.
        data: as :class:`metamixer.data.clouds.Scenes` reads it.
        layout: how scenes are stored.
        views: as for :func:`segment_cloud`.

    Raises MetamixerError for scenes that cannot be read or have no labels.
    """
    classes = _classes_of(model)
    confusion = np.zeros((classes, classes), np.int64)
    for cloud in Scenes(data, classes, layout):
        truth = _labels_of(cloud)
        result = segment_cloud(model, cloud, views=views)
        confusion += confusion_matrix(result.labels, truth, len(result.classes))
    names = about(model).get("classes") or [f"class {i}" for i in range(len(confusion))]
    ious = {name: float(iou) for name, iou in zip(names, class_ious(confusion), strict=True) if not np.isnan(iou)}
    return segmentation_metrics(confusion), ious
