"""Prediction and evaluation with a classifier whose answers are known: it names the strongest colour channel."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import metamixer as mm
from metamixer.tasks.predict import Prediction

CHANNELS = ("red", "green", "blue")


class StrongestChannel(nn.Module):
    """Logits are ten times the mean of each channel."""

    def __init__(self, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.num_classes = 3
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.pretrained_cfg = dict(
            input_size=(3, 16, 16),
            crop_pct=1.0,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            interpolation="bicubic",
            label_names=names,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.mean((2, 3))


def save(path: Path, colour: str, size: tuple[int, int] = (20, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_predict_names_scores_and_indices(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", "#0000ff")
    result = mm.predict(StrongestChannel(CHANNELS), path, topk=2)
    assert result.labels[0] == "blue"
    assert result.indices[0] == 2
    assert result.scores == pytest.approx([math.exp(10) / (math.exp(10) + 2), 1 / (math.exp(10) + 2)])
    assert json.loads(json.dumps(result.to_dict())) == {
        "source": str(path),
        "labels": list(result.labels),
        "scores": list(result.scores),
        "indices": list(result.indices),
    }


def test_predict_without_names_gives_indices_and_caps_topk(tmp_path: Path) -> None:
    result = mm.predict(StrongestChannel(None), save(tmp_path / "a.png", "#00ff00"), topk=5)
    assert result.labels == result.indices
    assert sorted(result.indices) == [0, 1, 2]
    assert result.indices[0] == 1
    assert sum(result.scores) == pytest.approx(1)


def test_predict_keeps_mode_and_takes_a_picture_upright() -> None:
    model = StrongestChannel(CHANNELS).train()
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # transparent red is white
    assert mm.predict(model, clear, topk=3).scores == pytest.approx([1 / 3] * 3)
    assert model.training
    rotated = Image.new("RGB", (8, 4), "red")
    rotated.getexif()[0x0112] = 6
    assert mm.predict(model, rotated).picture.size == (4, 8)
    assert mm.predict(model, rotated).source is None


def test_predict_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    model = StrongestChannel(CHANNELS)
    with pytest.raises(mm.MetamixerError, match="no such file"):
        mm.predict(model, tmp_path / "missing.jpg")
    with pytest.raises(mm.MetamixerError, match="topk must be a whole number from 1"):
        mm.predict(model, Image.new("RGB", (4, 4)), topk=0)
    with pytest.raises(mm.MetamixerError, match="no classifier"):
        mm.predict(mm.create_model("metaformer_nano", num_classes=0), Image.new("RGB", (4, 4)))
    with pytest.raises(mm.MetamixerError, match=r"unknown model 'afnet_nano'; did you mean 'affnet_nano'\?"):
        mm.predict("afnet_nano", Image.new("RGB", (4, 4)))


def test_drawing_shows_the_picture_and_bars_as_long_as_the_scores() -> None:
    picture = Image.new("RGB", (300, 100), (255, 0, 0))
    labels = ("a label much too long for the room that it has beside the bars", "Übergröße", "c")
    drawn = Prediction(labels, (0.5, 0.25, 0.0), (0, 1, 2), picture).draw(side=150)
    pixels = np.asarray(drawn)
    red = (pixels == (255, 0, 0)).all(-1)
    assert red.sum() == 150 * 50
    lengths = {}
    for colour in ((0x1F, 0x6F, 0xB2), (0x8D, 0xB8, 0xDC)):
        columns = np.flatnonzero((pixels == colour).all(-1).any(0))
        lengths[colour] = len(columns)
    assert lengths[0x1F, 0x6F, 0xB2] == 160
    assert lengths[0x8D, 0xB8, 0xDC] == 80
    margin = pixels[:, -16:]
    assert (margin == 255).all()  # nothing runs over the right edge
    # One pixel can be drawn too.
    assert Prediction((7,), (1.0,), (7,), Image.new("RGB", (1, 1))).draw().size[1] > 50


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of red, one of which is blue, and two of blue."""
    for i, colour in enumerate(("red", "red", "blue")):
        save(tmp_path / "val" / "red" / f"{i}.png", colour)
    for i in range(2):
        save(tmp_path / "val" / "blue" / f"{i}.png", "blue")
    return tmp_path


def test_evaluate_matches_folders_by_name(folder: Path) -> None:
    """The folder's order (blue, red) is not the model's, and it has fewer classes."""
    model = StrongestChannel(CHANNELS)
    metrics = mm.evaluate(model, folder, workers=0)
    assert metrics.count == 5
    assert metrics.top1 == pytest.approx(80)
    assert metrics.top5 == 100
    right = math.log(1 + 2 * math.exp(-10))
    assert metrics.loss == pytest.approx((4 * right + right + 10) / 5, rel=1e-4)
    by_twos = mm.evaluate(model, folder / "val", workers=0, batch_size=2)
    assert (by_twos.top1, by_twos.count) == (metrics.top1, 5)
    assert by_twos.loss == pytest.approx(metrics.loss, rel=1e-5)
    assert model.training


def test_evaluate_names_a_class_that_the_model_does_not_know(folder: Path) -> None:
    save(folder / "val" / "purple" / "0.png", "purple")
    with pytest.raises(mm.MetamixerError, match="'purple' is none of the 3 known classes"):
        mm.evaluate(StrongestChannel(CHANNELS), folder, workers=0)


def test_evaluate_without_names_wants_as_many_folders(folder: Path) -> None:
    with pytest.raises(mm.MetamixerError, match="holds 2 class folders, the model has 3 classes and no names"):
        mm.evaluate(StrongestChannel(None), folder, workers=0)
    save(folder / "val" / "green" / "0.png", "lime")
    # Sorted: blue 0, green 1, red 2. Of the model (red 0, green 1, blue 2) the green picture and the blue one in
    # the folder "red" agree with that.
    assert mm.evaluate(StrongestChannel(None), folder, workers=0).top1 == pytest.approx(100 * 2 / 6)


def test_evaluate_refuses_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(mm.MetamixerError, match="missing: no such folder"):
        mm.evaluate(StrongestChannel(None), tmp_path / "missing")
    with pytest.raises(mm.MetamixerError, match="holds no class folders"):
        mm.evaluate(StrongestChannel(None), tmp_path)
    with pytest.raises(mm.MetamixerError, match="batch_size must be a whole number from 1"):
        mm.evaluate(StrongestChannel(None), tmp_path, batch_size=0)
