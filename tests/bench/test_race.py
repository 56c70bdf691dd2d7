"""A race on almost no data: what it holds equal, writes, takes up again and refuses."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import metamixer as mm
from metamixer.bench import count_macs
from metamixer.bench.race import RaceResult, RaceTask, command, grid, race, speed
from metamixer.bench.race.contenders import contenders
from metamixer.bench.race.report import standings_table, write_report
from metamixer.bench.race.speed import latencies
from metamixer.bench.race.task import FirstOfEachClass
from metamixer.cli import main
from metamixer.data import files, folder_lock
from metamixer.data.folder_lock import alone_in
from metamixer.deploy import onnx
from metamixer.errors import MetamixerError
from metamixer.mixers import DynamicSpectrumMixer, Pooling
from metamixer.train.interruption import TrainingInterruptedError

MIXERS = ("pooling", "dsm:dynamic=False")
ROUNDS = 2
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}  # metaformer_nano made smaller
MODEL_ARGS = tuple(f"{key}={value!r}".replace(" ", "") for key, value in SMALL.items())


class Raced(NamedTuple):
    """A finished race, its settings, and by run folder the sums of the pictures of every step."""

    training: mm.TrainConfig
    result: RaceResult
    folder: Path
    batches: dict[str, list[float]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` with 10 and ``val`` with 6 pictures of 20 × 20 pixels for each of three colours."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in {"train": 10, "val": 6}.items():
        for name, colour in {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + random.integers(-30, 31, (20, 20, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i:02}.png")
    return root


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stands_for_onnx(model: nn.Module, picture: Tensor, path: Path, threads: int) -> Callable[[], object]:
    """Instead of an exported network, since exporting takes longer than all trainings."""
    return lambda: model(picture)


@pytest.fixture(scope="module")
def raced(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Raced:
    """Two mixers, two seeds, two epochs of three steps on 8 of 10 pictures per class."""
    folder = tmp_path_factory.mktemp("race")
    task = RaceTask(data=str(pictures), image_size=32, pictures=8, val_pictures=4, model_args=MODEL_ARGS)
    training = mm.TrainConfig(task, out=str(folder), epochs=2, batch_size=8, workers=0)
    batches: dict[str, list[float]] = defaultdict(list)
    loss, train = RaceTask.loss, grid.train

    def watched(config: mm.TrainConfig) -> Any:
        def noting(self: RaceTask, model: nn.Module, batch: Any) -> Any:
            batches[str(config.out)].append(float(batch[0].double().sum()))
            return loss(self, model, batch)

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(RaceTask, "loss", noting)
            return train(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "train", watched)
        patch.setattr(speed, "_in_onnx_runtime", stands_for_onnx)
        result = race(training, MIXERS, seeds=2, rounds=ROUNDS)
    return Raced(training, result, folder, dict(batches))


def test_every_mixer_sees_the_same_batches(raced: Raced) -> None:
    def of(mixer: str, seed: int) -> list[float]:
        return raced.batches[str(raced.folder / "runs" / mixer / f"seed_{seed}")]

    assert len(of("pooling", 0)) == 6
    assert of("pooling", 0) == of("dsm_dynamic=False", 0)
    assert of("pooling", 1) == of("dsm_dynamic=False", 1)
    assert of("pooling", 0) != of("pooling", 1)


def test_cells_tell_the_last_epoch_of_their_runs(raced: Raced) -> None:
    assert [(cell.mixer, cell.seed) for cell in raced.result.cells] == [(m, s) for s in (0, 1) for m in MIXERS]
    for cell in raced.result.cells:
        run = raced.folder / "runs" / cell.mixer.replace(":", "_") / f"seed_{cell.seed}"
        rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
        assert cell.top1 == float(rows[-1]["top1"])
        assert [row["train_loss"] for row in cell.curve] == [float(row["train_loss"]) for row in rows]
        assert json.loads((run / "config.json").read_text())["seed"] == cell.seed
        assert not (run / "checkpoints").exists()


def test_weights_load_with_their_mixer(raced: Raced) -> None:
    kinds: dict[str, type[nn.Module]] = {"pooling": Pooling, "dsm_dynamic=False": DynamicSpectrumMixer}
    for name, kind in kinds.items():
        model = mm.create_model(
            "metaformer_nano", checkpoint=raced.folder / "runs" / name / "seed_0" / "last.safetensors"
        )
        mixers = [module for module in model.modules() if isinstance(module, kind)]
        assert len(mixers) == 4
        assert not any(getattr(mixer, "dynamic", False) for mixer in mixers)


def test_sizes_and_speeds(raced: Raced) -> None:
    for standing in raced.result.standings:
        options = {"mixer_args": {"dynamic": False}} if standing.mixer != "pooling" else {}
        mixer = standing.mixer.split(":")[0]
        model = mm.create_model("metaformer_nano", mixer=mixer, num_classes=3, **SMALL, **options)
        found = standing.speed
        assert found.parameters == sum(p.numel() for p in model.parameters())
        assert found.merged_parameters == sum(p.numel() for p in mm.merge(model).parameters())
        assert found.macs == count_macs(mm.merge(model), 32)
        assert found.images_per_second > 0
        assert found.onnx is not None
        assert 0 < found.torch.low <= found.torch.median_ms <= found.torch.high


def test_tables_and_json_hold_the_standings(raced: Raced) -> None:
    rows = list(csv.DictReader((raced.folder / "standings.csv").read_text().splitlines()))
    assert [row["mixer"] for row in rows] == [s.mixer for s in raced.result.standings]
    assert [float(row["top1"]) for row in rows] == [s.top1 for s in raced.result.standings]
    assert all(float(row["onnx_median_ms"]) > 0 for row in rows)
    cells = list(csv.DictReader((raced.folder / "cells.csv").read_text().splitlines()))
    assert [(row["mixer"], int(row["seed"])) for row in cells] == [(c.mixer, c.seed) for c in raced.result.cells]
    content = json.loads((raced.folder / "race.json").read_text())
    assert content["pictures"] == {"classes": 3, "training": 24, "validation": 12}
    assert content["settings"]["model"] == "metaformer_nano"
    assert "seed" not in content["settings"]
    assert len(content["cells"][0]["curve"]) == 2


def test_page_stands_alone(raced: Raced) -> None:
    page = (raced.folder / "report.html").read_text()
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert re.findall(r"url\(|@import|https?://", page) == []
    assert page.count("data:image/png;base64,") == 2
    for standing in raced.result.standings:
        assert standing.mixer in page
        assert f"{standing.top1:.2f} ± {standing.top1_std:.2f}" in page
        assert f"{standing.speed.parameters:,}" in page
    assert "24 pictures of 3 classes" in page
    for name in ("pareto.png", "curves.png"):
        with Image.open(raced.folder / name) as picture:
            assert picture.width > 800


def test_exports_lie_where_the_next_one_clears_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[Path] = []

    def note_and_refuse(model: nn.Module, picture: Tensor, path: Path, threads: int) -> None:
        rooms.append(path.parent)
        raise MetamixerError("no runtime")

    monkeypatch.setattr(speed, "_in_onnx_runtime", note_and_refuse)
    latencies({"conv": nn.Conv2d(3, 1, 1)}, size=8, threads=1, rounds=1)
    assert re.fullmatch(r"\..+-\d+\.part", rooms[0].name)
    assert not rooms[0].exists()


def test_latencies_in_both_runtimes() -> None:
    timings, missing = latencies({"conv": nn.Conv2d(3, 1, 1)}, size=8, threads=1, rounds=2)
    assert set(timings) == {("conv", "torch"), ("conv", "onnx")}
    assert missing == {}


def test_without_onnx_runtime_the_report_says_so(raced: Raced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        raise MetamixerError("install it with: pip install 'metamixer[deploy]'")

    monkeypatch.setattr(onnx, "check", check)
    timings, missing = latencies({"conv": nn.Conv2d(3, 1, 1)}, size=8, threads=1, rounds=1)
    assert list(timings) == [("conv", "torch")]
    assert missing == {"conv": "install it with: pip install 'metamixer[deploy]'"}

    without = [
        replace(s, speed=replace(s.speed, onnx=None, onnx_missing=missing["conv"])) for s in raced.result.standings
    ]
    result = replace(raced.result, standings=without)
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("not measured: install it with: pip install &#39;metamixer[deploy]&#39;") == 2
    assert "fastest in ONNX Runtime" not in page
    assert "pip install" in str(standings_table(result).caption)
    with Image.open(tmp_path / "pareto.png") as narrow, Image.open(raced.folder / "pareto.png") as wide:
        assert 2 * narrow.width == pytest.approx(wide.width, abs=2)


def test_finished_cells_are_not_run_again(
    raced: Raced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(raced.folder, tmp_path / "race")
    (folder / "runs" / "pooling" / "seed_1" / "cell.json").unlink()
    (folder / "report.html").unlink()
    trained: list[str] = []
    train = grid.train
    monkeypatch.setattr(grid, "train", lambda config: (trained.append(str(config.out)), train(config)))
    monkeypatch.setattr(grid, "measure", lambda *arguments: pytest.fail("measured again"))
    shutil.rmtree(folder / "runs" / "pooling" / "seed_1")
    arguments = f"--data {raced.training.task.data} --image-size 32 --pictures 8 --val-pictures 4"  # type: ignore[attr-defined]
    arguments += f" --model-args {' '.join(MODEL_ARGS)}"
    arguments += f" --epochs 2 --batch-size 8 --workers 0 --mixers {','.join(MIXERS)} --seeds 2 --rounds {ROUNDS}"
    assert main(["race", *arguments.split(), "--out", str(folder)]) == 0
    assert trained == [str(folder / "runs" / "pooling" / "seed_1")]
    shown = capsys.readouterr().out
    assert "pooling, seed 1 (3 of 4)" in shown
    assert "dsm:dynamic=False" in shown
    assert (folder / "report.html").is_file()
    again = json.loads((folder / "race.json").read_text())
    first = json.loads((raced.folder / "race.json").read_text())
    timed = ("images_per_second", "seconds")
    for cell in (*again["cells"], *first["cells"]):
        cell["curve"] = [{name: row[name] for name in row if name not in timed} for row in cell["curve"]]
        del cell["images_per_second"]
    assert again == first


def test_an_interrupted_cell_goes_on(raced: Raced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = replace(raced.training, out=str(tmp_path))
    shutil.copy(raced.folder / "speed.json", tmp_path)  # measured once is enough
    seen: list[int] = []
    train = grid.train

    def interrupted(config: mm.TrainConfig) -> Any:
        def on_step(step: Any) -> None:
            seen.append(step.number)
            if step.number == 3:  # noticed at the beginning of the first validation
                signal.raise_signal(signal.SIGTERM)

        return train(config, on_step)

    def noting(config: mm.TrainConfig) -> Any:
        return train(config, lambda step: seen.append(step.number))

    monkeypatch.setattr(speed, "_in_onnx_runtime", stands_for_onnx)
    monkeypatch.setattr(grid, "train", interrupted)
    with pytest.raises(TrainingInterruptedError, match="interrupted in pooling, seed 0; the same command goes on"):
        race(training, MIXERS, seeds=2, rounds=ROUNDS)
    assert seen == [1, 2, 3]
    seen.clear()
    monkeypatch.setattr(grid, "train", noting)
    result = race(training, ["pooling"], seeds=1, rounds=ROUNDS)
    assert seen == [4, 5, 6]
    [cell], whole = result.cells, raced.result.cells[0]
    assert (cell.top1, cell.curve[-1]["train_loss"]) == (whole.top1, whole.curve[-1]["train_loss"])


@pytest.mark.promise("faults", "a race that is stopped in the last validation of a training says so and does not go on")
def test_a_signal_in_a_cells_last_validation_ends_the_race(
    raced: Raced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = replace(raced.training, out=str(tmp_path))
    shutil.copy(raced.folder / "speed.json", tmp_path)
    evaluate, begun = RaceTask.evaluate, 0

    def interrupted(self: RaceTask, *arguments: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == 2:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RaceTask, "evaluate", interrupted)
        with pytest.raises(TrainingInterruptedError, match="interrupted in pooling, seed 0") as caught:
            race(training, MIXERS, seeds=2, rounds=ROUNDS)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert begun == 2
    assert not (tmp_path / "runs" / "pooling" / "seed_0" / "cell.json").exists()
    [cell] = race(training, ["pooling"], seeds=1, rounds=ROUNDS).cells
    assert cell.top1 == raced.result.cells[0].top1


@pytest.mark.promise(
    "faults", "what a race that was stopped between a result and its cleaning left is cleaned by the next"
)
def test_what_a_stopped_race_left_is_deleted(raced: Raced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(raced.folder, tmp_path / "race")
    left = folder / "runs" / "pooling" / "seed_1" / "checkpoints"
    left.mkdir()
    (left / "step_000000006.pt").touch()
    monkeypatch.setattr(grid, "train", lambda config: pytest.fail("trained again"))
    race(replace(raced.training, out=str(folder)), MIXERS, seeds=2, rounds=ROUNDS)
    assert not left.exists()


@pytest.mark.promise("faults", "two races in one folder: the second is refused, and nothing of the first is touched")
def test_a_folder_in_use_is_refused(raced: Raced, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in raced.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)
    with alone_in(raced.folder, "race"), pytest.raises(MetamixerError, match="is in use by another race; wait until"):
        race(raced.training, MIXERS, seeds=2, rounds=ROUNDS)
    assert before == {path: path.read_bytes() for path in raced.folder.rglob("*") if path.is_file()}


@pytest.mark.promise(
    "faults", "a disk that is full when a race's results are due is one sentence; the results before stay"
)
@pytest.mark.parametrize("name", ["cell.json", "curves.png", "standings.csv", "race.json", "report.html"])
def test_a_full_disk_for_the_results(raced: Raced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = shutil.copytree(raced.folder, tmp_path / "race")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    places = [path for path in before if path.name == name]
    if name == "cell.json":
        places = places[:1]
        places[0].unlink()
        monkeypatch.setattr(grid, "train", lambda config: None)

    def full(path: Path) -> None:
        if path.name.startswith(f".{name}."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(MetamixerError, match=rf"{name} cannot be written \(No space left on device\)$"):
        race(replace(raced.training, out=str(folder)), MIXERS, seeds=2, rounds=ROUNDS)
    left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert all(left[path] == before[path] for path in before if path in left and path.name == name)
    assert not list(folder.rglob("*.part"))


def test_another_race_in_the_folder_is_refused(raced: Raced) -> None:
    other = replace(raced.training, epochs=3, lr=1e-3)
    with pytest.raises(MetamixerError, match=r"other settings: epochs \(was 2, is 3\), lr \(was 0.002, is 0.001\); ch"):
        race(other, MIXERS)


@pytest.mark.parametrize(
    ("task", "mixers", "options", "message"),
    [
        ({}, ["pooling,affa"], {}, "unknown mixer 'affa'; did you mean 'aff'"),
        ({}, [" , "], {}, "name at least one mixer"),
        ({}, ["dsm:dynamic"], {}, "'dynamic' must be written as key=value"),
        ({}, ["dsm:dynamics=False"], {}, "metaformer_nano cannot take the mixer dsm:dynamics=False: .*'dynamics'"),
        ({}, ["attention:head_dim=7"], {}, "cannot take the mixer attention:head_dim=7: .*multiples of head_dim=7"),
        ({"model": "affnet_nano"}, ["pooling"], {}, "affnet_nano cannot take the mixer pooling"),
        (
            {"model": "metaformer_nan"},
            ["pooling"],
            {},
            "'metaformer_nan'; did you mean 'metaformer_nano'",
        ),
        ({"pretrained": True}, ["pooling"], {}, "fresh weights"),
        ({}, ["pooling"], {"seeds": 0}, "seeds must be a whole number from 1"),
        ({}, ["pooling"], {"rounds": 0}, "rounds must be a whole number from 1"),
        ({"data": "nowhere"}, ["pooling"], {}, "nowhere: no such folder"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    pictures: Path, tmp_path: Path, task: dict[str, Any], mixers: list[str], options: dict[str, Any], message: str
) -> None:
    training = mm.TrainConfig(RaceTask(**{"data": str(pictures), "image_size": 32, **task}), out=str(tmp_path / "race"))
    with pytest.raises(MetamixerError, match=message):
        race(training, mixers, **options)
    assert not (tmp_path / "race").exists()


def test_a_race_is_one_process_and_resumes_by_itself(raced: Raced, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetamixerError, match="leave out resume and overwrite"):
        race(replace(raced.training, overwrite=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MetamixerError, match="without torchrun"):
        race(raced.training)


def test_a_failing_cell_is_named(raced: Raced, tmp_path: Path) -> None:
    shutil.copy(raced.folder / "speed.json", tmp_path)
    training = replace(raced.training, out=str(tmp_path), lr=1e30, clip_grad=0.0, opt="sgd")
    measured = json.loads((tmp_path / "speed.json").read_text())
    measured["asked"]["settings"] |= {"lr": 1e30, "clip_grad": 0.0, "opt": "sgd"}
    (tmp_path / "speed.json").write_text(json.dumps(measured))
    with pytest.raises(MetamixerError, match="pooling, seed 0: the loss became"):
        race(training, MIXERS, rounds=ROUNDS)


def test_the_commands_of_the_page_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "race.md").read_text().replace("\\\n", "")
    commands = re.findall(r"^metamixer race (.*)$", page, re.MULTILINE)
    asked: list[Any] = []
    monkeypatch.setattr(command, "standings_table", lambda result: SimpleNamespace(show=lambda: None))
    monkeypatch.setattr(command, "race", lambda training, mixers, *_, **__: asked.append(contenders(mixers)))
    for arguments in commands:
        assert main(["race", *arguments.split()]) == 0
    assert len(asked) == len(commands) >= 3


def test_contenders_from_text() -> None:
    found = contenders(["aff , dsm:dynamic=False:bands=7,aff", "additive"])
    assert [c.label for c in found] == ["aff", "dsm:dynamic=False:bands=7", "additive"]
    assert found[1].options == {"dynamic": False, "bands": 7}
    assert found[1].folder == "dsm_dynamic=False_bands=7"
    assert found[1].model_args == ("mixer=dsm", "mixer_args={'dynamic': False, 'bands': 7}")
    [one] = contenders(["ffnified:kernels=(7,3)"])
    assert one.options == {"kernels": (7, 3)}


def test_first_pictures_of_each_class(pictures: Path) -> None:
    task = RaceTask(data=str(pictures), pictures=3, val_pictures=100)
    task.open()
    assert len(task) == 9
    assert [Path(task.describe(i)).relative_to(pictures).as_posix() for i in (0, 2, 3, 8)] == [
        *("train/blue/00.png", "train/blue/02.png", "train/green/00.png", "train/red/02.png")
    ]
    assert task.train.read(3).getpixel((0, 0)) == Image.open(pictures / "train/green/00.png").getpixel((0, 0))
    assert len(task.validation) == 18
    kept = RaceTask(data=str(pictures), pictures=3, in_memory=True)
    kept.open()
    assert not isinstance(kept.train, FirstOfEachClass)
    assert [kept.train.read(i).tobytes() for i in range(9)] == [task.train.read(i).tobytes() for i in range(9)]
    with pytest.raises(ValueError, match="pictures must be a whole number from 1"):
        RaceTask(data=str(pictures), pictures=0)
