"""What the heads learn from: matching, sampling, and losses against counting them by hand."""

from __future__ import annotations

import math

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, box_iou

from metamixer import MetamixerError, build
from metamixer.heads.base import VOID
from metamixer.heads.boxes import decode_deltas, decode_ssd, encode_deltas, encode_ssd
from metamixer.heads.mask_rcnn import MaskRCNN, mask_targets
from metamixer.heads.matching import BACKGROUND, IGNORED, assign, draw
from metamixer.heads.retinanet import RetinaNet

SIDE = 64
DETECTORS = ("retinanet", "ssdlite", "mask_rcnn", "cascade_mask_rcnn")


def some_boxes(count: int, side: float = SIDE) -> Tensor:
    centre, sides = torch.rand(count, 2) * side, 4 + torch.rand(count, 2) * side / 2
    return torch.cat([(centre - sides / 2).clamp(min=0), (centre + sides / 2).clamp(max=side)], dim=1)


def objects(count: int, classes: int = 2) -> dict[str, Tensor]:
    boxes = torch.tensor([[4.0, 6.0, 40.0, 38.0], [30.0, 30.0, 62.0, 60.0], [2.0, 40.0, 20.0, 62.0]])[:count]
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    for mask, box in zip(masks, boxes.int().tolist(), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    return {
        "boxes": boxes,
        "labels": torch.arange(count) % classes,
        "size": torch.tensor([SIDE, SIDE]),
        "masks": masks,
    }


def small(head: str, backbone: str = "casvit_nano", classes: int = 2) -> torch.nn.Module:
    return build(head, backbone, num_classes=classes, **({} if head == "ssdlite" else {"channels": 16}))


def test_encoding_is_the_inverse_of_decoding() -> None:
    boxes, wanted = some_boxes(50), some_boxes(50)
    stds = (0.1, 0.1, 0.2, 0.2)
    torch.testing.assert_close(decode_deltas(boxes, encode_deltas(boxes, wanted, stds), None, stds), wanted)
    anchors = box_convert(boxes, "xyxy", "cxcywh") / SIDE
    torch.testing.assert_close(decode_ssd(anchors, encode_ssd(anchors, wanted / SIDE)), wanted / SIDE)


@pytest.mark.parametrize("rescue", [None, 0.0, 0.3])
def test_assignment_follows_its_rules(rescue: float | None) -> None:
    boxes, found = some_boxes(300), some_boxes(6)
    matched = assign(boxes, found, 0.6, 0.4, rescue)
    overlaps = box_iou(found, boxes)
    for i in range(len(boxes)):
        best = float(overlaps[:, i].max())
        expected = int(overlaps[:, i].argmax()) if best >= 0.6 else BACKGROUND if best < 0.4 else IGNORED
        for j in range(len(found)):
            if rescue is not None and overlaps[j, i] == overlaps[j].max() and overlaps[j, i] >= max(rescue, 1e-9):
                expected = j
        assert int(matched[i]) == expected
    if rescue == 0.0:
        assert set(range(len(found))) <= set(matched.tolist())


def test_nothing_to_find_is_background() -> None:
    assert (assign(some_boxes(5), torch.zeros(0, 4), 0.5, 0.4, 0.0) == BACKGROUND).all()


def test_drawing_keeps_the_share_and_leaves_out_what_is_ignored() -> None:
    matched = torch.tensor([0] * 100 + [BACKGROUND] * 500 + [IGNORED] * 50)
    positive, negative = draw(matched, 128, 0.25)
    assert len(positive) == 32
    assert len(negative) == 96
    assert (matched[positive] >= 0).all()
    assert (matched[negative] == BACKGROUND).all()
    positive, negative = draw(matched[80:], 128, 0.5)
    assert (len(positive), len(negative)) == (20, 108)


def test_retinanet_counts_as_the_papers_do() -> None:
    model = small("retinanet", classes=3)
    assert isinstance(model, RetinaNet)
    targets = [objects(2, 3), objects(0, 3)]
    with torch.no_grad():
        raw = model(torch.randn(2, 3, SIDE, SIDE))
        losses = model.losses(raw, targets, (SIDE, SIDE))
        anchors = torch.cat(model.anchors(raw))
        logits = torch.cat([r.permute(0, 2, 3, 1).reshape(2, -1, 3) for r in raw[:5]], 1)
        deltas = torch.cat([r.permute(0, 2, 3, 1).reshape(2, -1, 4) for r in raw[5:]], 1)
    classes = boxes = 0.0
    positives = 0
    for i, target in enumerate(targets):
        matched = assign(anchors, target["boxes"], 0.5, 0.4, 0.0)
        own = 0
        for anchor, match in enumerate(matched.tolist()):
            if match == IGNORED:
                continue
            for label in range(3):
                p = float(logits[i, anchor, label].sigmoid())
                if match >= 0 and label == int(target["labels"][match]):
                    classes -= 0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    classes -= 0.75 * p**2 * math.log(1 - p)
            if match >= 0:
                own += 1
                wanted = encode_deltas(anchors[anchor], target["boxes"][match])
                boxes += float((wanted - deltas[i, anchor]).abs().sum())
        positives += max(own, 1)
    assert positives > 2
    assert float(losses["classes"]) == pytest.approx(classes / positives, rel=1e-4)
    assert float(losses["boxes"]) == pytest.approx(boxes / positives, rel=1e-4)


def test_ssdlite_mines_three_negatives_per_positive() -> None:
    model = small("ssdlite", classes=3).eval()
    targets = [objects(3, 3), objects(1, 3)]
    with torch.no_grad():
        raw = model(torch.randn(2, 3, SIDE, SIDE))
        losses = model.losses(raw, targets, (SIDE, SIDE))
    logits, deltas, anchors, _ = raw
    corners = box_convert(anchors, "cxcywh", "xyxy")
    total = count = 0.0
    moves = 0.0
    for i, target in enumerate(targets):
        overlaps = box_iou(target["boxes"] / SIDE, corners)
        best, index = overlaps.max(0)
        for j in range(len(target["boxes"])):
            index[overlaps[j].argmax()], best[overlaps[j].argmax()] = j, 1
        positive = best >= 0.45
        labels = torch.where(positive, target["labels"][index] + 1, 0)
        each = F.cross_entropy(logits[i], labels, reduction="none")
        hardest = each[~positive].sort(descending=True).values[: 3 * int(positive.sum())]
        total += float(each[positive].sum() + hardest.sum())
        wanted = encode_ssd(anchors, (target["boxes"] / SIDE)[index])
        moves += float(F.smooth_l1_loss(deltas[i][positive], wanted[positive], reduction="sum"))
        count += int(positive.sum())
    assert float(losses["classes"]) == pytest.approx(total / count, rel=1e-4)
    assert float(losses["boxes"]) == pytest.approx(moves / count, rel=1e-4)


def test_segmentation_leaves_out_void_and_weighs_classes() -> None:
    model = build("upernet", "casvit_nano", num_classes=3, channels=16).eval()
    model.class_weights = torch.tensor([1.0, 2.0, 0.5])
    labels = torch.randint(0, 3, (2, SIDE, SIDE))
    labels[:, :10] = VOID
    with torch.no_grad():
        x = torch.randn(2, 3, SIDE, SIDE)
        raw, losses = model(x), model(x, labels)
    for name, logits, weight in (("segmentation", raw[0], 1.0), ("auxiliary", raw[1], 0.4)):
        large = F.interpolate(logits, (SIDE, SIDE), mode="bilinear").log_softmax(1)
        known = labels != VOID
        picked = -large.permute(0, 2, 3, 1)[known].gather(1, labels[known][:, None])[:, 0]
        expected = weight * float((picked * model.class_weights[labels[known]]).sum()) / labels.numel()
        assert float(losses[name]) == pytest.approx(expected, rel=1e-4)
    assert "class_weights" not in model.state_dict()


def test_void_alone_gives_no_loss() -> None:
    for head, kwargs in (("semantic_fpn", {"channels": 16}), ("pspnet", {"output_stride": 32})):
        model = build(head, "casvit_nano", num_classes=3, **kwargs)
        losses = model(torch.randn(2, 3, SIDE, SIDE), torch.full((2, SIDE, SIDE), VOID))
        assert losses["segmentation"].item() == 0


def test_masks_are_cut_out_by_their_boxes() -> None:
    target = objects(2)
    whole = mask_targets(target["masks"], target["boxes"], torch.tensor([0, 1]))
    assert whole.shape == (2, 28, 28)
    assert (whole == 1).all()
    left, top, right, bottom = target["boxes"][0].tolist()
    shifted = torch.tensor([[left - (right - left), top, right, bottom]])
    half = mask_targets(target["masks"], shifted, torch.tensor([0]))[0]
    assert (half[:, :14] == 0).all()
    assert (half[:, 14:] == 1).all()


def test_samples_are_proposals_and_true_boxes() -> None:
    model = small("mask_rcnn")
    assert isinstance(model, MaskRCNN)
    target = objects(2)
    proposals = torch.cat([target["boxes"] + 1, some_boxes(50) % 20])
    sample = model.draw_samples(proposals, target, 0)
    positive = sample.labels < 2
    overlaps = box_iou(sample.boxes, target["boxes"])
    assert int(positive.sum()) == len(sample.objects) >= 4  # both true boxes and both shifted ones
    assert (overlaps[positive].max(1).values >= 0.5).all()
    assert (overlaps[~positive].max(1).values < 0.5).all()
    assert torch.equal(sample.labels[positive], target["labels"][overlaps[positive].argmax(1)])
    assert int(sample.given.sum()) == 2


@pytest.mark.parametrize(
    ("head", "backbone"),
    [
        ("retinanet", "mobilenetv4_conv_small"),
        ("mask_rcnn", "dsm_nano"),
        ("retinanet", "dsm_nano"),
        ("upernet", "dsm_nano"),
        ("semantic_fpn", "mobilenetv4_conv_small"),
    ],
)
def test_other_backbones_train_too(head: str, backbone: str) -> None:
    model = small(head, backbone)
    x = torch.randn(2, 3, SIDE, SIDE)
    detector = head in DETECTORS
    losses = model(x, [objects(1), objects(2)] if detector else torch.randint(0, 2, (2, SIDE, SIDE)))
    sum(losses.values()).backward()
    stem = next(model.backbone.parameters())
    assert float(stem.grad.abs().sum()) > 0


def test_masks_are_asked_for() -> None:
    target = objects(1)
    del target["masks"]
    with pytest.raises(MetamixerError, match="this head learns masks"):
        small("mask_rcnn")(torch.randn(1, 3, SIDE, SIDE), [target])


@pytest.mark.parametrize("backbone", ["casvit_nano", "mobilenetv4_conv_small"])
def test_frozen_parts_stay(backbone: str) -> None:
    model = small("retinanet", backbone)
    model.freeze(stages=2, norms=True)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model(torch.randn(2, 3, SIDE, SIDE), [objects(2), objects(1)]).values()).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    maps = model.backbone.feature_info.module_name()
    inside = "backbone.model." if "." in maps[0] else "backbone."
    assert changed
    assert not any(name.startswith(f"{inside}{one}.") for name in changed for one in maps[:2])
    assert not any(name.startswith("backbone") and "running" in name for name in changed)
    assert any(name.startswith("backbone") for name in changed)
    with pytest.raises(MetamixerError, match="9 cannot be frozen"):
        model.freeze(stages=9)


def test_layers_learn_faster_towards_the_head() -> None:
    model = small("retinanet", "ffnet_nano")
    optimizer = create_optimizer_v2(model, opt="sgd", lr=1.0, weight_decay=0.1, layer_decay=0.5)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: scales[id(p)] for name, p in model.named_parameters() if id(p) in scales}
    stem = max(scale for name, scale in by_name.items() if ".stem." in name)
    last = min(scale for name, scale in by_name.items() if ".stages.3." in name)
    assert stem < last < by_name["head.classifier.weight"] == 1
