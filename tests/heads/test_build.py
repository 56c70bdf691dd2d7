"""Heads on any backbone, checkpoints of several layouts, and what is refused."""

from __future__ import annotations

import json
import logging
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from metamixer import MetamixerError, build, merge
from metamixer.heads import Detections, Segmentation, list_heads
from metamixer.heads.build import HEADS
from metamixer.schemas import ARGUMENTS, parameters_of
from metamixer.weights import save_checkpoint
from metamixer.weights.released_dense import dense_to_our_layout

GOLDEN = Path(__file__).parents[1] / "golden"
golden = SimpleNamespace(**runpy.run_path(str(GOLDEN / "weights.py")))

SEGMENTATION = ("semantic_fpn", "upernet", "ffnet_seg", "deeplabv3", "pspnet")


def count(**kwargs: object) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(**kwargs).parameters())


@pytest.mark.parametrize(
    ("parameters", "kwargs"),
    [
        (6_875_250, {"head": "semantic_fpn"}),
        (15_845_142, {"head": "semantic_fpn", "backbone": "casvit_m"}),
        (58_397_420, {"head": "upernet"}),
        (68_476_566, {"head": "ffnet_seg"}),
        (2_213_526, {"head": "deeplabv3"}),
        (7_043_558, {"head": "deeplabv3", "backbone": "affnet"}),
        (2_352_940, {"head": "deeplabv3", "auxiliary": True}),
        (7_358_076, {"head": "deeplabv3", "backbone": "affnet", "auxiliary": True}),
        (2_125_206, {"head": "pspnet"}),
        (7_428_710, {"head": "pspnet", "backbone": "affnet"}),
        (12_189_904, {"head": "retinanet"}),
        (22_776_012, {"head": "mask_rcnn"}),
        (84_583_026, {"head": "cascade_mask_rcnn"}),
        (1_659_386, {"head": "ssdlite"}),
        (5_352_666, {"head": "ssdlite", "backbone": "affnet"}),
    ],
)
def test_parameters_are_those_of_the_release(parameters: int, kwargs: dict[str, object]) -> None:
    assert count(**kwargs) == parameters


@pytest.mark.parametrize("head", list_heads())
@pytest.mark.parametrize("backbone", ["casvit_nano", "resnet18"])
def test_any_backbone_gives_results(head: str, backbone: str) -> None:
    strides = {"output_stride": 32} if head in ("deeplabv3", "pspnet") else {}
    small = {"channels": 32} if head in ("retinanet", "mask_rcnn", "cascade_mask_rcnn", "ffnet_seg") else {}
    chosen = {"score_threshold": 0.0} if head not in SEGMENTATION else {}
    model = build(head, backbone, num_classes=3, **strides, **small, **chosen).eval()
    sizes = [(64, 96), (50, 70)]  # the second picture is padded
    with torch.inference_mode():
        raw = model(torch.randn(2, 3, 64, 96))
        results = model.postprocess(raw, sizes, padded=(64, 96))
    assert len(results) == 2
    for result, (height, width) in zip(results, sizes, strict=True):
        if head in SEGMENTATION:
            assert isinstance(result, Segmentation)
            assert result.logits.shape == (3, height, width)
            assert torch.equal(result.labels, result.logits.argmax(0))
            continue
        assert isinstance(result, Detections)
        assert 0 < len(result.boxes) == len(result.scores) == len(result.labels)
        assert (result.scores.diff() <= 0).all()
        assert set(result.labels.tolist()) <= {0, 1, 2}
        assert (result.boxes >= 0).all()
        assert (result.boxes <= torch.tensor([width, height, width, height])).all()
        if result.masks is not None:
            assert result.masks.shape == (len(result.boxes), height, width)


def test_padding_does_not_move_a_segmentation() -> None:
    model = build("semantic_fpn", "casvit_nano", num_classes=3).eval()
    raw = (torch.randn(1, 3, 16, 24),)
    [padded] = model.postprocess(raw, [(50, 70)], padded=(64, 96))
    [whole] = model.postprocess(raw, [(64, 96)])
    assert torch.equal(padded.logits, whole.logits[:, :50, :70])


@pytest.mark.parametrize(("backbone", "stride"), [("affnet_nano", 16), ("affnet_nano", 8), ("resnet18", 16)])
def test_output_stride_reaches_the_backbone(backbone: str, stride: int) -> None:
    model = build("pspnet", backbone, num_classes=2, output_stride=stride).eval()
    logits, enlarged = model(torch.randn(1, 3, 64, 64))
    assert logits.shape[-2:] == (64 // stride, 64 // stride)
    assert enlarged.shape[-2:] == (64, 64)


def test_no_object_is_a_result_too() -> None:
    for head in ("retinanet", "mask_rcnn", "ssdlite"):
        model = build(head, "casvit_nano", num_classes=2, score_threshold=0.999).eval()
        [result] = model.postprocess(model(torch.zeros(1, 3, 64, 64)), [(64, 64)])
        assert result.boxes.shape == (0, 4)
        assert len(result.scores) == len(result.labels) == 0
        if head == "mask_rcnn":
            assert result.masks.shape == (0, 64, 64)


def test_merging_reaches_the_backbone_and_stays_exact() -> None:
    model = build("upernet", "ffnet_nano", num_classes=4, channels=32).double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    merged = merge(model)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        for a, b in zip(model(x), merged(x), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * float(a.abs().max()))
    norms = [m for m in merged.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == []  # the maps' own are layer norms


def test_our_checkpoint_repeats_the_model(tmp_path: Path) -> None:
    file = tmp_path / "seg.safetensors"
    model = build("deeplabv3", "affnet_nano", num_classes=5, auxiliary=True, backbone_kwargs={"drop_path_rate": 0.1})
    save_checkpoint(model.eval(), file)
    again = build("deeplabv3", checkpoint=file).eval()
    assert again.num_classes == 5
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(model(x), again(x), strict=True):
            assert torch.equal(a, b)


def test_how_a_head_learns_is_repeated_too(tmp_path: Path) -> None:
    for head, arguments in (
        ("ssdlite", {"matched_from": 0.5}),
        ("upernet", {"channels": 16, "averaged_over": "labelled"}),
        ("pspnet", {"channels": 16, "averaged_over": "pixels", "output_stride": 32}),
    ):
        file = tmp_path / f"{head}.safetensors"
        save_checkpoint(build(head, "casvit_nano", num_classes=2, **arguments), file)
        again = build(head, checkpoint=file)
        learnt = {name: value for name, value in arguments.items() if name != "channels"}
        assert {name: getattr(again, name) for name in learnt} == learnt


@pytest.mark.parametrize("head", HEADS)
def test_a_file_may_hold_every_argument_of_a_head(head: str) -> None:
    assert parameters_of(HEADS[head].model) - {"backbone", "num_classes"} <= set(ARGUMENTS)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as mmsegmentation writes it."""
    file = tmp_path_factory.mktemp("released") / "iter_40000.pth"
    state = golden.checkpoint(GOLDEN / "casvit_xs_semfpn.json")
    torch.save({"meta": {"epoch": 1}, "state_dict": state, "optimizer": {}}, file)
    return file


def test_a_released_file_loads_by_path(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("semantic_fpn", checkpoint=released)
    described = golden.checkpoint(GOLDEN / "casvit_xs_semfpn.json")
    assert torch.equal(model.head.classifier.weight, described["decode_head.conv_seg.weight"])
    assert torch.equal(model.backbone.model.stem[0].conv.weight, described["backbone.patch_embed.0.weight"])
    assert caplog.records == []


def test_other_classes_keep_the_rest(released: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        model = build("semantic_fpn", num_classes=7, checkpoint=released)
    assert "another number of classes than 7: head.classifier starts fresh" in caplog.text
    own = golden.checkpoint(GOLDEN / "casvit_xs_semfpn.json")["neck.lateral_convs.0.conv.weight"]
    assert torch.equal(model.neck.laterals[0].weight, own)
    assert model.head.classifier.weight.shape[0] == 7


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("casvit_xs_retinanet", "retinanet"),
        ("affnet_et_ssdlite", "ssdlite"),
        ("casvit_xs_maskrcnn", "mask_rcnn"),
        ("ffnet_2_cascade_maskrcnn", "cascade_mask_rcnn"),
        ("ffnet_2_upernet", "upernet"),
        ("ffnet_seg_ade20k", "ffnet_seg"),
        ("affnet_et_pspnet", "pspnet"),
    ],
)
def test_every_key_and_shape_finds_its_place(name: str, head: str) -> None:
    described = json.loads((GOLDEN / f"{name}.json").read_text())["state_dict"]
    state = {key: torch.empty(shape, device="meta") for key, (shape, _) in described.items()}
    ours = {key: tuple(tensor.shape) for key, tensor in dense_to_our_layout(state).items()}
    with torch.device("meta"):
        model = build(head)
        other = build(head, num_classes=3)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert ours == expected
    changed = {key.rpartition(".")[0] for key, tensor in other.state_dict().items() if tensor.shape != expected[key]}
    # What starts fresh for another number of classes.
    assert changed == {part for part in model.classifiers if f"{part}.weight" in expected}


def test_auxiliary_heads_may_be_missing_or_too_many(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for file, held, wanted, notice in (
        ("with.pth", True, False, "it is left out"),
        ("without.pth", False, True, "the model's own stays"),
    ):
        model = build("deeplabv3", "affnet_nano", num_classes=2, auxiliary=held)
        torch.save(model.state_dict(), tmp_path / file)
        again = build("deeplabv3", "affnet_nano", num_classes=2, auxiliary=wanted, checkpoint=tmp_path / file)
        assert notice in caplog.text
        assert torch.equal(again.head.classifier.weight, model.head.classifier.weight)


def test_bad_input_is_one_sentence(released: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours.safetensors"
    save_checkpoint(build("pspnet", "affnet_nano", num_classes=2), ours)
    semfpn = {"head": "semantic_fpn", "checkpoint": released}
    pspnet = {"head": "pspnet", "checkpoint": ours}
    for expected, kwargs in (
        ("did you mean 'mask_rcnn'", {"head": "mask_rcn"}),
        ("did you mean 'casvit_xs'", {"head": "upernet", "backbone": "casvit_xss"}),
        ("did you mean 'auxiliary'", {"head": "upernet", "backbone": "casvit_nano", "auxilary": True}),
        ("averaged_over must be one of pixels, labelled, weights", {"head": "upernet", "averaged_over": "void"}),
        ("num_classes must be 1 or more", {"head": "upernet", "num_classes": 0}),
        ("none at 4, 8, 32", {"head": "semantic_fpn", "backbone": "vit_tiny_patch16_224"}),
        ("output_stride=32 leaves", {"head": "pspnet", "backbone": "casvit_nano"}),
        ("does not fit retinanet on casvit_xs", {"head": "retinanet", "checkpoint": released}),
        ("does not fit semantic_fpn on casvit_m", {**semfpn, "backbone": "casvit_m"}),
        ("belongs to pspnet, not to deeplabv3", {"head": "deeplabv3", "checkpoint": ours}),
        ("holds pspnet on affnet_nano, not on affnet_et", {**pspnet, "backbone": "affnet_et"}),
        ("no such file", {"head": "pspnet", "checkpoint": tmp_path / "none.pth"}),
    ):
        with pytest.raises(MetamixerError, match=expected):
            build(**kwargs)
    model = build("semantic_fpn", "casvit_nano", num_classes=2)
    with pytest.raises(MetamixerError, match="2 pictures need as many sizes, not 1"):
        model.postprocess((torch.zeros(2, 2, 16, 16),), [(64, 64)])
