"""Compares a case as our training runs it with what the framework computed: how it got there, losses, gradients."""

from __future__ import annotations

import importlib
import runpy
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

trained = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("trained.py"))))
reference, CASES, DETECTORS = trained.reference, trained.CASES, trained.DETECTORS
Arrays = Mapping[str, np.ndarray]

LOSS = 1e-5  # of a loss's value: float32, summed in another order
VALUE = 1e-4  # of the largest magnitude of a map or target
# The same, for gradients: a ReLU whose input lies within rounding of 0 is open on one processor and shut on another,
# which a weight hardly feels, but the place on a map that it looks at does.
GRADIENT, UNTOUCHED = 5e-3, 0.98

BACKGROUND, IGNORED = -1, -2
NAMES = {
    "retinanet": {"classes": "loss_cls", "boxes": "loss_bbox"},
    "mask_rcnn": {
        "objectness": "loss_rpn_cls",
        "proposals": "loss_rpn_bbox",
        "classes": "loss_cls",
        "boxes": "loss_bbox",
        "masks": "loss_mask",
    },
    "cascade_mask_rcnn": {
        "objectness": "loss_rpn_cls",
        "proposals": "loss_rpn_bbox",
        **{
            f"{ours}{i + 1}": f"s{i}.loss_{theirs}"
            for i in range(3)
            for ours, theirs in (("classes", "cls"), ("boxes", "bbox"), ("masks", "mask"))
        },
    },
    "ssdlite": {"classes": "cls_loss", "boxes": "reg_loss"},
    "semantic_fpn": {"segmentation": "decode"},
    "upernet": {"segmentation": "decode", "auxiliary": "aux"},
    "ffnet_seg": {"segmentation": "decode"},
    "deeplabv3": {"segmentation": "main", "auxiliary": "weighted_aux"},
    "pspnet": {"segmentation": "main", "auxiliary": "weighted_aux"},
}
"""Names of losses: ours, and the framework's."""


def check(name: str, case: str) -> None:
    """AssertionError where anything differs."""
    ours, arrays = trained.train(name, case), reference.arrays_of(name, case)
    if name == "retinanet":
        _check_retinanet(ours, arrays)
    elif name == "ssdlite":
        _check_ssdlite(ours, arrays)
    elif name in DETECTORS:
        if "rpn/avg_factor" in arrays:  # the same maps and pictures are not compared again in another mode
            _check_proposals(ours, arrays)
        stages = [f"s{i}" for i in range(3)] if name == "cascade_mask_rcnn" else ["roi"]
        for i, stage in enumerate(stages):
            _check_stage(ours, arrays, i, stage)
    else:
        _check_segmentation(ours, arrays)
    _check_losses(ours, arrays)
    _check_gradients(ours, arrays)


def _check_losses(ours: Any, arrays: Arrays) -> None:
    names = NAMES[ours.name]
    assert set(ours.losses) == set(names)
    for what, theirs in names.items():
        if f"loss/{theirs}" in arrays:  # a case may lack the first step
            _close(ours.losses[what], arrays[f"loss/{theirs}"], what, LOSS)


def _check_gradients(ours: Any, arrays: Arrays) -> None:
    stored = {key.removeprefix("grad/") for key in arrays if key.startswith("grad/")}
    assert stored
    assert stored <= set(ours.gradients)
    # Before a batch norm that sees few values gradients cancel to little more than rounding.
    rounding = max(1e-6, 1e-3 * max(float(arrays[f"gradnorm/{key}"]) for key in stored))
    for key, gradient in ours.gradients.items():
        if key in stored:
            _close(gradient, arrays[f"grad/{key}"], f"gradient of {key}", GRADIENT, rounding)
            _close(gradient.norm(), arrays[f"gradnorm/{key}"], f"norm of the gradient of {key}", GRADIENT, rounding)
        else:
            assert not gradient.any(), f"the framework has no gradient of {key}"
    for i, one in enumerate(ours.maps):
        gradient = torch.zeros_like(one) if one.grad is None else one.grad
        if f"grad_map{i}" in arrays:
            _close(gradient, arrays[f"grad_map{i}"], f"gradient of map {i}", GRADIENT, share=UNTOUCHED)
            _close(gradient.norm(), arrays[f"grad_map{i}_norm"], f"norm of the gradient of map {i}", GRADIENT)
        else:
            assert not gradient.any(), f"the framework has no gradient of map {i}"


def _check_retinanet(ours: Any, arrays: Arrays) -> None:
    """Which anchors are considered, which object each learns, what moves it there, and what the sums are divided by."""
    assigned = ours.calls["assign"]
    assert len(assigned) == len(ours.targets)
    labels, weights, moved = _per_picture(arrays, "labels"), _per_picture(arrays, "label_weights"), []
    wanted, counts = _per_picture(arrays, "bbox_targets"), _per_picture(arrays, "bbox_weights")
    for i, (_, keywords, matched) in enumerate(assigned):
        _equal(keywords["among"], arrays[f"valid_flags{i}"] > 0, f"anchors in picture {i}")
        _equal(matched, _as_ours(arrays[f"assigned_gt_inds{i}"]), f"objects of anchors in picture {i}")
        positive = matched >= 0
        own = torch.full_like(matched, 5)
        own[positive] = ours.targets[i]["labels"][matched[positive]]
        learnt = weights[i] > 0
        _equal(own[learnt], labels[i][learnt], f"labels in picture {i}")
        _equal(matched != IGNORED, learnt, f"counted anchors in picture {i}")
        _equal(positive, counts[i] > 0, f"positive anchors in picture {i}")
        moved.append(wanted[i][counts[i] > 0])
    for i, (found, stored) in enumerate(zip(ours.results("encode_deltas"), moved, strict=True)):
        _close(found, stored, f"moves in picture {i}")
    anchors = np.concatenate([reference.shared_array(ours.name, f"anchors{i}") for i in range(5)])
    _close(assigned[0][0][0], anchors, "anchors")
    assert ours.results("at_least_one_each") == [arrays["num_total_pos"]]
    assert arrays["avg_factor"] == arrays["num_total_pos"]


def _check_proposals(ours: Any, arrays: Arrays) -> None:
    """The first step: anchors, those drawn, their targets, and the boxes that it proposes."""
    count = len(ours.targets)
    assigned, drawn, moved = (ours.calls[what][:count] for what in ("assign", "draw", "encode_deltas"))
    anchors = np.concatenate([reference.shared_array(ours.name, f"anchors{i}") for i in range(5)])
    _close(assigned[0][0][0], anchors, "anchors")
    wanted, counts = _per_picture(arrays, "rpn/bbox_targets"), _per_picture(arrays, "rpn/bbox_weights")
    for i in range(count):
        _equal(assigned[i][1]["among"], arrays[f"rpn/inside_flags{i}"] > 0, f"anchors in picture {i}")
        _equal(assigned[i][2], _as_ours(arrays[f"rpn/assigned_gt_inds{i}"]), f"objects of anchors in picture {i}")
        positive, negative = drawn[i][2]
        _equal(positive, arrays[f"rpn/pos_inds{i}"], f"positive anchors drawn in picture {i}")
        _equal(negative, arrays[f"rpn/neg_inds{i}"], f"negative anchors drawn in picture {i}")
        _close(moved[i][2], wanted[i][counts[i] > 0], f"moves in picture {i}")
    assert ours.results("at_least_one_each") == [arrays["rpn/num_total_pos"], arrays["rpn/num_total_neg"]]
    assert arrays["rpn/avg_factor"] == arrays["rpn/num_total_pos"] + arrays["rpn/num_total_neg"]
    [proposed] = ours.results("propose")
    for i, (boxes, scores) in enumerate(proposed):
        found = torch.cat([boxes, scores[:, None]], dim=1)
        _same_rows(found, arrays[f"rpn/proposals{i}"], f"proposals in picture {i}")


def _check_stage(ours: Any, arrays: Arrays, stage: int, key: str) -> None:
    """A stage of the second step: which boxes are learnt from, and what of."""
    count = len(ours.targets)
    calls = ours.calls["draw_samples"][stage * count : (stage + 1) * count]
    drawn = ours.calls["draw"][(1 + stage) * count : (2 + stage) * count]
    samples = [sample for _, _, sample in calls]
    for i, ((args, _, sample), ((matched, *_), _, (positive, negative))) in enumerate(zip(calls, drawn, strict=True)):
        if stage:
            _close(args[1], arrays[f"{key}/proposals{i}"], f"boxes after stage {stage} in picture {i}")
        _equal(matched, _as_ours(arrays[f"{key}/assigned_gt_inds{i}"]), f"objects of boxes in picture {i}")
        _equal(positive, arrays[f"{key}/pos_inds{i}"], f"positive boxes drawn in picture {i}")
        _equal(negative, arrays[f"{key}/neg_inds{i}"], f"negative boxes drawn in picture {i}")
        _equal(sample.given[: len(positive)], arrays[f"{key}/pos_is_gt{i}"] > 0, f"true boxes in picture {i}")
        assert not sample.given[len(positive) :].any()
        _equal(sample.matched, arrays[f"{key}/pos_assigned_gt_inds{i}"], f"objects in picture {i}")
    rois = torch.cat(
        [torch.cat([torch.full((len(one.boxes), 1), float(i)), one.boxes], dim=1) for i, one in enumerate(samples)]
    )
    _close(rois, arrays[f"{key}/rois"], "boxes")
    levels = importlib.import_module("metamixer.heads.mask_rcnn").roi_levels(rois[:, 1:])
    _equal(levels, arrays[f"{key}/roi_levels"], "maps of boxes")
    labels = torch.cat([one.labels for one in samples])
    _equal(labels, arrays[f"{key}/labels"], "labels")
    positive = arrays[f"{key}/bbox_weights"] > 0
    _equal(labels < ours.model.num_classes, positive, "positive boxes")
    assert (arrays[f"{key}/label_weights"] == 1).all()
    assert arrays[f"{key}/avg_factor_cls"] == arrays[f"{key}/avg_factor_bbox"] == len(labels)
    wanted = arrays[f"{key}/bbox_targets"][positive]
    if ours.name == "cascade_mask_rcnn":
        _close(torch.cat([one.objects for one in samples]), wanted, "true boxes")
    else:
        _close(ours.results("encode_deltas")[count + stage], wanted, "moves")
    [(logits, deltas)] = ours.outputs["box_heads"][stage]
    _close(logits, arrays[f"{key}/cls_score"], "class logits")
    _close(deltas, arrays[f"{key}/bbox_pred"], "deltas")
    with_objects = [i for i, one in enumerate(samples) if len(one.objects)]
    before = sum(bool(len(s.objects)) for _, _, s in ours.calls["draw_samples"][: stage * count])
    masks = ours.results("mask_targets")[before : before + len(with_objects)]
    if masks:
        own = labels[torch.from_numpy(positive)]
        _equal(own, arrays[f"{key}/mask_labels"], "classes of masks")
        _mostly_equal(torch.cat(masks), arrays[f"{key}/mask_targets"], "masks")
        [drawn_masks] = ours.outputs["mask_heads"][stage]
        _close(drawn_masks[torch.arange(len(own)), own], arrays[f"{key}/mask_pred_own"], "mask logits")


def _check_ssdlite(ours: Any, arrays: Arrays) -> None:
    """Classes and moves of anchors, and the negatives mined."""
    _close(ours.calls["multibox_targets"][0][0][0], reference.shared_array("ssdlite", "anchors"), "anchors")
    moves = ours.results("encode_ssd")
    for i, (labels, _) in enumerate(ours.results("multibox_targets")):
        stored = arrays["box_labels"][i]
        _equal(labels, stored, f"labels in picture {i}")
        _close(moves[i][stored > 0], arrays["box_coordinates"][i][stored > 0], f"moves in picture {i}")
    [counted] = ours.results("counted")
    _equal(counted, arrays["counted"] > 0, "counted anchors")
    [((_, positive), _, _)] = ours.calls["counted"]
    assert max(int(positive.sum()), 1) == arrays["num_pos"]


def _check_segmentation(ours: Any, arrays: Arrays) -> None:
    labelled = ours.targets != 255
    if "avg_factor" in arrays:
        expected = float(arrays["avg_factor"])
    elif "class_weight" in arrays:
        expected = float(arrays["class_weight"][ours.targets[labelled]].sum(dtype=np.float64))
    else:
        expected = float(labelled.sum())
    for found in ours.results("divisor"):
        assert abs(float(found) / expected - 1) < LOSS


def _per_picture(arrays: Arrays, what: str) -> np.ndarray:
    """Levels in a row: ``B × anchors …``."""
    return np.concatenate([arrays[f"{what}{i}"] for i in range(5)], axis=1)


def _as_ours(assigned: np.ndarray) -> np.ndarray:
    """mmdet's numbers of objects (−2 not considered, −1 ignored, 0 background, from 1 on objects) as ours."""
    return np.where(assigned > 0, assigned - 1, np.where(assigned == 0, BACKGROUND, IGNORED))


def _equal(found: Tensor, stored: np.ndarray, what: str) -> None:
    assert np.array_equal(found.numpy(), stored), what


def _close(
    found: Tensor,
    stored: np.ndarray,
    what: str,
    tolerance: float = VALUE,
    least: float = 1e-6,
    share: float = 1.0,
) -> None:
    """Within this part of the largest magnitude (``least`` or more), for this share of the entries."""
    difference = reference.difference(found, stored, least, share)
    assert difference <= tolerance, f"{what}: {difference:.1e}"


def _mostly_equal(found: Tensor, stored: np.ndarray, what: str) -> None:
    """0 or 1 in all but a thousandth: boxes that were refined move masks that lie just at the threshold."""
    assert found.shape == stored.shape, what
    assert (found.numpy() != stored).mean() <= 1e-3, what


def _same_rows(found: Tensor, stored: np.ndarray, what: str) -> None:
    """Rows agree, but for their order, and for one in a hundred: a box that overlaps a better one by just the threshold
    is kept or not, as its place is rounded."""
    assert abs(len(found) - len(stored)) <= 0.01 * len(stored), what
    apart = np.abs(found.numpy()[:, None] - stored[None]) <= VALUE * np.abs(stored).max(axis=0)
    fits = apart.all(axis=2)
    assert fits.any(axis=0).mean() >= 0.99, what
    assert fits.any(axis=1).mean() >= 0.99, what
