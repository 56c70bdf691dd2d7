"""Mean average precision as COCO counts it, and the intersection over union of class maps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metamixer.data.annotations.class_maps import VOID
from metamixer.data.annotations.records import Picture
from metamixer.data.annotations.shapes import coco_mask, code_to_json, to_code
from metamixer.tasks.results import Result

NAMES = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large")


def coco_metrics(
    pictures: Sequence[Picture], found: Sequence[Mapping[str, Any]], masks: bool = False
) -> dict[str, float]:
    """``mAP`` (mean over overlaps of 0.50, 0.55 … 0.95), ``mAP50``, ``mAP75``, of small, medium and large objects, and
    the mean recall ``mAR100``; 0…1, and NaN where there is no such object. With ``masks`` the same of masks, called
    ``mask_mAP`` and so on. Computed by faster-coco-eval.

    Args:
        pictures: the truth; of an object without a mask its box is taken.
        found: COCO's result entries, as :meth:`Result.to_coco` makes them; ``image_id`` counts the pictures from 1.
            The 100 surest of each picture count.
        masks: whether to compare masks too.

    Raises MetamixerError where faster-coco-eval is missing.
    """
    coco_mask()  # says what to install
    from faster_coco_eval import COCO, COCOeval_faster

    logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)
    labels = sorted({one.label for picture in pictures for one in picture.instances})
    truth = COCO(_truth(pictures, labels, masks))
    metrics: dict[str, float] = {}
    for kind, prefix in (("bbox", ""), ("segm", "mask_")) if masks else (("bbox", ""),):
        other = "bbox" if kind == "segm" else "segmentation"  # left out, as areas are those of what is compared
        entries = [
            {key: value for key, value in entry.items() if key != other}
            for entry in found
            if entry["category_id"] - 1 in labels
        ]
        evaluation = COCOeval_faster(truth, truth.loadRes(entries), kind, print_function=lambda *_: None)
        evaluation.run()
        values = [float(value) if value > -1 else float("nan") for value in evaluation.stats]
        metrics |= {f"{prefix}{name}": value for name, value in zip(NAMES, values, strict=False)}
        metrics[f"{prefix}mAR100"] = values[8]
    return metrics


def _truth(pictures: Sequence[Picture], labels: Sequence[int], masks: bool) -> dict[str, list[dict[str, object]]]:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for i, picture in enumerate(pictures, 1):
        images.append({"id": i, "height": picture.size[0], "width": picture.size[1]})
        for one in picture.instances:
            left, top, right, bottom = one.box
            annotation: dict[str, object] = {
                "id": len(annotations) + 1,
                "image_id": i,
                "category_id": one.label + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": one.area or (right - left) * (bottom - top),
                "iscrowd": int(one.crowd),
            }
            if masks:  # a crowd may come without one
                rectangle = [[left, top, right, top, right, bottom, left, bottom]]
                mask = rectangle if one.segmentation is None else one.segmentation
                annotation["segmentation"] = code_to_json(to_code(mask, picture.size))
            annotations.append(annotation)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in labels],
    }


@dataclass
class ClassMapMetrics:
    """Pixels of every true class (row) by what they were taken for (column); void pixels are not counted."""

    counts: Tensor

    @classmethod
    def empty(cls, classes: int) -> ClassMapMetrics:
        return cls(torch.zeros(classes, classes, dtype=torch.int64))

    def add(self, truth: Tensor, found: Tensor) -> None:
        """Count two class maps ``H × W``; ``truth`` may hold void (255)."""
        classes = len(self.counts)
        known = truth != VOID
        pairs = truth[known].long() * classes + found[known].long()
        self.counts += torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes).to(self.counts)

    def of_classes(self) -> Tensor:
        """Intersection over union of each class, NaN for one that occurs neither in truth nor in what was found."""
        hits = self.counts.diagonal().double()
        return hits / (self.counts.sum(0) + self.counts.sum(1) - hits)

    def summary(self) -> dict[str, float]:
        """``mIoU`` over the classes that occur, ``pixel_accuracy`` and ``class_accuracy`` (mean recall); 0…1."""
        hits, total = self.counts.diagonal().double(), self.counts.sum()
        return {
            "mIoU": float(self.of_classes().nanmean()),
            "pixel_accuracy": float(hits.sum() / total),
            "class_accuracy": float((hits / self.counts.sum(1)).nanmean()),
        }


def objects_found(picture: Picture, result: Result, score: float = 0.5, overlap: float = 0.5) -> float:
    """F1 of one picture: objects found against objects missed and mistaken, for ranking pictures; 0…1.

    Objects with at least ``score`` are matched, the surest first, each to the true box of its class that it overlaps
    most, by ``overlap`` at least. What lies in a crowd does not count.
    """
    found = result.above(score)
    left = [one for one in picture.instances if not one.crowd]
    crowds = np.array([one.box for one in picture.instances if one.crowd]).reshape(-1, 4)
    total, hits, counted = len(left), 0, 0
    for label, box in zip(found.labels.tolist(), found.boxes, strict=True):
        overlaps = [_overlap(box, one.box) if one.label == label else 0.0 for one in left]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] >= overlap:
            hits, counted = hits + 1, counted + 1
            left.pop(best)
        elif not any(_inside(box, crowd) >= overlap for crowd in crowds):
            counted += 1
    return 2 * hits / (total + counted) if total + counted else 1.0


def _intersection(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _area(a: Sequence[float] | np.ndarray) -> float:
    return float((a[2] - a[0]) * (a[3] - a[1]))


def _overlap(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    shared = _intersection(a, b)
    return shared / (_area(a) + _area(b) - shared) if shared else 0.0


def _inside(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    shared = _intersection(a, b)
    return shared / _area(a) if shared else 0.0
