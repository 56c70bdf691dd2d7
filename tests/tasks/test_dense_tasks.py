"""Segmentation and detection from a folder to a trained network and a result that a person can see."""

from __future__ import annotations

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metamixer as mm
from metamixer import MetamixerError, TrainConfig, build, train
from metamixer.cli import main
from metamixer.data.annotations import open_class_maps, open_objects
from metamixer.heads.base import DenseModel, Detections
from metamixer.heads.boxes import rescaled
from metamixer.heads.build import HEADS
from metamixer.tasks.dense import (
    evaluate_dense,
    gallery,
    load_dense_model,
    predict_dense,
    predict_files,
    predict_video,
    truth_of,
)
from metamixer.tasks.dense_inference import SegmentationInference, _logits, class_scores, detect, read_ahead
from metamixer.tasks.dense_metrics import ClassMapMetrics, coco_metrics
from metamixer.tasks.detection import Detection
from metamixer.tasks.results import import_supervision
from metamixer.tasks.segmentation import SemanticSegmentation
from metamixer.tasks.task import key_values
from metamixer.train.recipes import get_recipe, list_recipes
from metamixer.train.recipes.registry import describe_recipe
from metamixer.weights import save_checkpoint

shapes = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "coloured_shapes.py")))
SIDE = 64
NANO = "casvit_nano.cifar10"  # weights that come with the package
SMALL = ("channels=32",)


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write_coco(tmp_path_factory.mktemp("coco"), side=SIDE)


@pytest.fixture(scope="module")
def small_objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three in every picture: SSDLite learns from three times as many negatives as it has positives."""
    return shapes.write_coco(tmp_path_factory.mktemp("coco3"), side=SIDE, count=3)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write_class_maps(tmp_path_factory.mktemp("maps"), side=SIDE)


def config(task: Any, out: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(task, str(out), epochs=5, batch_size=8, lr=3e-3, ema_decay=0.0, workers=0, clip_grad=5.0)
    return replace(base, **changes)


def quick_norms(task: Any) -> Any:
    """Norms that follow the last batches: a run of a few steps has no time for slow ones."""
    create = task.create_model

    def create_model() -> nn.Module:
        model = create()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.4
        return model

    task.create_model = create_model
    return task


def segmenter(maps: Path, **changes: Any) -> SemanticSegmentation:
    settings: dict[str, Any] = {"image_size": SIDE, "scale": (1.0, 1.0), "colours": False, "flip": False}
    return SemanticSegmentation(str(maps), "semantic_fpn", NANO, model_args=SMALL, **{**settings, **changes})


@pytest.fixture(scope="module")
def trained(maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(config(quick_norms(segmenter(maps)), tmp_path_factory.mktemp("segmentation") / "run"))


def test_segmentation_overfits_eight_pictures(trained: Any, maps: Path) -> None:
    assert trained.value > 0.95
    model = load_dense_model(trained.best)
    metrics = evaluate_dense(model, maps, workers=0)
    assert metrics["mIoU"] == pytest.approx(trained.value, abs=1e-6)  # the file holds all that prediction needs
    assert {"IoU/ground", "IoU/red", "IoU/blue"} < set(metrics)
    result = predict_dense(model, maps / "val" / "images" / "0.png")
    assert set(result.shares()) == {"ground", "red", "blue"} or len(result.shares()) == 2
    assert min(result.draw().size) >= 320


def test_the_gallery_ranks_pictures(trained: Any, maps: Path, tmp_path: Path) -> None:
    model = load_dense_model(trained.best)
    cases = gallery(model, maps, tmp_path / "page.html", best=2, worst=1)
    assert len(cases) == 3
    assert cases[0].metric >= cases[1].metric >= cases[2].metric > 0.8
    assert "data:image" in (tmp_path / "page.html").read_text()


def test_windows_scales_and_mirrors_agree_with_the_whole(trained: Any, maps: Path) -> None:
    model = load_dense_model(trained.best)
    with Image.open(maps / "val" / "images" / "1.png") as file:
        picture = file.convert("RGB")
    with torch.inference_mode():
        model.eval()
        whole = class_scores(model, picture, SIDE, SegmentationInference())
        one_window = class_scores(model, picture, SIDE, SegmentationInference(window=SIDE))
        torch.testing.assert_close(one_window, whole)
        mirrored = class_scores(model, picture, SIDE, SegmentationInference(mirror=True))
        twin = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        again = class_scores(model, twin, SIDE, SegmentationInference(mirror=True))
        torch.testing.assert_close(again.flip(-1), mirrored, rtol=0, atol=1e-4)
    truth = predict_dense(model, picture).class_map
    for how in (SegmentationInference(scales=(1.0, 1.5), mirror=True), SegmentationInference(window=32, stride=16)):
        assert (predict_dense(model, picture, how=how).class_map == truth).mean() > 0.8


@pytest.mark.parametrize(("length", "side", "stride"), [(100, 32, 20), (96, 32, 32), (20, 32, 16), (33, 32, 32)])
def test_windows_cover_everything(length: int, side: int, stride: int) -> None:
    class Ones(nn.Module):
        """Says 1 wherever it looks."""

        def __init__(self) -> None:
            super().__init__()
            self.num_classes, self.align_corners = 2, False

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            assert max(x.shape[-2:]) <= side
            return (torch.ones(1, 2, *x.shape[-2:]),)

    how = SegmentationInference(window=side, stride=stride)
    seen = _logits(Ones(), torch.zeros(1, 3, length, length + 7), how)  # type: ignore[arg-type]
    assert torch.equal(seen, torch.ones(1, 2, length, length + 7))


def detector(coco: Path, head: str, **changes: Any) -> Detection:
    settings: dict[str, Any] = {"image_size": SIDE, "augmentation": "none", "backbone": NANO}
    arguments = () if head == "ssdlite" else SMALL
    return Detection(str(coco), head, **{"model_args": arguments, **settings, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "data", "epochs", "lr", "changes"),
    [("retinanet", "coco", 6, 3e-3, {}), ("ssdlite", "small_objects", 8, 2e-3, {"image_size": 96})],
)
def test_detection_overfits_eight_pictures(
    head: str,
    data: str,
    epochs: int,
    lr: float,
    changes: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    root = request.getfixturevalue(data)
    result = train(config(quick_norms(detector(root, head, **changes)), tmp_path / "run", epochs=epochs, lr=lr))
    assert result.metrics["mAP50"] > 0.9
    model = load_dense_model(result.best)
    assert evaluate_dense(model, root, workers=0)["mAP50"] == pytest.approx(result.metrics["mAP50"], abs=1e-6)
    found = predict_dense(model, root / "val" / "1.png")
    assert set(found.names) <= {"red", "blue"}
    assert len(found) >= 1


@pytest.mark.parametrize(
    ("head", "epochs"), [("mask_rcnn", 4), pytest.param("cascade_mask_rcnn", 8, marks=pytest.mark.slow)]
)
def test_masks_overfit_eight_pictures(
    head: str, epochs: int, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HEADS[head].model, "train_proposals", 64)
    few = (*SMALL, "samples=32")  # a picture of one object needs no 512 proposals
    task = quick_norms(detector(coco, head, model_args=few))
    result = train(config(task, tmp_path / "run", epochs=epochs, lr=3e-3))
    assert result.metrics["mAP50"] > 0.9
    assert result.metrics["mask_mAP50"] > 0.9
    model = load_dense_model(result.best)
    result = predict_dense(model, coco / "val" / "1.png")
    assert result.masks is not None
    assert result.masks.shape == (len(result), SIDE, SIDE)
    assert evaluate_dense(model, coco, workers=0).keys() >= {"mAP", "mask_mAP", "mask_mAR100"}


# Without training


def boxes_of_a_picture() -> Any:
    """A detector that sees one object in the left upper quarter of its input, whatever the input."""
    model = build("retinanet", "casvit_nano", num_classes=2, channels=16)

    def found(raw: Any, sizes: Any, padded: Any = None, originals: Any = None) -> list[Detections]:
        [(height, width)] = sizes
        assert padded[0] % 32 == padded[1] % 32 == 0
        box = torch.tensor([[0.0, 0.0, width / 2, height / 2]])
        return [Detections(rescaled(box, sizes[0], originals[0]), torch.tensor([0.8]), torch.tensor([1]))]

    model.postprocess = found
    return model


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (33, 500)])
def test_boxes_are_in_pixels_of_the_picture(size: tuple[int, int]) -> None:
    model = boxes_of_a_picture().train()
    picture = Image.new("RGB", size)
    result = detect(model, picture, image_size=48)
    assert model.training
    assert result.size == (size[1], size[0])
    np.testing.assert_allclose(result.boxes, [[0, 0, size[0] / 2, size[1] / 2]], rtol=1e-5)
    assert result.names == ("1",)
    assert len(predict_dense(model, picture, 48, score=0.9)) == 0


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "ssdlite", "semantic_fpn", "pspnet"])
def test_pictures_of_any_size_give_results_of_their_size(head: str) -> None:
    options: dict[str, Any] = {"output_stride": 32} if head == "pspnet" else {}
    if head in ("retinanet", "mask_rcnn", "ssdlite"):
        options["score_threshold"] = 0.0
    model = build(head, "casvit_nano", num_classes=2, **options)
    for width, height in ((37, 90), (64, 64)):
        result = predict_dense(model, Image.new("RGB", (width, height)), image_size=64, score=0.0)
        assert result.size == (height, width)
        assert result.class_map is not None or 0 < len(result) <= 200
        result.draw()


def test_files_folders_and_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = boxes_of_a_picture()
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_text("no picture")
    code = predict_files(model, [tmp_path], tmp_path / "out", image_size=32)
    said = capsys.readouterr()
    assert code == 1
    assert "a.png: 1 1 (0.80)" in said.out
    assert "b.jpg cannot be read as a picture" in said.err
    assert (tmp_path / "out" / "0001_a.png").is_file()
    assert "box" in (tmp_path / "out" / "predictions.json").read_text()

    video = tmp_path / "c.mp4"
    sv = import_supervision()
    with sv.VideoSink(str(video), sv.VideoInfo(width=64, height=48, fps=5, total_frames=4)) as sink:
        for i in range(4):
            sink.write_frame(np.full((48, 64, 3), 60 * i, np.uint8))
    assert predict_files(model, [video], tmp_path / "out", image_size=32) == 0
    drawn = sv.VideoInfo.from_video_path(str(tmp_path / "out" / "0001_c.mp4"))
    assert (drawn.width, drawn.height) == (448, 336)  # enlarged, as pictures are
    assert len(list(sv.get_video_frames_generator(str(tmp_path / "out" / "0001_c.mp4")))) == 4
    with pytest.raises(MetamixerError, match="a video needs a folder"):
        predict_files(model, [video])
    (tmp_path / "d.mp4").write_text("no video")
    with pytest.raises(MetamixerError, match="cannot be read as a video"):
        predict_video(model, tmp_path / "d.mp4", tmp_path / "e.mp4")
    assert not list(tmp_path.glob("*.part*"))


def test_annotations_are_perfect_predictions(coco: Path, maps: Path) -> None:
    objects = open_objects(coco, "val")
    entries = [entry for i in range(len(objects.pictures)) for entry in truth_of(objects, i).to_coco(i + 1)]
    assert coco_metrics(objects.pictures, entries, masks=True)["mask_mAP"] == pytest.approx(1)
    classes = open_class_maps(maps, "val")
    metrics = ClassMapMetrics.empty(3)
    for i in range(len(classes.pairs)):
        truth = torch.from_numpy(truth_of(classes, i).class_map)
        metrics.add(truth, truth)
    assert metrics.summary()["mIoU"] == 1


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reading_ahead_keeps_the_order(workers: int) -> None:
    assert list(read_ahead(lambda i: i * i, range(20), workers)) == [i * i for i in range(20)]

    def fails(i: int) -> int:
        if i == 3:
            raise MetamixerError("unreadable")
        return i

    with pytest.raises(MetamixerError, match="unreadable"):
        list(read_ahead(fails, range(20), workers))


def test_batches_hold_pictures_of_several_sizes(coco: Path) -> None:
    task = detector(coco, "mask_rcnn", augmentation="multiscale", image_size=96, backbone="casvit_nano")
    task.open()
    model = task.create_model()
    samples = []
    for seed in range(4):
        torch.manual_seed(seed)
        samples.append(task.sample(seed, None))
    assert len({tuple(sample["size"].tolist()) for sample in samples}) > 1
    pictures, targets = task.collate(samples)
    assert pictures.dtype == torch.uint8
    assert all(target["masks"].shape[1:] == pictures.shape[-2:] for target in targets)
    losses = task.loss(model, (pictures, targets))
    assert all(torch.isfinite(loss) for loss in losses.values())
    torch.manual_seed(7)
    first = task.sample(2, 64)
    torch.manual_seed(7)
    again = task.sample(2, 64)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_masks_must_be_there_to_be_learnt(coco: Path, tmp_path: Path) -> None:
    content = json.loads((coco / "annotations" / "instances_train.json").read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation")
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "val.json").write_text(json.dumps(content))
    for name in {image["file_name"] for image in content["images"]}:
        (tmp_path / name).write_bytes((coco / "train" / name).read_bytes())
    with pytest.raises(MetamixerError, match="holds no mask to learn from"):
        detector(tmp_path, "mask_rcnn").open()
    detector(tmp_path, "retinanet").open()


def test_one_object_without_a_mask_can_be_left_out(coco: Path, tmp_path: Path) -> None:
    root = shutil.copytree(coco, tmp_path / "set")
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][3].pop("segmentation")
    file.write_text(json.dumps(content))
    with pytest.raises(MetamixerError, match=r"1 × object without a mask.*annotation 3: the object has no mask"):
        detector(root, "mask_rcnn").open()
    task = detector(root, "mask_rcnn", bad_entries="drop")
    task.open()
    task.create_model()
    assert task.sample(3, None)["masks"].shape[0] == 0
    detector(root, "retinanet").open()


@pytest.mark.parametrize(
    ("expected", "settings"),
    [
        ("image_size", {"image_size": 8}),
        ("crop must be a multiple of 32", {"crop": 50}),
        ("scale must rise", {"scale": (2.0, 1.0)}),
        ("stride must be", {"inference": "slide", "window": 64, "stride": 70}),
        ("scales must be", {"scales": (0.0,)}),
        ("class_weights", {"class_weights": (-1.0,)}),
        ("3 classes need as many class_weights, not 1", {"class_weights": (1.0,)}),
        ("is not given: set data", {"data": ""}),
    ],
)
def test_settings_out_of_range(expected: str, settings: dict[str, Any], maps: Path) -> None:
    with pytest.raises(MetamixerError, match=expected):
        SemanticSegmentation(**{"data": str(maps), **settings}).open()


DENSE = (Detection, SemanticSegmentation)
DENSE_RECIPES = [name for name in list_recipes() if isinstance(get_recipe(name).task, DENSE)]


@pytest.mark.parametrize("name", DENSE_RECIPES)
def test_recipes_build_their_models(name: str) -> None:
    task = get_recipe(name).task
    assert task.data == ""
    assert "Command:" in describe_recipe(name)
    with torch.device("meta"):  # no memory, no weights
        model = build(task.head, task.backbone, 5, pretrained=False, **key_values(task.model_args))
    assert model.num_classes == 5
    assert task.model in get_recipe(name).folder


def test_every_kind_of_data_has_a_recipe() -> None:
    said = " ".join(describe_recipe(name) for name in DENSE_RECIPES)
    for kind in (
        "COCO, 12 epochs",
        "COCO, 36 epochs",
        "40,000 steps",
        "160,000 steps",
        "Cityscapes",
        "VOC",
        "your own",
    ):
        assert kind in said


def saved_segmenter(path: Path) -> DenseModel:
    model = build("semantic_fpn", NANO, num_classes=3, channels=16)
    model.pretrained_cfg |= {"label_names": ("ground", *shapes.NAMES), "input_size": (3, SIDE, SIDE)}
    save_checkpoint(model, path)
    return model


def test_the_verbs_know_detectors_and_segmenters(
    coco: Path, maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_segmenter(tmp_path / "segmenter.safetensors")
    assert main(["evaluate", str(tmp_path / "segmenter.safetensors"), "--data", str(maps), "--workers", "0"]) == 0
    assert "IoU/ground" in capsys.readouterr().out
    picture = str(maps / "val" / "images" / "0.png")
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "segmenter.safetensors"), picture, "--out", str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {"0001_0.png", "0001_0_classes.png", "predictions.json"}
    assert mm.predict(tmp_path / "segmenter.safetensors", picture).class_map.shape == (SIDE, SIDE)

    detector = build("retinanet", NANO, num_classes=2, channels=16)
    metrics = mm.evaluate(detector, coco, image_size=SIDE, workers=0)
    assert 0 <= metrics["mAP"] <= metrics["mAP50"] <= 1


def test_networks_of_other_channels_are_refused_in_one_sentence(
    maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grey.safetensors"
    save_checkpoint(build("semantic_fpn", NANO, 3, backbone_kwargs={"in_chans": 1}, channels=16), file)
    picture = str(maps / "val" / "images" / "0.png")
    for asked in (["predict", str(file), picture, picture], ["evaluate", str(file), "--data", str(maps)]):
        assert main(asked) == 1
        said = capsys.readouterr().err
        assert said.count("the network reads 1 channels, and pictures have three: red, green and blue") == 1
        assert said.count("\n") == 1


def test_evaluate_takes_views_and_formats(
    coco: Path, maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = saved_segmenter(tmp_path / "segmenter.safetensors")
    asked = ["evaluate", str(tmp_path / "segmenter.safetensors"), "--data", str(maps), "--workers", "0"]
    assert main([*asked, "--mirror", "--scales", "1", "2", "--window", "32", "--stride", "16"]) == 0
    expected = evaluate_dense(model, maps, how=SegmentationInference(32, 16, (1.0, 2.0), True), workers=0)
    plain = evaluate_dense(model, maps, workers=0)
    assert plain["pixel_accuracy"] != expected["pixel_accuracy"]
    assert f"{expected['pixel_accuracy']:.4f}" in capsys.readouterr().out

    both = shutil.copytree(coco, tmp_path / "both")
    (both / "data.yaml").write_text("names: [one, two]\n")
    detector = build("retinanet", NANO, num_classes=2, channels=16)
    detector.pretrained_cfg |= {"label_names": shapes.NAMES, "input_size": (3, SIDE, SIDE)}
    save_checkpoint(detector, tmp_path / "detector.safetensors")
    asked = ["evaluate", str(tmp_path / "detector.safetensors"), "--data", str(both), "--workers", "0"]
    assert main(asked) != 0
    assert "more than one format (coco and yolo)" in capsys.readouterr().err
    assert main([*asked, "--format", "coco"]) == 0
    assert "mAP50" in capsys.readouterr().out
