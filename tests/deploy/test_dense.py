"""Exported detectors and segmenters say what PyTorch says, raw and with the choice among boxes in the graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import clip_boxes_to_image

import metamixer as mm
from metamixer import MetamixerError
from metamixer.cli import main
from metamixer.deploy.dense import (
    OUTPUTS,
    SAME_BOX,
    Candidates,
    DenseSource,
    RawOutputs,
    compare_boxes,
    fit_picture,
    input_size,
)
from metamixer.deploy.onnx import load
from metamixer.deploy.onnx_selection import append_selection
from metamixer.deploy.pictures import photographs
from metamixer.deploy.source import agreement_of_all, answer_of
from metamixer.deploy.targets import TARGETS, target_module
from metamixer.heads import list_heads
from metamixer.heads.boxes import strongest
from metamixer.weights import save_checkpoint

PICTURES = photographs(2)
TINY = "test_resnet"  # of timm: 0.5 million parameters


def detector(head: str = "retinanet", **options: Any) -> Any:
    """One that sees many objects: its classifiers start with large weights and even chances."""
    model = mm.build(head, TINY, num_classes=3, **({} if head == "ssdlite" else {"channels": 16}), **options).eval()
    for name, module in model.named_modules():
        if name.startswith(model.classifiers) and isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3 if head == "ssdlite" else 5.0)
            nn.init.zeros_(module.bias)
    return model


def raw_from(run: Any, model: Any, picture: Image.Image, size: tuple[int, int]) -> tuple[Any, Any]:
    """What an artefact and what PyTorch make of a picture, as final results."""
    x, fitted = fit_picture(model, picture, size)
    raw = [torch.from_numpy(output) for output in run(x.numpy())]
    where = {"padded": size, "originals": [(picture.height, picture.width)]}
    with torch.inference_mode():
        return model.postprocess(raw, [fitted], **where)[0], model.postprocess(model(x), [fitted], **where)[0]


def test_raw_outputs_become_the_same_results(tmp_path: Path) -> None:
    model = detector()
    report = mm.export(model, "onnx", tmp_path / "a.onnx", 96, pictures=PICTURES, repeats=1)
    assert report.max_relative_difference < 1e-4
    assert report.latency_runtime_ms is not None
    assert report.latency_runtime_ms > 0
    assert json.loads((tmp_path / "a.onnx.json").read_text())["model"] == f"retinanet_{TINY}"
    file = onnx.load(tmp_path / "a.onnx")
    assert tuple(output.name for output in file.graph.output) == OUTPUTS["retinanet"]
    metadata = {p.key: p.value for p in file.metadata_props}
    assert (metadata["architecture"], metadata["image_size"]) == ("retinanet", "96 x 96")
    found, expected = raw_from(load(tmp_path / "a.onnx"), model, PICTURES[0], (96, 96))
    assert len(expected.boxes) > 10
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("head", [pytest.param("retinanet", marks=pytest.mark.slow), "ssdlite"])
@pytest.mark.parametrize("target", ["torch", "openvino", "executorch", "litert", "ncnn"])
def test_every_runtime_gives_every_output(head: str, target: str, tmp_path: Path) -> None:
    """Ten maps of five sizes from one head; vectors and a constant from the other."""
    module = target_module(target)
    try:
        module.check()
    except MetamixerError as error:
        pytest.skip(str(error))
    model = detector(head)
    path = tmp_path / f"m{TARGETS[target].suffix}"
    report = mm.export(model, target, path, 64, pictures=PICTURES[:1], repeats=0)
    assert report.max_relative_difference < 1e-4
    assert np.isnan(report.top1_agreement)
    found, expected = raw_from(module.load(path), model, PICTURES[1], (64, 64))
    assert len(expected.boxes) > 10
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-2)
    assert torch.equal(found.labels, expected.labels)


NMS_CASES = [("retinanet", (64, 96)), ("ssdlite", (100, 100))]
FEW = {"candidates": 40, "limit": 60, "overlap": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize(("head", "size"), NMS_CASES)
def test_boxes_are_chosen_inside_the_graph(head: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = detector(head, **FEW)
    save_checkpoint(model, tmp_path / "model.safetensors", classes=("a", "b", "c"))
    (tmp_path / "pictures").mkdir()
    PICTURES[0].save(tmp_path / "pictures" / "a.png")
    command = f"export {tmp_path}/model.safetensors --to onnx --nms --normalise --out {tmp_path}/exported"
    sides = f"--image-size {size[0]} {size[1]}"
    assert main([*command.split(), *sides.split(), "--pictures", str(tmp_path / "pictures")]) == 0
    path = tmp_path / "exported" / f"{head}_{TINY}.onnx"
    run = load(path)
    for picture in PICTURES:
        boxes, scores, labels = run(fit_picture(model, picture, size, normalise=True)[0].numpy())
        with torch.inference_mode():
            [expected] = model.postprocess(model(fit_picture(model, picture, size)[0]), [size])
        assert 5 < len(boxes) == len(expected.boxes) <= 60
        np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
        np.testing.assert_allclose(boxes, expected.boxes, atol=2e-2)
        np.testing.assert_array_equal(labels, expected.labels)


def chooser(count: int, classes: int, size: tuple[int, int], *rule: float) -> Any:
    """A file of nothing but the choice among ``count`` boxes, as a function of boxes and scores."""
    helper = onnx.helper
    shapes = {"pictures": [1, 3, *size], "boxes": [1, count, 4], "scores": [1, classes, count]}
    values = {
        name: helper.make_tensor_value_info(f"given_{name}" if name != "pictures" else name, 1, shape)
        for name, shape in shapes.items()
    }
    outputs = [helper.make_tensor_value_info(name, 1, shapes[name]) for name in ("boxes", "scores")]
    nodes = [helper.make_node("Identity", [f"given_{name}"], [name]) for name in ("boxes", "scores")]
    graph = helper.make_graph(nodes, "choice", list(values.values()), outputs)
    append_selection(graph, *rule)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    blank = np.zeros((1, 3, *size), np.float32)
    return lambda boxes, scores: session.run(
        None, {"pictures": blank, "given_boxes": boxes[None], "given_scores": scores[None]}
    )


@pytest.mark.parametrize("limit", [7, 1000])
def test_the_choice_is_torchvisions(limit: int) -> None:
    centre, sides = 100 * torch.rand(200, 2), 5 + 30 * torch.rand(200, 2)
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=1)
    scores = torch.rand(3, 200)
    choose = chooser(200, 3, (90, 80), 0.4, 0.25, limit)
    label, place = (scores > 0.25).nonzero(as_tuple=True)
    best, best_scores, best_labels = strongest(boxes[place], scores[label, place], label, 0.4, limit)
    got = choose(boxes.numpy(), scores.numpy())
    np.testing.assert_allclose(got[0], clip_boxes_to_image(best, (90, 80)), rtol=1e-6)
    np.testing.assert_array_equal(got[1], best_scores)
    np.testing.assert_array_equal(got[2], best_labels)
    assert [len(output) for output in choose(boxes.numpy(), 0 * scores.numpy())] == [0, 0, 0]


@pytest.mark.parametrize(("head", "size"), NMS_CASES)
def test_candidates_are_those_of_the_post_processing(head: str, size: tuple[int, int]) -> None:
    model = detector(head, **FEW)
    x = fit_picture(model, PICTURES[0], size)[0]
    with torch.inference_mode():
        boxes, scores = (output[0] for output in Candidates(RawOutputs(model, nn.Identity())).eval()(x))
        [expected] = model.postprocess(model(x), [size])
    label, place = (scores > model.score_threshold).nonzero(as_tuple=True)
    found = strongest(boxes[place], scores[label, place], label, 0.3, 60)
    assert len(expected.boxes) > 5
    torch.testing.assert_close(clip_boxes_to_image(found[0], size), expected.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1], expected.scores)
    assert torch.equal(found[2], expected.labels)


@pytest.mark.parametrize("runtime", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_checkpoints_are_timed(runtime: str, tmp_path: Path) -> None:
    path = str(tmp_path / "model.safetensors")
    save_checkpoint(detector(), path)
    report = mm.benchmark([path], [runtime], image_size=64, repeats=1)
    assert report.failed == {}
    [row] = report.rows
    assert (row.model, row.image_size) == (path, 64)
    assert row.macs > 0 < row.median_ms


@pytest.mark.slow
@pytest.mark.parametrize("head", ["semantic_fpn", "mask_rcnn"])
def test_other_heads_give_their_raw_outputs(head: str, tmp_path: Path) -> None:
    model = mm.build(head, TINY, num_classes=2, channels=16)
    report = mm.export(model, "onnx", tmp_path / "c.onnx", 64, dynamic_batch=True, pictures=PICTURES, repeats=0)
    assert report.max_relative_difference < 1e-4
    pair = torch.cat([fit_picture(model, picture, (64, 64))[0] for picture in PICTURES])
    expected = answer_of(model.eval(), pair)
    answer = load(tmp_path / "c.onnx")(pair.numpy())
    answer = [answer] if len(expected) == 1 else answer
    assert agreement_of_all([expected], [answer]).max_relative < 1e-4


def test_a_wrong_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        load_ms = 1.0

        def __init__(self, target: object, path: Path) -> None:
            assert path.read_text() == "a graph"

        def __enter__(self) -> Wrong:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __call__(self, pictures: np.ndarray) -> np.ndarray:
            return np.zeros((1, 2, 16, 16), np.float32)

    monkeypatch.setattr("metamixer.deploy.export.convert", lambda *given: given[3].write_text("a graph"))
    monkeypatch.setattr("metamixer.deploy.export.RuntimeProcess", Wrong)
    monkeypatch.setattr("metamixer.deploy.export._divergence", lambda *_: "")
    model = mm.build("semantic_fpn", TINY, num_classes=2, channels=16)
    with pytest.raises(MetamixerError, match=r"differs from PyTorch by 1\.0e\+00 of the largest value"):
        mm.export(model, "onnx", tmp_path / "d.onnx", 64, pictures=PICTURES, repeats=0)
    assert not list(tmp_path.iterdir())


def test_differences_are_measured_on_every_output() -> None:
    a, b = np.ones((1, 4), np.float32), np.full((1, 2), 100, np.float32)
    assert agreement_of_all([[a, b]], [[a, b]]).max_relative == 0
    assert agreement_of_all([[a, b]], [[a * 1.01, b]]).max_relative == pytest.approx(0.01, rel=1e-4)
    assert agreement_of_all([[a, b]], [[a, b + 1]]).max_abs == 1
    assert agreement_of_all([[a, b], [a, b]], [[a, b], [a, b + 1]]).max_abs == 1
    assert agreement_of_all([[a, b]], [[a]]).max_relative == np.inf
    assert agreement_of_all([[a, b]], [[b, a]]).max_relative == np.inf
    assert agreement_of_all([[a]], [[a * np.nan]]).max_relative == np.inf


def test_boxes_are_the_same_in_any_order_but_not_elsewhere() -> None:
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4) * 10
    scores, labels = np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 1])
    order = [1, 0, 2]
    same = compare_boxes((boxes, scores, labels), (boxes[order], scores[order] + 1e-5, labels[order]), "fp32")
    assert same.max_abs == pytest.approx(1e-5, rel=0.05)
    moved = boxes + 2 * SAME_BOX["fp32"]
    assert compare_boxes((boxes, scores, labels), (moved, scores, labels), "fp32").max_abs == np.inf
    assert compare_boxes((boxes, scores, labels), (boxes, scores, labels[::-1]), "fp32").max_abs == np.inf
    assert compare_boxes((boxes, scores, labels), (boxes[:0], scores[:0], labels[:0]), "fp32").max_abs == np.inf


def test_every_head_names_its_outputs() -> None:
    assert set(OUTPUTS) == set(list_heads())
    for auxiliary in (True, False):
        model = mm.build("upernet", TINY, num_classes=2, channels=16, **({} if auxiliary else {"auxiliary": False}))
        assert ("auxiliary_logits" in DenseSource(model, "m").outputs) == auxiliary


@pytest.mark.parametrize(("size", "fitted"), [((40, 20), (32, 64)), ((20, 40), (64, 32)), ((64, 64), (64, 64))])
def test_pictures_keep_their_proportions_and_are_padded(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    model = mm.build("retinanet", TINY, num_classes=2, channels=16)
    x, found = fit_picture(model, Image.new("RGB", size, (255, 255, 255)), (64, 64), normalise=True)
    assert found == fitted
    assert x.shape == (1, 3, 64, 64)
    assert (x[..., : fitted[0], : fitted[1]] == 255).all()
    assert (x[..., fitted[0] :, :] < 255).all()
    assert (x[..., :, fitted[1] :] < 255).all()


def test_default_sizes() -> None:
    assert input_size(mm.build("retinanet", TINY, num_classes=2, channels=16)) == (800, 1088)
    assert input_size(mm.build("ssdlite", TINY, num_classes=2)) == (320, 320)


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ("retinanet_test_resnet exports know no int8", {"weights": "int8", "calibration": PICTURES}),
        ("know no sizes: its graph holds one size", {"sizes": (64, 96)}),
        ("takes one picture", {"nms": True, "dynamic_batch": True}),
        ("multiples of 32, not 50 × 64", {"image_size": (50, 64)}),
        ("mask_rcnn cannot choose boxes", {"head": "mask_rcnn", "nms": True}),
        ("torch exports know no nms: take onnx, or postprocess", {"target": "torch", "nms": True}),
        ("retinanet_test_resnet is no classifier", {"target": "web"}),
    ],
)
def test_what_does_not_go_together(
    expected: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metamixer.deploy.web.check", lambda: None)  # it wants npm
    options = {"head": "retinanet", "target": "onnx", "image_size": None, **options}
    model = mm.build(options.pop("head"), TINY, num_classes=2, channels=16)
    with pytest.raises(MetamixerError, match=expected):
        mm.export(model, options.pop("target"), tmp_path / "e", pictures=PICTURES, repeats=0, **options)
    assert not list(tmp_path.iterdir())


def test_classifiers_take_squares_and_give_no_boxes(tmp_path: Path) -> None:
    for options, said in ({"image_size": (64, 96)}, "takes squares"), ({"nms": True}, "know no nms: it gives no boxes"):
        with pytest.raises(MetamixerError, match=said):
            mm.export("casvit_nano", "onnx", tmp_path / "g.onnx", **options)
