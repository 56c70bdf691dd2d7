"""Which boxes are kept: found for all classes, levels and pictures at once, as if looking at one after another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metamixer import build
from metamixer.heads import list_heads
from metamixer.heads.boxes import decode_deltas, has_area, strongest
from metamixer.heads.mask_rcnn import STRIDES, MaskRCNN
from metamixer.heads.ssdlite import SSDLite

Chosen = tuple[Tensor, Tensor, Tensor]


def one_after_another(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, limit: int) -> Chosen:
    """Non-maximum suppression by its definition."""
    kept: list[int] = []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).tolist()
    for i in scores.argsort(descending=True, stable=True).tolist():
        for j in kept:
            corner = torch.maximum(boxes[i, :2], boxes[j, :2]), torch.minimum(boxes[i, 2:], boxes[j, 2:])
            inside = float((corner[1] - corner[0]).clamp(min=0).prod())
            if groups[i] == groups[j] and inside > overlap * (area[i] + area[j] - inside):
                break
        else:
            kept.append(i)
    best = kept[:limit]
    return boxes[best], scores[best], groups[best]


SIDES = st.integers(1, 6)
BOXES = st.tuples(st.integers(-4, 9), st.integers(-4, 9), SIDES, SIDES, st.integers(0, 2), st.integers(0, 6))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(BOXES, max_size=24),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    limit=st.sampled_from([1, 3, 100]),
)
def test_suppression_is_its_definition(rows: list[tuple[int, ...]], overlap: float, limit: int) -> None:
    """Whole numbers, so that overlaps just at the threshold, and equal scores, are exact."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    boxes = torch.cat([table[:, :2], table[:, :2] + table[:, 2:4]], dim=1)
    scores, groups = table[:, 5] / 8, table[:, 4].long()
    found = strongest(boxes, scores, groups, overlap, limit)
    for ours, plain in zip(found, one_after_another(boxes, scores, groups, overlap, limit), strict=True):
        assert torch.equal(ours, plain)


def test_an_endless_box_leaves_the_others_alone() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1.1], [0, 0, float("inf"), 1], [-3e38, 0, 1, 3e38], [0, 0, 1, 1]])
    found = strongest(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([0, 0, 0, 1, 2]), 0.5, 10)
    torch.testing.assert_close(found[1], torch.tensor([0.9, 0.7, 0.6, 0.5]))


def select_by_class(model: SSDLite, logits: Tensor, boxes: Tensor) -> Chosen:
    probabilities = logits.softmax(-1)
    taken, scores, labels = [], [], []
    for label in range(model.num_classes):
        of_class = probabilities[:, 1 + label]
        above = (of_class > model.score_threshold).nonzero()[:, 0]
        best, order = of_class[above].topk(min(model.candidates, len(above)))
        taken.append(boxes[above[order]])
        scores.append(best)
        labels.append(torch.full_like(order, label))
    return strongest(torch.cat(taken), torch.cat(scores), torch.cat(labels), model.overlap, model.limit)


@pytest.mark.parametrize(
    ("spread", "candidates", "threshold"), [(3.0, 400, 0.01), (0.5, 20, 0.0), (3.0, 400, 0.999999)]
)
def test_ssdlite_selects_as_class_by_class(spread: float, candidates: int, threshold: float) -> None:
    model = build("ssdlite", "casvit_nano", num_classes=7, candidates=candidates, score_threshold=threshold).eval()
    assert isinstance(model, SSDLite)
    with torch.inference_mode():
        logits, _, _, boxes = model(torch.randn(1, 3, 96, 96))
        logits, boxes = spread * torch.randn_like(logits[0]), boxes[0] + 0.1 * torch.randn_like(boxes[0])
        found, plain = model.select(logits, boxes), select_by_class(model, logits, boxes)
    assert bool(len(plain[0])) == (threshold < 0.9)
    for ours, wanted in zip(found, plain, strict=True):
        assert torch.equal(ours, wanted)


def propose_by_level(
    model: MaskRCNN, raw: list[Tensor], picture: int, size: tuple[int, int], candidates: int, limit: int
) -> tuple[Tensor, Tensor]:
    n = len(STRIDES)
    boxes, scores, levels = [], [], []
    for i, (around, logits, deltas) in enumerate(zip(model.anchors(raw), raw[n : 2 * n], raw[2 * n :], strict=True)):
        score = logits[picture].permute(1, 2, 0).flatten().sigmoid()
        best, order = score.sort(descending=True, stable=True)
        best, order = best[:candidates], order[:candidates]
        moved = decode_deltas(around[order], deltas[picture].permute(1, 2, 0).reshape(-1, 4)[order], size)
        kept = has_area(moved)
        boxes.append(moved[kept])
        scores.append(best[kept])
        levels.append(torch.full_like(order[kept], i))
    found, score, _ = strongest(torch.cat(boxes), torch.cat(scores), torch.cat(levels), model.proposal_overlap, limit)
    return found, score


@pytest.mark.parametrize(("candidates", "limit"), [(1000, 1000), (50, 20)])
def test_proposals_are_those_of_picture_by_picture(candidates: int, limit: int) -> None:
    model = build("mask_rcnn", "casvit_nano", num_classes=2, channels=8).eval()
    assert isinstance(model, MaskRCNN)
    sizes = [(96, 128), (70, 128), (96, 65)]
    with torch.inference_mode():
        raw = [torch.randn_like(one) for one in model(torch.randn(3, 3, 96, 128))]
        count = sum(one.numel() for one in raw[5:10])
        distinct = torch.linspace(-4, 4, count)[torch.randperm(count)]  # sigmoid may round either way where it lies
        for i, part in enumerate(distinct.split([one.numel() for one in raw[5:10]]), 5):
            raw[i] = part.reshape(raw[i].shape)
        found = model.propose(raw, sizes, candidates, limit)
        assert len(found) == 3
        for i, (boxes, scores) in enumerate(found):
            plain_boxes, plain_scores = propose_by_level(model, raw, i, sizes[i], candidates, limit)
            assert torch.equal(boxes, plain_boxes)
            torch.testing.assert_close(scores, plain_scores)


@pytest.mark.promise("clients", "a batch of no pictures goes through every head")
@pytest.mark.parametrize("head", list_heads())
def test_a_batch_of_none_has_no_results(head: str) -> None:
    strides = {"output_stride": 32} if head in ("deeplabv3", "pspnet") else {}
    narrow = {} if head == "ssdlite" else {"channels": 8}
    model = build(head, "casvit_nano", num_classes=3, **strides, **narrow).eval()
    with torch.inference_mode():
        raw = model.forward_raw(torch.zeros(0, 3, 64, 96))
        for none, one in zip(raw, model.forward_raw(torch.zeros(1, 3, 64, 96)), strict=True):
            assert none.shape == (one.shape if one.ndim == 2 else (0, *one.shape[1:]))  # two axes: SSDLite's anchors
        assert model.postprocess(raw, []) == []
        assert model.postprocess(raw, [], padded=(64, 96), originals=[]) == []
