"""A run on almost no data: what it writes, what it refuses, how its switches change it. See test_cli.py for a model
that learns, test_resume.py for runs that are interrupted, test_distributed.py for several processes."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import metamixer as mm
from metamixer.data.image_folder import ImageFolder
from metamixer.tasks.classification import Classification
from metamixer.train.records import STEPS_BETWEEN_EVENTS


def losses(config: mm.TrainConfig) -> list[float]:
    """The loss of every step."""
    found: list[float] = []
    mm.train(config, on_step=lambda step: found.append(sum(step.losses.values())))
    return found


def with_task(config: mm.TrainConfig, **changes: Any) -> mm.TrainConfig:
    return replace(config, task=replace(config.task, **changes))


def copy_of(pictures: Path, target: Path) -> Path:
    for file in pictures.rglob("*.png"):
        copy = target / file.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return target


def test_public_name_is_callable_after_the_package_was_imported() -> None:
    assert callable(mm.train)
    assert mm.train.TrainConfig is mm.TrainConfig


def test_the_runs_folder(config: mm.TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    result = mm.train(replace(config, epochs=3, batch_size=4))
    run = Path(config.out or "")
    names = {".lock", "best.safetensors", "last.safetensors", "config.json", "environment.json", "metrics.csv"}
    assert {path.name for path in run.iterdir()} == names | {"checkpoints", "tensorboard"}
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_000000024.pt", "step_000000036.pt"]

    settings = json.loads((run / "config.json").read_text())
    assert (settings["model"], settings["epochs"], settings["lr"]) == ("metaformer_nano", 3, config.lr)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["command"] == sys.argv
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["processes"] == 1

    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "12"), ("2", "24"), ("3", "36")]
    assert {"lr", "train_loss", "val_loss", "top1", "top5", "images_per_second", "seconds"} <= rows[0].keys()
    assert result.value == max(float(row["top1"]) for row in rows) == pytest.approx(result.metrics["top1"])
    assert rows[result.epoch - 1]["top1"] == str(round(result.value, 6))
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3
    assert shown[0].startswith("epoch 1  step 12  lr ")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [10, 20, 30]
    assert [event.step for event in events.Scalars("epoch/top1")] == [12, 24, 36]
    assert STEPS_BETWEEN_EVENTS == 10
    assert mm.predict(result.last, Image.new("RGB", (9, 9), (200, 40, 40)), topk=1).labels[0] in (
        "blue",
        "green",
        "red",
    )


def test_a_folder_with_a_run_is_not_overwritten_unasked(config: mm.TrainConfig) -> None:
    config = replace(config, epochs=1)
    mm.train(config)
    run = Path(config.out or "")
    with pytest.raises(mm.MetamixerError, match=r"already holds a run; go on with --resume auto, .* --overwrite$"):
        mm.train(config)
    again = mm.train(replace(config, overwrite=True, mixed_precision="bf16"))  # another precision in this process
    assert again.epoch == 1
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_one_seed_gives_one_run_whatever_the_workers_and_another_seed_another(config: mm.TrainConfig) -> None:
    config = with_task(replace(config, epochs=1), policy="rand", erase=0.5, drop_path_rate=0.2, mixup=0.2, cutmix=1.0)
    first = losses(config)
    assert len(first) == 6
    assert losses(replace(config, overwrite=True)) == first
    assert losses(replace(config, overwrite=True, workers=2)) == first
    other = losses(replace(config, overwrite=True, seed=1))
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_an_accumulated_batch_is_the_batch(config: mm.TrainConfig) -> None:
    """With the norms' statistics frozen, as they are taken over each part."""
    config = replace(config, task=Frozen(**vars_of(config.task)), epochs=1)
    whole = losses(config)
    parts = losses(replace(config, accumulate=4, overwrite=True))
    assert parts == pytest.approx(whole, abs=1e-5)
    assert abs(whole[0] - whole[-1]) > 1e-2  # the weights did move


class Frozen(Classification):
    """Batch norms keep statistics taken beforehand, so that no sample sees another."""

    def create_model(self) -> nn.Module:
        model = super().create_model()
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in norms:
            module.momentum = 1.0
        with torch.no_grad():  # of noise, in which a signal keeps its strength from layer to layer
            model.train()(torch.randn(16, 3, 32, 32))
        for module in norms:
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]
            module.training = False
        return model


def vars_of(task: Any) -> dict[str, Any]:
    from dataclasses import fields

    return {field.name: getattr(task, field.name) for field in fields(task)}


def test_fewer_pictures_than_a_batch(config: mm.TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    mm.train(replace(config, batch_size=128, epochs=1, ema_decay=0.0, accumulate=5))
    assert "batch size lowered from 128 to 45 of 48 training samples" in capsys.readouterr().err
    assert json.loads((Path(config.out or "") / "config.json").read_text())["batch_size"] == 45
    with pytest.raises(
        mm.MetamixerError, match="48 training samples are too few for 1 processes that work in 60 parts"
    ):
        mm.train(replace(config, accumulate=60))
    with pytest.raises(mm.MetamixerError, match="make --batch-size a multiple of 3"):
        mm.train(replace(config, accumulate=3))


def test_batches_of_several_sizes(config: mm.TrainConfig) -> None:
    seen: list[tuple[int, ...]] = []

    class Watching(Classification):
        def loss(self, model: nn.Module, batch: Any) -> Any:
            seen.append(tuple(batch[0].shape))
            return super().loss(model, batch)

    config = replace(config, task=Watching(**vars_of(config.task)), epochs=1)
    mm.train(replace(config, sizes=(32, 16, 48)))
    assert set(seen) <= {(8, 3, 32, 32), (32, 3, 16, 16), (3, 3, 48, 48)}
    assert len({shape[0] for shape in seen}) > 1
    seen.clear()
    mm.train(replace(config, progressive=(16, 32), epochs=3, overwrite=True))
    assert [shape[-1] for shape in seen] == [16] * 6 + [32] * 12  # 16 + 16 / 1.6 is 26, nearer to 32


@pytest.mark.parametrize(
    "changes",
    [
        dict(opt="muon", lr=0.004),
        dict(opt="lion", opt_args=("betas=(0.9, 0.95)",), layer_decay=0.7),
        dict(sched="poly", clip_grad=0.0, ema_decay=0.0),
        dict(sched="wsd", warmup_epochs=0.5, channels_last=False, repeats=3),
        dict(mixed_precision="bf16", grad_checkpointing=True),
    ],
)
def test_optimisers_schedules_and_switches(config: mm.TrainConfig, changes: dict[str, Any]) -> None:
    found = losses(replace(config, epochs=1, **changes))
    assert len(found) == 6
    assert max(found) < 3


def test_schedules_of_detectors_and_segmenters(config: mm.TrainConfig) -> None:
    """MMDetection's: a tenth at epochs 8 and 11; MMSegmentation's: a power of 0.9 of what is left."""
    from metamixer.train.optim import create_optimizer, create_schedule

    def rates(**changes: Any) -> list[float]:
        found = replace(config, epochs=12, lr=1.0, warmup_lr=0.001, warmup_epochs=0.5, **changes)
        optimizer = create_optimizer(nn.Linear(1, 1), found)
        schedule = create_schedule(optimizer, found, steps_per_epoch=100)
        rates = []
        for step in range(1200):
            schedule.step_update(step)
            rates.append(optimizer.param_groups[0]["lr"])
        return rates

    steps = rates(sched="multistep", sched_args=("decay_milestones=(8,11)", "decay_rate=0.1"))
    assert [steps[i] for i in (0, 25, 50, 798, 800, 1098, 1100)] == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01])
    power = rates(sched="poly", sched_args=("decay_rate=0.9",), min_lr=0.0)
    assert [power[i] for i in (300, 600, 1199)] == pytest.approx([0.75**0.9, 0.5**0.9, (1 / 1200) ** 0.9])


def test_pictures_kept_in_memory_give_the_same_losses(config: mm.TrainConfig) -> None:
    config = replace(config, epochs=1)
    read = losses(config)
    kept = with_task(replace(config, overwrite=True), in_memory=True)
    assert losses(kept) == read
    assert isinstance(kept.task, Classification)
    assert not isinstance(kept.task.train, ImageFolder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_gpu_and_resumed(config: mm.TrainConfig, precision: Any, tmp_path: Path) -> None:
    config = replace(config, mixed_precision=precision, workers=1)
    whole = losses(config)
    assert len(whole) == 12
    mm.train(replace(config, out=str(tmp_path / "half"), epochs=1))
    resume = replace(config, out=str(tmp_path / "half"), resume="auto", allow_changes=True)
    assert len(losses(resume)) == 6
    assert json.loads((tmp_path / "half" / "environment.json").read_text())["device"] == torch.cuda.get_device_name()


def test_weight_decay_and_learning_rates_of_the_groups(config: mm.TrainConfig) -> None:
    from metamixer.train.optim import create_optimizer

    model = mm.create_model("metaformer_nano", num_classes=3)
    groups = create_optimizer(model, replace(config, layer_decay=0.5)).param_groups
    for group in groups:
        flat = {weight.ndim <= 1 for weight in group["params"]}
        assert len(flat) == 1
        assert group["weight_decay"] == (0.0 if flat == {True} else config.weight_decay)
    scales = [group["lr_scale"] for group in groups]
    assert max(scales) == 1.0
    assert len(set(scales)) > 2


def test_pytorchs_own_optimisers_are_fused_unless_told_otherwise(config: mm.TrainConfig) -> None:
    from metamixer.train.optim import create_optimizer

    def fused(**changes: Any) -> bool | None:
        return create_optimizer(nn.Linear(1, 1), replace(config, **changes)).defaults.get("fused")

    assert fused(opt="adamw") is True
    assert fused(opt="sgd", opt_args=("fused=False",)) is False
    assert fused(opt="lamb") is None


def test_compiled_training_gives_the_same_losses(config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the eager backend: what is tested is our use of the compiler."""
    compile_ = nn.Module.compile
    calls = []

    def eager(self: nn.Module) -> None:
        calls.append(self)
        compile_(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", eager)
    config = replace(config, epochs=1)
    assert losses(replace(config, compile=True)) == pytest.approx(losses(replace(config, overwrite=True)), abs=1e-4)
    assert len(calls) == 1


def test_trackers_get_the_metrics(config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    tracker: Any = ModuleType("trackio")
    tracker.init = lambda **settings: calls.append(("init", settings))
    tracker.log = lambda row, step: calls.append(("log", (step, row)))
    tracker.finish = lambda: calls.append(("finish", None))
    monkeypatch.setitem(sys.modules, "trackio", tracker)
    monkeypatch.setitem(sys.modules, "wandb", None)
    mm.train(replace(config, log=("trackio",)))
    assert [name for name, _ in calls] == ["init", "log", "log", "log", "finish"]  # step 10, two epochs
    assert calls[0][1]["config"]["model"] == "metaformer_nano"
    assert calls[-2][1][0] == 12
    assert "epoch/top1" in calls[-2][1][1]
    with pytest.raises(mm.MetamixerError, match="--log wandb needs a package that is missing: pip install wandb"):
        mm.train(replace(config, log=("wandb",), overwrite=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_picture_is_named(config: mm.TrainConfig, pictures: Path, tmp_path: Path, workers: int) -> None:
    data = copy_of(pictures, tmp_path / "data")
    path = data / "train" / "red" / "01.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(mm.MetamixerError) as caught:
        mm.train(with_task(replace(config, workers=workers), data=str(data)))
    assert str(caught.value).startswith(f"{path} cannot be read as a picture (")
    assert "\n" not in str(caught.value)


def test_corrupt_pictures_are_skipped_and_listed_or_found_before(
    config: mm.TrainConfig, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy_of(pictures, tmp_path / "data")
    broken = [data / "train" / "red" / "01.png", data / "val" / "blue" / "02.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    config = with_task(replace(config, epochs=1, workers=1), data=str(data), bad_pictures="skip")
    result = mm.train(config)
    assert result.metrics["count"] == 11
    assert f"2 unreadable pictures were skipped: {broken[0]}, {broken[1]}" in capsys.readouterr().err
    with pytest.raises(mm.MetamixerError, match="1 of 48 pictures cannot be read; the first"):
        mm.train(with_task(replace(config, overwrite=True), bad_pictures="check"))


def test_a_loss_that_is_no_number_stops_the_run(config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, count = Classification.loss, 0

    def failing(task: Classification, model: nn.Module, batch: Any) -> Tensor:
        nonlocal count
        count += 1
        return loss(task, model, batch) * (torch.nan if count == 5 else 1)  # type: ignore[operator]

    monkeypatch.setattr(Classification, "loss", failing)
    out = Path(config.out or "")
    with pytest.raises(mm.MetamixerError) as caught:
        mm.train(replace(config, save_every=2))
    message = str(caught.value)
    assert message.startswith("the loss became nan in step 5, on ")
    assert message.count(".png") == 8
    assert message.endswith(f"; the last good checkpoint is {out / 'checkpoints' / 'step_000000004.pt'}; lower --lr")
    count = 4
    with pytest.raises(mm.MetamixerError, match=r"step 1, on .* and 8 more; no checkpoint was written before"):
        mm.train(replace(config, batch_size=16, overwrite=True))


def test_places_names_and_data_that_do_not_fit(config: mm.TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusals: list[tuple[str, dict[str, Any]]] = [
        ("is a file where a folder is needed", dict(out=str(tmp_path / "file"))),
        ("cannot be created", dict(out=str(tmp_path / "file" / "run"))),
        ("unknown optimiser 'adamx'; did you mean", dict(opt="adamx")),
        ("the optimiser adamw refuses its arguments", dict(opt_args=("speed=3",))),
        ("the schedule wsd does not fit", dict(sched="wsd", warmup_epochs=9)),
        ("the schedule multistep does not fit", dict(sched="multistep", sched_args=("speed=3",))),
    ]
    for sentence, change in refusals:
        with pytest.raises(mm.MetamixerError, match=sentence):
            mm.train(replace(config, **change))
    tasks: list[tuple[str, dict[str, Any]]] = [
        ("did you mean 'metaformer_nano'", dict(model="metaformer_nan")),
        ("--model-args: colour is no entry that is known there", dict(model_args=("colour=3",))),
        ("missing: no such folder", dict(data=str(tmp_path / "missing"))),
        ("needs a folder 'train'", dict(data=str(tmp_path))),
        ("the folder of pictures is not given", dict(data="")),
    ]
    for sentence, change in tasks:
        with pytest.raises(mm.MetamixerError, match=sentence):
            mm.train(with_task(config, **change))
    assert not (tmp_path / "run" / "best.safetensors").exists()
