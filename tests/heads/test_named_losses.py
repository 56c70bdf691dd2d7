"""Whatever the pictures show, a head has the same losses, all finite, and every weight learns: processes that share
gradients wait for each loss and each weight."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from metamixer import build
from metamixer.heads import DenseModel, list_heads
from metamixer.heads.base import VOID, SegmentationModel

HEIGHT, WIDTH, CLASSES = 64, 96, 3
DETECTORS = ("retinanet", "ssdlite", "mask_rcnn", "cascade_mask_rcnn")
NAMES = {
    "retinanet": {"classes", "boxes"},
    "ssdlite": {"classes", "boxes"},
    "mask_rcnn": {"objectness", "proposals", "classes", "boxes", "masks"},
    "cascade_mask_rcnn": {
        "objectness",
        "proposals",
        *(f"{name}{stage}" for name in ("classes", "boxes", "masks") for stage in (1, 2, 3)),
    },
    "semantic_fpn": {"segmentation"},
    "ffnet_seg": {"segmentation"},
    "upernet": {"segmentation", "auxiliary"},
    "deeplabv3": {"segmentation", "auxiliary"},
    "pspnet": {"segmentation", "auxiliary"},
}


@cache
def model_of(head: str, auxiliary: bool = True) -> DenseModel:
    arguments: dict[str, object] = {} if head == "ssdlite" else {"channels": 8}
    if head in ("deeplabv3", "pspnet"):
        arguments |= {"output_stride": 32}
    if "auxiliary" in NAMES[head]:
        arguments |= {"auxiliary": auxiliary}
    if head == "ffnet_seg":
        arguments |= {"depth": 1}
    return build(head, "casvit_nano", num_classes=CLASSES, **arguments).train()


def check(head: str, targets: object, auxiliary: bool = True) -> None:
    model = model_of(head, auxiliary)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    losses = model(torch.randn(2, 3, HEIGHT, WIDTH), targets)
    assert set(losses) == (NAMES[head] if auxiliary else NAMES[head] - {"auxiliary"})
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def objects_of(rows: list[tuple[float, float, float, float, int]], size: tuple[int, int]) -> dict[str, Tensor]:
    """Boxes whose sides are shares of what the picture has room for, one pixel or more."""
    height, width = size
    boxes = []
    for x, y, w, h, _ in rows:
        left, top = x * (width - 1), y * (height - 1)
        boxes.append([left, top, left + 1 + w * (width - 1 - left), top + 1 + h * (height - 1 - top)])
    masks = torch.zeros(len(rows), *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[round(top) : round(bottom), round(left) : round(right)] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([row[-1] for row in rows], dtype=torch.int64),
        "size": torch.tensor(size),
        "masks": masks,
    }


SHARES = st.floats(0, 1, width=32)
ROWS = st.lists(st.tuples(SHARES, SHARES, SHARES, SHARES, st.integers(0, CLASSES - 1)), max_size=4)
SIZES = st.tuples(st.integers(8, HEIGHT), st.integers(8, WIDTH))


@pytest.mark.promise(
    "losses", "every head has the same losses, finite ones, and a gradient for every weight, whatever is shown"
)
@pytest.mark.parametrize("head", DETECTORS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(first=ROWS, second=ROWS, sizes=st.tuples(SIZES, SIZES))
@example(first=[], second=[], sizes=((HEIGHT, WIDTH), (HEIGHT, WIDTH)))
@example(first=[], second=[(0.5, 0.5, 0.0, 0.0, 0), (0.0, 0.0, 1.0, 1.0, 2)], sizes=((8, 8), (HEIGHT, WIDTH)))
def test_a_detector_learns_whatever_is_there(
    head: str, first: list, second: list, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> None:
    check(head, [objects_of(rows, size) for rows, size in zip((first, second), sizes, strict=True)])


@pytest.mark.promise(
    "losses", "every head has the same losses, finite ones, and a gradient for every weight, whatever is shown"
)
@pytest.mark.parametrize("head", [head for head in list_heads() if head not in DETECTORS])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    labels=st.lists(st.sampled_from([0, 1, 2, VOID]), min_size=1, max_size=4),
    weights=st.sampled_from([None, (1.0, 2.0, 0.5), (0.0, 1.0, 0.0)]),
    averaged=st.sampled_from(["pixels", "labelled", "weights"]),
)
@example(labels=[VOID], weights=None, averaged="weights")
@example(labels=[VOID], weights=(1.0, 2.0, 0.5), averaged="weights")
@example(labels=[0, VOID], weights=(0.0, 1.0, 0.0), averaged="weights")
def test_a_segmenter_learns_whatever_is_there(
    head: str, labels: list[int], weights: tuple[float, ...] | None, averaged: str
) -> None:
    model = model_of(head)
    assert isinstance(model, SegmentationModel)
    model.class_weights, model.averaged_over = None if weights is None else torch.tensor(weights), averaged
    rows = torch.tensor(labels).repeat(HEIGHT)[:HEIGHT]
    check(head, rows[None, :, None].expand(2, HEIGHT, WIDTH).contiguous())


@pytest.mark.parametrize("head", ["upernet", "deeplabv3", "pspnet"])
def test_without_an_auxiliary_head_every_weight_learns_too(head: str) -> None:
    check(head, torch.zeros(2, HEIGHT, WIDTH, dtype=torch.int64), auxiliary=False)
