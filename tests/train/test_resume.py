"""Runs that are killed, stopped, run out of disk, or are taken up with something else."""

from __future__ import annotations

import errno
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import metamixer as mm
from metamixer.cli import main
from metamixer.data import files
from metamixer.tasks.classification import Classification
from metamixer.train import checkpointing
from metamixer.train.interruption import TrainingInterruptedError

compare = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("same_run.py"))))
metrics, assert_same_run = compare.metrics, compare.assert_same_run


def kill(name: str, data: Path, out: Path, kills: int, workers: int, seed: int) -> None:
    """Train in peace and with kills, and compare: every loss ever seen, metrics, weights, the last checkpoint."""
    script = Path(__file__).with_name("killed_runs.py")
    command = [sys.executable, str(script), name, str(data), str(out), *map(str, (kills, workers, seed))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"{kills} kills"), done.stdout
    assert_same_run(out / "peace", out / "killed")
    right = dict(line.split() for line in (out / "peace.losses").read_text().splitlines())
    seen = [line.split() for line in (out / "killed.losses").read_text().splitlines()]
    assert {step for step, _ in seen} == right.keys()
    assert all(right[step] == loss for step, loss in seen)


@pytest.mark.promise("kills", "SIGKILL at any moment, in the middle of a checkpoint too, changes no bit of the outcome")
def test_a_killed_run_ends_as_if_nobody_had_killed_it(every_data: Path, tmp_path: Path) -> None:
    kill("classification", every_data, tmp_path, kills=4, workers=2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_task_killed_eight_times(
    workers: int, every_task: SimpleNamespace, every_data: Path, tmp_path: Path
) -> None:
    for name in every_task.TASKS:
        kill(name, every_data, tmp_path / name, kills=8, workers=workers, seed=workers)


def test_a_signal_saves_and_ends_and_the_run_goes_on(config: mm.TrainConfig, tmp_path: Path) -> None:
    number = signal.SIGTERM
    before = signal.getsignal(number)
    config = replace(config, opt="muon", lr=0.004)  # two optimisers in one, for its checkpoint's sake
    mm.train(replace(config, out=str(tmp_path / "peace")))
    handlers = []

    def interrupt(step: mm.train.Step) -> None:
        if step.number == 7:  # in the second epoch
            handlers.append(signal.getsignal(number))
            signal.raise_signal(number)

    with pytest.raises(
        TrainingInterruptedError, match=r"^SIGTERM ended the run after step 9; its checkpoint is"
    ) as caught:
        mm.train(config, on_step=interrupt)
    assert caught.value.exit_code == 128 + number
    assert handlers[0] is not before
    assert signal.getsignal(number) is before
    run = Path(config.out or "")
    assert len(metrics(run)) == 1

    mm.train(replace(config, resume="auto", workers=1))
    assert_same_run(run, tmp_path / "peace")
    steps: list[int] = []
    finished = mm.train(replace(config, resume="auto"), on_step=lambda step: steps.append(step.number))
    assert finished.epoch in (1, 2)  # nothing was left to do
    assert not steps


def test_the_command_ends_with_the_signals_code(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = Classification.loss
    calls = []

    def loss_with_a_signal(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return loss(*arguments)

    monkeypatch.setattr(Classification, "loss", loss_with_a_signal)
    flags = f"--data {config.task.data} --image-size 32 --batch-size 8 --epochs 1 --workers 0 --out {config.out}"
    assert main(["train", "metaformer_nano", *flags.split(), "--model-args", *config.task.model_args]) == 130
    assert capsys.readouterr().err.startswith("metamixer: SIGINT ended the run after step ")
    assert (
        main(["train", "metaformer_nano", *flags.split(), "--model-args", *config.task.model_args, "--resume", "auto"])
        == 0
    )
    assert len(calls) == 6
    assert "best top1" in capsys.readouterr().out


def test_a_full_disk_is_one_sentence_and_leaves_the_checkpoint_before(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(config, save_every=2)
    mm.train(replace(config, out=str(tmp_path / "peace")))
    run = Path(config.out or "")
    fsync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 7:  # two settings and a checkpoint before, each synced, and its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(mm.MetamixerError) as caught:
        mm.train(config)
    path = run / "checkpoints" / "step_000000004.pt"
    assert str(caught.value) == f"{path} cannot be written (No space left on device)"
    assert [file.name for file in path.parent.iterdir()] == ["step_000000002.pt"]
    mm.train(replace(config, resume="auto"))
    assert_same_run(run, tmp_path / "peace")


def test_the_disk_is_full_in_the_middle_of_the_file(tmp_path: Path) -> None:
    """By the limit on a file's size, which makes the write itself fail."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    good = checkpointing.write({"weights": torch.zeros(10)}, tmp_path, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(mm.MetamixerError, match=r"step_000000002.pt cannot be written \(File too large\)$"):
            checkpointing.write({"weights": torch.zeros(1_000_000)}, tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_resuming_with_other_settings_is_refused_unless_allowed(config: mm.TrainConfig, tmp_path: Path) -> None:
    mm.train(replace(config, epochs=1))
    run = Path(config.out or "")
    settings = (run / "config.json").read_bytes()
    changed = replace(config, resume="auto", lr=0.1, task=replace(config.task, smoothing=0.0))
    with pytest.raises(mm.MetamixerError) as caught:
        mm.train(changed)
    assert str(caught.value) == (
        f"{run / 'checkpoints' / 'step_000000006.pt'} was made with other settings: smoothing (was 0.1, is 0.0), epochs"
        " (was 1, is 2), lr (was 0.002, is 0.1); --allow-changes resumes all the same"
    )
    assert (run / "config.json").read_bytes() == settings
    # What decides nothing may change: the folder, the workers.
    mm.train(
        replace(changed, allow_changes=True, workers=1, out=str(tmp_path / "on"), resume=str(next(run.glob("*/*.pt"))))
    )
    assert [row["epoch"] for row in metrics(tmp_path / "on")] == ["1", "2"]


def test_runs_of_earlier_versions_go_on(config: mm.TrainConfig) -> None:
    """They had a switch for FSDP, off, and said how the optimiser's state was written: as it is today."""
    mm.train(replace(config, epochs=1))
    (checkpoint,) = Path(config.out or "").glob("checkpoints/*.pt")
    state = checkpointing.read(checkpoint)
    state["config"] |= {"fsdp": False, "epochs": config.epochs}
    torch.save({**state, "optimizer_by_name": False}, checkpoint)
    mm.train(replace(config, resume="auto"))
    assert len(metrics(Path(config.out or ""))) == 2


def test_an_older_checkpoint_of_its_own_folder_gives_up_the_later_ones(config: mm.TrainConfig) -> None:
    mm.train(config)
    folder = Path(config.out or "") / "checkpoints"
    assert [path.name for path in checkpointing.checkpoints(folder)] == ["step_000000006.pt", "step_000000012.pt"]
    older = replace(config, resume=str(folder / "step_000000006.pt"), allow_changes=True)
    with pytest.raises(mm.MetamixerError, match="is of another architecture"):
        mm.train(replace(older, task=replace(config.task, model="casvit_nano", model_args=())))
    assert len(checkpointing.checkpoints(folder)) == 2  # a refusal takes nothing away

    def interrupt(step: mm.train.Step) -> None:
        if step.number == 7:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingInterruptedError, match=r"step_000000009\.pt, and --resume auto goes on from it$"):
        mm.train(replace(older, lr=0.001), on_step=interrupt)
    assert [path.name for path in checkpointing.checkpoints(folder)] == ["step_000000006.pt", "step_000000009.pt"]


def test_what_was_written_stays_whatever_lies_beside_it(tmp_path: Path) -> None:
    for step in (25, 30):
        checkpointing.write({}, tmp_path, step)
    assert checkpointing.write({}, tmp_path, 21).is_file()
    assert len(checkpointing.checkpoints(tmp_path)) == checkpointing.KEPT


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, epochs=1, resume="auto")
    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "write", lambda *arguments: (_ for _ in ()).throw(mm.MetamixerError("stop")))
        with pytest.raises(mm.MetamixerError, match="stop"):
            mm.train(config)
    assert (Path(config.out or "") / "metrics.csv").is_file()
    with pytest.raises(mm.MetamixerError, match=r"config.json was made with other settings: seed \(was 0, is 1\)"):
        mm.train(replace(config, seed=1))
    assert mm.train(config).epoch == 1


def test_what_cannot_be_resumed(config: mm.TrainConfig, tmp_path: Path) -> None:
    config = replace(config, epochs=1)
    result = mm.train(config)
    state = next((Path(config.out or "") / "checkpoints").iterdir())
    cut = tmp_path / "cut.pt"
    cut.write_bytes(state.read_bytes()[:-1000])
    weights = tmp_path / "weights.pt"
    torch.save({"model": {}}, weights)
    other = replace(config.task, model="casvit_nano")
    refusals: list[tuple[str, dict[str, Any]]] = [
        ("missing.pt: no such file", dict(resume=str(tmp_path / "missing.pt"))),
        ("is cut short or damaged", dict(resume=str(cut))),
        ("no checkpoint of a training run|holds weights alone", dict(resume=str(result.best))),
        ("weights.pt holds weights alone", dict(resume=str(weights))),
        (r"model \(was 'metaformer_nano', is 'casvit_nano'\)", dict(resume="auto", task=other)),
        ("is of another architecture", dict(resume="auto", task=other, allow_changes=True)),
    ]
    for sentence, change in refusals:
        with pytest.raises(mm.MetamixerError, match=sentence):
            mm.train(replace(config, **change))
