"""Mean average precision equals pycocotools', and the intersection over union a count pixel by pixel."""

from __future__ import annotations

import contextlib
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from metamixer.data.annotations import Instance, Picture
from metamixer.data.annotations.shapes import code_to_json, to_code
from metamixer.tasks.dense_metrics import NAMES, ClassMapMetrics, coco_metrics, objects_found
from metamixer.tasks.results import Result

SIZE = (120, 160)
Entry = dict[str, Any]


def oracle(pictures: list[Picture], found: list[Entry], kind: str) -> dict[str, float]:
    """What pycocotools says, through files as it reads them."""
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(1, len(pictures) + 1)],
        "categories": [{"id": i, "name": str(i)} for i in sorted({o.label + 1 for p in pictures for o in p.instances})],
        "annotations": [],
        "info": {},
    }
    for i, picture in enumerate(pictures, 1):
        for one in picture.instances:
            left, top, right, bottom = one.box
            entry = {"id": len(truth["annotations"]) + 1, "image_id": i, "category_id": one.label + 1}
            entry |= {"bbox": [left, top, right - left, bottom - top], "area": one.area, "iscrowd": int(one.crowd)}
            if one.segmentation is not None:
                entry["segmentation"] = code_to_json(to_code(one.segmentation, SIZE))
            truth["annotations"].append(entry)
    other = {"bbox": "segmentation", "segm": "bbox"}[kind]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        results = [{k: v for k, v in one.items() if k != other} for one in found]
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [value if value > -1 else math.nan for value in evaluation.stats]
    return dict(zip((*NAMES, "mAR100"), (*values[:6], values[8]), strict=True))


def box_mask(box: tuple[float, ...]) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    left, top, right, bottom = (round(side) for side in box)
    mask[top:bottom, left:right] = True
    return mask


def instance(label: int, box: tuple[float, ...], crowd: bool = False) -> Instance:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return Instance(label, tuple(map(float, box)), to_code(box_mask(box), SIZE), crowd, area)


def found(picture: int, label: int, box: tuple[float, ...], score: float) -> Entry:
    result = Result(
        SIZE,
        np.array([label]),
        np.array([score], np.float32),
        np.array([box], np.float32),
        box_mask(box)[None],
    )
    return result.to_coco(picture)[0]


def random_box(rng: np.random.Generator) -> tuple[float, ...]:
    left, top = rng.integers(0, SIZE[1] - 12), rng.integers(0, SIZE[0] - 12)
    right = rng.integers(left + 4, SIZE[1] + 1)
    return float(left), float(top), float(right), float(rng.integers(top + 4, SIZE[0] + 1))


def moved(box: tuple[float, ...], rng: np.random.Generator) -> tuple[float, ...]:
    left, top, right, bottom = np.array(box) + rng.integers(-4, 5, 4)
    left, top = max(0, min(left, SIZE[1] - 3)), max(0, min(top, SIZE[0] - 3))
    return float(left), float(top), float(min(SIZE[1], max(right, left + 2))), float(min(SIZE[0], max(bottom, top + 2)))


@pytest.mark.parametrize("seed", range(4))
def test_map_is_that_of_pycocotools_on_random_scenes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures, entries = [], []
    for i in range(1, 9):
        truth = [
            instance(int(rng.integers(3)), random_box(rng), rng.random() < 0.15) for _ in range(rng.integers(0, 7))
        ]
        pictures.append(Picture(Path(f"{i}.jpg"), SIZE, tuple(truth)))
        for one in truth:
            for _ in range(rng.integers(0, 3)):
                label = one.label if rng.random() < 0.8 else int(rng.integers(3))
                entries.append(found(i, label, moved(one.box, rng), round(float(rng.random()), 1)))  # many ties
        entries += [found(i, int(rng.integers(3)), random_box(rng), float(rng.random())) for _ in range(3)]
    metrics = coco_metrics(pictures, entries, masks=True)
    for prefix, kind in (("", "bbox"), ("mask_", "segm")):
        for name, value in oracle(pictures, entries, kind).items():
            assert metrics[prefix + name] == pytest.approx(value, abs=1e-6, nan_ok=True), (kind, name)


BOX, OTHER = (10, 10, 60, 60), (80, 20, 150, 110)
CASES: dict[str, tuple[list[list[Instance]], list[Entry], float]] = {
    "all found": ([[instance(0, BOX)], [instance(1, OTHER)]], [found(1, 0, BOX, 0.9), found(2, 1, OTHER, 0.3)], 1.0),
    "nothing found": ([[instance(0, BOX)]], [found(1, 0, OTHER, 0.9)], 0.0),
    "an empty picture": ([[instance(0, BOX)], []], [found(1, 0, BOX, 0.9), found(2, 0, BOX, 0.5)], 1.0),
    "a false alarm above": ([[instance(0, BOX)], []], [found(1, 0, BOX, 0.5), found(2, 0, BOX, 0.9)], 0.5),
    "a tie": ([[instance(0, BOX)]], [found(1, 0, BOX, 0.5), found(1, 0, OTHER, 0.5)], 1.0),
    "a crowd hides alarms": (
        [[instance(0, BOX), instance(0, OTHER, crowd=True)]],
        [found(1, 0, BOX, 0.5), found(1, 0, (90, 30, 120, 60), 0.9), found(1, 0, (100, 40, 140, 100), 0.8)],
        1.0,
    ),
    "a double": ([[instance(0, BOX)], [instance(0, BOX)]], [found(1, 0, BOX, 0.9), found(1, 0, BOX, 0.8)], 51 / 101),
    "a hundred better alarms": ([[instance(0, BOX)]], [found(1, 0, OTHER, 0.9)] * 100 + [found(1, 0, BOX, 0.1)], 0.0),
    "a class that is nowhere": ([[instance(0, BOX)]], [found(1, 0, BOX, 0.9), found(1, 5, BOX, 0.95)], 1.0),
}


@pytest.mark.parametrize("case", list(CASES))
def test_map_of_cases_counted_by_hand(case: str) -> None:
    truth, entries, expected = CASES[case]
    pictures = [Picture(Path(f"{i}.jpg"), SIZE, tuple(one)) for i, one in enumerate(truth)]
    metrics = coco_metrics(pictures, entries)
    assert metrics["mAP50"] == pytest.approx(expected, abs=1e-6)
    known = [entry for entry in entries if entry["category_id"] <= 2]
    for name, value in oracle(pictures, known, "bbox").items():
        assert metrics[name] == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_a_crowd_without_a_mask_counts_by_its_box() -> None:
    crowd = replace(instance(0, OTHER, crowd=True), segmentation=None)
    pictures = [Picture(Path("a.jpg"), SIZE, (instance(0, BOX), crowd))]
    entries = [found(1, 0, BOX, 0.5), found(1, 0, (90, 30, 120, 60), 0.9)]  # the surer one lies in the crowd
    assert coco_metrics(pictures, entries, masks=True)["mask_mAP"] == pytest.approx(1)


def test_nothing_found_anywhere_is_zero() -> None:
    metrics = coco_metrics([Picture(Path("a.jpg"), SIZE, (instance(0, BOX),))], [], masks=True)
    assert metrics["mAP"] == metrics["mask_mAP50"] == 0


def test_class_maps_are_counted_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    classes = 4
    metrics = ClassMapMetrics.empty(classes)
    intersection, union = np.zeros(classes), np.zeros(classes)
    right = known = 0
    for _ in range(3):
        truth = rng.choice([0, 1, 2, 255], (9, 11), p=[0.4, 0.3, 0.2, 0.1])  # the last class occurs nowhere
        seen = rng.integers(0, 3, (9, 11))
        metrics.add(torch.from_numpy(truth.astype(np.uint8)), torch.from_numpy(seen))
        for t, s in zip(truth.ravel().tolist(), seen.ravel().tolist(), strict=True):
            if t == 255:
                continue
            known += 1
            right += t == s
            for label in range(classes):
                intersection[label] += t == s == label
                union[label] += label in (t, s)
    expected = [i / u if u else math.nan for i, u in zip(intersection, union, strict=True)]
    assert metrics.of_classes().tolist() == pytest.approx(expected, nan_ok=True)
    summary = metrics.summary()
    assert summary["mIoU"] == pytest.approx(np.nanmean(expected))
    assert summary["pixel_accuracy"] == pytest.approx(right / known)


def test_pictures_are_rated_by_what_was_found() -> None:
    picture = Picture(Path("a.jpg"), SIZE, (instance(0, BOX), instance(1, OTHER)))

    def rated(*objects: tuple[int, tuple[float, ...], float]) -> float:
        labels, boxes, scores = zip(*objects, strict=True)
        boxes_array = np.array(boxes, np.float32)
        return objects_found(picture, Result(SIZE, np.array(labels), np.array(scores, np.float32), boxes_array))

    assert rated((0, BOX, 0.9), (1, OTHER, 0.8)) == 1
    assert rated((0, BOX, 0.9), (1, OTHER, 0.3)) == pytest.approx(2 / 3)  # the second is not sure enough
    assert rated((0, BOX, 0.9), (0, BOX, 0.8)) == pytest.approx(0.5)
    assert objects_found(Picture(Path("a.jpg"), SIZE), Result(SIZE)) == 1
    crowd = Picture(Path("a.jpg"), SIZE, (instance(0, OTHER, crowd=True),))
    assert objects_found(crowd, Result(SIZE, np.array([0]), np.array([0.9]), np.array([[90.0, 30, 120, 60]]))) == 1
