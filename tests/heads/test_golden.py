"""Our dense models compute what the released ones computed, from raw outputs to final boxes and masks."""

from __future__ import annotations

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metamixer import build, merge
from metamixer.heads.build import load_dense
from metamixer.heads.mask_rcnn import BOX_SIDE, own_masks, paste_masks
from metamixer.heads.upernet import UPerNet
from metamixer.weights.released_dense import dense_to_our_layout

GOLDEN = Path(__file__).parents[1] / "golden"
golden = SimpleNamespace(**runpy.run_path(str(GOLDEN / "weights.py")))
TOLERANCE = 1e-4  # of the output's largest magnitude; final scores closer than this may change places


def released(name: str, head: str, **kwargs: object) -> nn.Module:
    """Our model, untrained as the papers have it, with the weights that the reference outputs were computed with."""
    model = build(head, **kwargs).eval()
    described = json.loads((GOLDEN / f"{name}.json").read_text())
    assert sum(parameter.numel() for parameter in model.parameters()) == described["params"]
    load_dense(model, dense_to_our_layout(golden.checkpoint(GOLDEN / f"{name}.json")), name)
    return model


def check(found: Tensor, expected: dict[str, np.ndarray], key: str) -> None:
    """Equal to the reference, of which large maps are evenly spaced samples."""
    reference, array = expected[key], found.numpy()
    assert array.shape == tuple(expected.get(f"{key}_shape", reference.shape)), key
    if array.shape != reference.shape:
        array = array.ravel()[np.linspace(0, array.size - 1, reference.size).round().astype(int)]
    assert np.abs(array - reference).max() <= TOLERANCE * np.abs(reference).max(), key


def check_raw(raw: Sequence[Tensor], expected: dict[str, np.ndarray]) -> None:
    assert len(raw) == sum(key.startswith("output") and not key.endswith("_shape") for key in expected)
    for i, found in enumerate(raw):
        check(found, expected, f"output{i}")


def check_detections(found: Sequence[Tensor], expected: Sequence[np.ndarray]) -> None:
    """Boxes, scores and labels in the reference's order, but for neighbours of nearly the same score."""
    (boxes, scores, labels), (wanted_boxes, wanted_scores, wanted_labels) = ([*map(np.asarray, found)], expected)
    assert len(boxes) == len(scores) == len(labels) == len(wanted_boxes)
    assert np.abs(scores - wanted_scores).max() <= TOLERANCE
    left = set(range(len(boxes)))
    for box, score, label in zip(boxes, scores, labels, strict=True):
        fitting = [
            i
            for i in left
            if abs(wanted_scores[i] - score) <= TOLERANCE
            and wanted_labels[i] == label
            and np.abs(wanted_boxes[i] - box).max() <= TOLERANCE * np.abs(wanted_boxes).max()
        ]
        assert fitting, (box, score, label)
        left.remove(fitting[0])


@pytest.mark.parametrize(
    ("name", "head", "kwargs"),
    [
        ("casvit_xs_semfpn", "semantic_fpn", {}),
        ("affnet_et_deeplabv3", "deeplabv3", {}),
        ("affnet_et_deeplabv3_aux", "deeplabv3", {"auxiliary": True}),
        ("affnet_et_pspnet", "pspnet", {}),
        ("ffnet_2_upernet", "upernet", {}),
        ("ffnet_seg_ade20k", "ffnet_seg", {}),
    ],
)
def test_segmentation_agrees_with_the_release(name: str, head: str, kwargs: dict[str, bool]) -> None:
    model = released(name, head, **kwargs)
    pairs = golden.references(GOLDEN / f"{name}.json")
    with torch.inference_mode():
        for picture, expected in pairs:
            raw = model.forward_raw(picture)
            check_raw(raw, expected)
            [result] = model.postprocess(raw, [picture.shape[-2:]])
            check(result.logits[None], expected, "resized" if "resized" in expected else "output1")
            assert torch.equal(result.labels, result.logits.argmax(0))
        if not isinstance(model, UPerNet):  # large, and its layers are those of the others
            picture, expected = pairs[0]
            check_raw(merge(model).forward_raw(picture), expected)


def test_retinanet_agrees_with_the_release() -> None:
    model = released("casvit_xs_retinanet", "retinanet")
    with torch.inference_mode():
        for picture, expected in golden.references(GOLDEN / "casvit_xs_retinanet.json"):
            raw = model.forward_raw(picture)
            check_raw(raw, expected)
            for i, anchors in enumerate(model.anchors(raw)):
                check(anchors, expected, f"anchors{i}")
            [found] = model.postprocess(raw, [picture.shape[-2:]])
            boxes = expected["det0_boxes"]
            check_detections(
                (found.boxes, found.scores, found.labels), (boxes[:, :4], boxes[:, 4], expected["det0_labels"])
            )
            check_raw(merge(model).forward_raw(picture), expected)


def test_ssdlite_agrees_with_the_release() -> None:
    model = released("affnet_et_ssdlite", "ssdlite")
    with torch.inference_mode():
        for picture, expected in golden.references(GOLDEN / "affnet_et_ssdlite.json"):
            raw = model.forward_raw(picture)
            check_raw(raw, expected)
            height, width = picture.shape[-2:]
            results = model.postprocess(raw, [(height, width)] * len(picture))
            for i, result in enumerate(results):
                boxes, scores = expected[f"det{i}_boxes"], expected[f"det{i}_scores"]
                labels = expected[f"det{i}_labels"] - 1  # the release counts the background
                check_detections(model.select(raw[0][i], raw[3][i]), (boxes, scores, labels))
                pixels = boxes.clip(0, 1) * np.array([width, height, width, height])
                check_detections((result.boxes, result.scores, result.labels), (pixels, scores, labels))


@pytest.mark.parametrize(
    ("name", "head"), [("casvit_xs_maskrcnn", "mask_rcnn"), ("ffnet_2_cascade_maskrcnn", "cascade_mask_rcnn")]
)
def test_mask_rcnn_agrees_with_the_release(name: str, head: str) -> None:
    model = released(name, head)
    picture, expected = golden.references(GOLDEN / f"{name}.json")[-1]
    size = tuple(picture.shape[-2:])
    with torch.inference_mode():
        raw = model.forward_raw(picture)
        names = [f"{part}{i}" for part in ("neck", "rpn_cls", "rpn_reg") for i in range(5)]
        for key, found in zip(names, raw, strict=True):
            check(found, expected, key)

        [(proposals, scores)] = model.propose(raw, [size])
        wanted = expected["proposals0"]
        check_detections(
            (proposals, scores, torch.zeros(len(scores))), (wanted[:, :4], wanted[:, 4], np.zeros(len(wanted)))
        )
        # What follows is compared row by row, so it starts from the reference's order.
        stages = model.box_stages(raw[:4], torch.from_numpy(wanted[:, :4]), size)
        for i, stage in enumerate(stages):
            suffix = f"_stage{i}" if len(stages) > 1 else ""
            if suffix:
                check(torch.nn.functional.pad(stage.boxes, (1, 0)), expected, f"rois0{suffix}")
            check(model.roi_features(raw[:4], stage.boxes, BOX_SIDE), expected, f"roi_feat0{suffix}")
            check(stage.logits, expected, f"roi_cls0{suffix}")
            check(stage.deltas, expected, f"roi_reg0{suffix}")
        if len(stages) > 1:
            check(torch.stack([stage.logits for stage in stages]).mean(0), expected, "roi_cls0_mean")

        wanted, labels = expected["det0_boxes"], expected["det0_labels"]
        check_detections(model.detect(stages, size), (wanted[:, :4], wanted[:, 4], labels))

        boxes, labels = torch.from_numpy(wanted[:, :4]), torch.from_numpy(labels)
        logits = model.mask_logits(raw[:4], boxes)
        for i, found in enumerate(logits):
            suffix = f"_stage{i}" if len(logits) > 1 else ""
            own = found[torch.arange(len(labels)), labels]
            check(found, expected, f"mask_logits{suffix}")
            check(own, expected, f"mask_own{suffix}")
            check(own[:10], expected, f"mask_own10{suffix}")
        probabilities = own_masks(logits, labels)
        check(probabilities, expected, "mask_prob_own")
        check(paste_masks(probabilities, boxes, size).sum((1, 2)), expected, "mask_area")


def test_mask_rcnn_from_picture_to_masks() -> None:
    """The parts joined by postprocess, on two pictures of different size in one padded batch."""
    model = released("casvit_xs_maskrcnn", "mask_rcnn")
    picture, expected = golden.references(GOLDEN / "casvit_xs_maskrcnn.json")[-1]
    size = tuple(picture.shape[-2:])
    with torch.inference_mode():
        raw = model.forward_raw(torch.cat([picture, picture]))
        whole, part = model.postprocess(raw, [size, (200, 150)])
    wanted = expected["det0_boxes"]
    check_detections((whole.boxes, whole.scores, whole.labels), (wanted[:, :4], wanted[:, 4], expected["det0_labels"]))
    assert whole.masks.shape == (len(wanted), *size)
    assert whole.masks.dtype == torch.bool
    assert part.masks.shape[1:] == (200, 150)
    assert part.boxes[:, 2].max() <= 150
    assert part.boxes[:, 3].max() <= 200
