"""The loop's configuration, its refusals, and a run on almost no data. A run that learns is in test_cli.py."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.tasks.classification import Classification
from metamixer.train.loop import _size_at

MODEL = "metaformer_nano"


def make_data(root: Path, classes: tuple[str, ...] = ("blue", "red"), train: int = 2) -> Path:
    for split, count in {"train": train, "val": 1}.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (24, 20), name).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def config(tmp_path: Path) -> mm.TrainConfig:
    """Four pictures, one epoch."""
    data = make_data(tmp_path / "data")
    return mm.TrainConfig(
        MODEL, str(data), out=str(tmp_path / "run"), epochs=1, batch_size=4, image_size=32, workers=0, warmup_epochs=0
    )


def test_public_name_is_callable_after_the_package_was_imported() -> None:

    assert callable(mm.train)
    assert mm.train.TrainConfig is mm.TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("warmup_epochs", -1.0),
        ("sched", "cosin"),
        ("smoothing", 1.0),
        ("image_size", 8),
        ("progressive_from", 0),
        ("crop_scale", (0.8, 0.5)),
        ("crop_scale", (0.0, 1.0)),
        ("ema_decay", 1.0),
        ("clip_grad", -1.0),
        ("drop_path_rate", 1.0),
        ("workers", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(mm.MetamixerError, match=field):
        mm.TrainConfig(MODEL, "data", **{field: value})


def test_sizes_grow_in_steps_of_sixteen_and_end_at_the_full_size() -> None:
    config = mm.TrainConfig(MODEL, "data", epochs=11, progressive_from=32)
    sizes = [_size_at(epoch, config, 64) for epoch in range(11)]
    assert sizes == [32, 32, 32, 48, 48, 48, 64, 64, 64, 64, 64]
    assert _size_at(10, config, 100) == 100
    assert _size_at(0, replace(config, progressive_from=None), 100) == 100
    assert _size_at(0, replace(config, epochs=1), 64) == 64


def test_fewer_pictures_than_a_batch(config: mm.TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = mm.train(replace(config, batch_size=128, epochs=2, ema_decay=0.0))
    assert "batch size lowered from 128 to the 4 training pictures" in capsys.readouterr().err
    run = Path(config.out or "")
    assert sorted(path.name for path in run.iterdir()) == [
        "best.safetensors",
        "config.json",
        "last.safetensors",
        "metrics.csv",
    ]
    assert json.loads((run / "config.json").read_text())["batch_size"] == 4
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert header.startswith("epoch,image_size,lr,train_loss,val_loss,top1,top5,images_per_second")
    assert len(rows) == 2
    assert 0 <= result.top1 <= 100
    assert mm.predict(result.last, Image.new("RGB", (9, 9), "red")).labels[0] in ("blue", "red")

    with pytest.raises(mm.MetamixerError, match="already holds a run"):
        mm.train(config)
    # Another precision in the same process, and a validation folder with fewer classes.
    for file in (Path(config.data) / "val" / "red").iterdir():
        file.unlink()
    (Path(config.data) / "val" / "red").rmdir()
    again = mm.train(replace(config, overwrite=True, mixed_precision="bf16"))
    assert again.epoch == 1
    assert len((run / "metrics.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_named(config: mm.TrainConfig, workers: int) -> None:
    path = Path(config.data) / "train" / "red" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(mm.MetamixerError) as caught:
        mm.train(replace(config, workers=workers))
    assert str(caught.value).startswith(f"{path} cannot be read as a picture (")
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_no_number_stops_the_run(config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda *arguments: loss(*arguments) * torch.nan)
    with pytest.raises(mm.MetamixerError, match="the loss became nan in epoch 1, step 0; lower --lr"):
        mm.train(config)


def test_places_names_and_data_that_do_not_fit(config: mm.TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusals = {
        "is a file where a folder is needed": dict(out=str(tmp_path / "file")),
        "cannot be created": dict(out=str(tmp_path / "file" / "run")),
        "did you mean 'metaformer_nano'": dict(model="metaformer_nan"),
        "unknown optimiser 'adamx'; did you mean": dict(opt="adamx"),
        "missing: no such folder": dict(data=str(tmp_path / "missing")),
        "needs a folder 'train'": dict(data=str(tmp_path)),
    }
    for sentence, change in refusals.items():
        with pytest.raises(mm.MetamixerError, match=sentence):
            mm.train(replace(config, **change))
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_classes_that_cannot_be_learnt(tmp_path: Path) -> None:
    with pytest.raises(mm.MetamixerError, match="holds the class 'red' alone"):
        Classification(make_data(tmp_path / "one", ("red",)))
    data = make_data(tmp_path / "two")
    (data / "val" / "blue").rename(data / "val" / "green")
    with pytest.raises(mm.MetamixerError, match="'green' is none of the 2 known classes"):
        Classification(data)
    (data / "val").rename(data / "other")
    with pytest.raises(mm.MetamixerError, match="named one of val, validation, test"):
        Classification(data)
