"""What machines do to a training: signals, dead readers, full disks, two trainings in one folder, and what data do."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import metamixer as mm
from metamixer.cli import main
from metamixer.data import folder_lock
from metamixer.data.folder_lock import alone_in
from metamixer.data.image_folder import ImageFolder
from metamixer.tasks import sharing
from metamixer.tasks.classification import Classification
from metamixer.train import checkpointing, records
from metamixer.train import run as run_module
from metamixer.train.events import Events
from metamixer.train.interruption import TrainingInterruptedError
from metamixer.train.run import Run

compare = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("same_run.py"))))
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def folder(config: mm.TrainConfig) -> Path:
    return Path(config.out or "")


def steps_saved(config: mm.TrainConfig) -> list[int]:
    return [int(path.stem.split("_")[1]) for path in checkpointing.checkpoints(folder(config) / "checkpoints")]


# --- Signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise(
    "faults", "a signal in a validation, the last one too, saves and ends, and the run goes on from it"
)
@pytest.mark.parametrize("validation", [1, 2])
def test_a_signal_in_a_validation_saves_and_ends(
    config: mm.TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: int
) -> None:
    mm.train(replace(config, out=str(tmp_path / "peace")))
    read, read_in_all = ImageFolder.read, 0

    def read_with_a_signal(self: ImageFolder, index: int) -> Any:
        nonlocal read_in_all
        if self.root.name == "val":
            read_in_all += 1
            if read_in_all == 12 * (validation - 1) + 5:  # of the 12 in each
                signal.raise_signal(signal.SIGTERM)
                pytest.fail("the validation went on")
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "read", read_with_a_signal)
        with pytest.raises(TrainingInterruptedError) as caught:
            mm.train(config)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    newest = folder(config) / "checkpoints" / f"step_{6 * validation:09}.pt"
    assert str(caught.value) == (
        f"SIGTERM ended the run in its validation after step {6 * validation}; its checkpoint is {newest}, and"
        " --resume auto goes on from it"
    )
    assert len(list((folder(config)).glob("metrics.csv"))) == validation - 1
    mm.train(replace(config, resume="auto"))
    compare.assert_same_run(folder(config), tmp_path / "peace")


def test_a_signal_in_the_last_step_of_an_epoch_does_not_wait_for_the_validation(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "evaluate", lambda *arguments: pytest.fail("validated"))
    with pytest.raises(TrainingInterruptedError, match="ended the run in its validation after step 6; its checkpoint"):
        mm.train(config, lambda step: signal.raise_signal(signal.SIGTERM) if step.number == 6 else None)
    assert steps_saved(config) == [6]


@pytest.mark.promise("faults", "a signal that comes when all is done is said, and the exit code tells it")
def test_a_signal_after_the_last_validation_is_said(config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    save, saves = Classification.save, []

    def save_with_a_signal(*arguments: Any) -> None:
        save(*arguments)
        saves.append(1)
        if len(saves) == 2:  # last and best of the only epoch
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Classification, "save", save_with_a_signal)
    config = replace(config, epochs=1)
    with pytest.raises(
        TrainingInterruptedError, match=r"^SIGINT ended the run after step 6; it was complete, and"
    ) as e:
        mm.train(config)
    assert e.value.exit_code == 130
    assert mm.train(replace(config, resume="auto")).epoch == 1


@needs_signals
@pytest.mark.promise(
    "faults", "a signal that batch systems send to the reading workers, too, saves and ends as any other"
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_workers_too(config: mm.TrainConfig, tmp_path: Path, number: signal.Signals) -> None:
    mm.train(replace(config, out=str(tmp_path / "peace")))

    def to_all(step: mm.train.Step) -> None:
        if step.number == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, number)
            signal.raise_signal(number)

    config = replace(config, workers=2)
    with pytest.raises(
        TrainingInterruptedError, match=rf"^{number.name} ended the run after step 4; its checkpoint is"
    ):
        mm.train(config, to_all)
    assert not multiprocessing.active_children()
    mm.train(replace(config, resume="auto"))
    compare.assert_same_run(folder(config), tmp_path / "peace")


# --- Readers ---------------------------------------------------------------------------------------------------------


@needs_signals
@pytest.mark.promise("faults", "a reading worker that is killed is named, and what the steps brought is saved")
def test_a_killed_worker_is_named_and_the_steps_are_saved(config: mm.TrainConfig, tmp_path: Path) -> None:
    mm.train(replace(config, out=str(tmp_path / "peace")))

    def kill(step: mm.train.Step) -> None:
        if step.number == 1:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    config = replace(config, workers=1, epochs=2)
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(mm.MetamixerError) as caught:
        mm.train(config, kill)
    assert signal.getsignal(signal.SIGCHLD) is before
    sentence = (
        r"a process that reads samples \(number \d+\) was ended by SIGKILL, which is how systems end processes when"
    )
    assert re.match(sentence, str(caught.value))
    [step] = steps_saved(config)
    assert 2 <= step < 12
    assert str(caught.value).endswith(
        f"; that ended the run after step {step}; its checkpoint is"
        f" {folder(config) / 'checkpoints' / f'step_{step:09}.pt'}, and --resume auto goes on from it"
    )
    mm.train(replace(config, resume="auto"))
    compare.assert_same_run(folder(config), tmp_path / "peace")


@needs_signals
def test_a_worker_killed_in_the_validation(config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a picture that kills whoever reads it."""
    read = Classification.open_split

    def open_split(self: Classification, split: Any, classes: Any = None) -> Any:
        pictures = read(self, split, classes)
        if split == "val":
            plain = pictures.read
            pictures.read = lambda index: os.kill(os.getpid(), signal.SIGKILL) if index == 3 else plain(index)
        return pictures

    monkeypatch.setattr(Classification, "open_split", open_split)
    with pytest.raises(
        mm.MetamixerError, match=r"was ended by SIGKILL.* ended the run in its validation after step 6; "
    ):
        mm.train(replace(config, workers=1))
    assert steps_saved(config) == [6]


@pytest.mark.promise(
    "faults", "a sample that cannot be read ends a run with its name and with the steps before it saved"
)
def test_the_steps_before_an_unreadable_sample_are_saved(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mm.train(replace(config, out=str(tmp_path / "peace")))
    sample = Classification.sample
    count = 0

    def failing(task: Classification, index: int, size: int | None) -> Any:
        nonlocal count
        count += 1
        if count == 60:
            raise mm.MetamixerError("x.png cannot be read")
        return sample(task, index, size)

    monkeypatch.setattr(Classification, "sample", failing)
    with pytest.raises(
        mm.MetamixerError, match=r"^x.png cannot be read; that ended the run after step 7; its checkpoint"
    ):
        mm.train(config)
    mm.train(replace(config, resume="auto"))
    compare.assert_same_run(folder(config), tmp_path / "peace")


class OutOfSharedMemory(Classification):
    """What PyTorch raises in a worker where ``/dev/shm`` is full, as it is soon in containers."""

    def sample(self, index: int, size: int | None) -> Any:
        if torch.utils.data.get_worker_info() is not None:
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )
        return super().sample(index, size)


@pytest.mark.promise("faults", "too little shared memory for the reading workers is one sentence")
def test_too_little_shared_memory(config: mm.TrainConfig) -> None:
    task = OutOfSharedMemory(config.task.model, config.task.data, image_size=32)  # type: ignore[attr-defined]
    with pytest.raises(mm.MetamixerError, match=r"^a process that reads samples found no room in shared memory; give"):
        mm.train(replace(config, task=task, workers=1))


# --- Numbers that are none -------------------------------------------------------------------------------------------


class BreaksGradients(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, loss: torch.Tensor, factor: float) -> torch.Tensor:
        context.factor = factor
        return loss.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient * context.factor, None


@pytest.mark.promise("faults", "gradients or weights that are no numbers under a finite loss are never kept as good")
@pytest.mark.parametrize("clip_grad", [0.0, 1.0])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_gradients_that_are_not_finite_are_not_kept(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch, clip_grad: float, factor: float
) -> None:
    loss, count = Classification.loss, 0

    def broken(task: Classification, model: nn.Module, batch: Any) -> Any:
        nonlocal count
        count += 1
        return BreaksGradients.apply(loss(task, model, batch), factor if count == 4 else 1.0)

    monkeypatch.setattr(Classification, "loss", broken)
    with pytest.raises(mm.MetamixerError) as caught:
        mm.train(replace(config, clip_grad=clip_grad, save_every=2))
    good = folder(config) / "checkpoints" / "step_000000002.pt"
    assert re.match(r"the gradients became (nan|inf) \(the loss was [\d.]+\) in step 4, on ", str(caught.value))
    assert str(caught.value).count(".png") == 8
    assert str(caught.value).endswith(f"; the last good checkpoint is {good}; lower --lr")
    assert steps_saved(config) == [2]
    assert all(weight.isfinite().all() for weight in checkpointing.read(good)["model"].values())


def test_weights_that_are_not_finite_are_not_kept(config: mm.TrainConfig) -> None:
    """As where an optimiser's own numbers grow beyond bounds."""

    def explode(optimizer: Any, *arguments: Any) -> None:
        optimizer.param_groups[0]["params"][0].data[0] = math.inf

    hook = register_optimizer_step_post_hook(explode)
    try:
        for save_every in (1, 0):
            with pytest.raises(mm.MetamixerError, match=r"no finite numbers after step \d; no checkpoint was written"):
                mm.train(replace(config, save_every=save_every, batch_size=48, overwrite=True))
            assert steps_saved(config) == []
            assert not list(folder(config).glob("*.safetensors"))
    finally:
        hook.remove()


def test_weights_are_looked_at_once_after_a_step(config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    isfinite = torch.Tensor.isfinite
    monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: (seen.append(id(self)), isfinite(self))[1])
    mm.train(replace(config, epochs=1, batch_size=48, save_every=1))
    weights = len(list(config.task.create_model().parameters()))
    assert len(seen) == weights  # after the one step, though the weights are kept three times


def test_no_norm_is_computed_for_the_scaler_of_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "get_total_norm", lambda *_: pytest.fail("nobody looks at it"))
    accelerator = SimpleNamespace(scaler=object(), device=torch.device("cpu"))
    run: Any = SimpleNamespace(config=SimpleNamespace(clip_grad=0.0), accelerator=accelerator, parameters=[])
    assert Run.clip_gradients(run) == 0


@pytest.mark.promise(
    "bad input", "batches that leave batch norms a single sample are refused before anything is written"
)
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (dict(accumulate=4, batch_size=4), "raise --batch-size or lower --accumulate"),
        (dict(sizes=(32, 96)), "at once at the largest of --sizes"),
        (dict(progressive=(32, 64), accumulate=8, batch_size=8), "lower --accumulate"),
    ],
)
def test_a_single_sample_a_part_is_refused(
    config: mm.TrainConfig, changes: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, **changes)
    with pytest.raises(mm.MetamixerError, match=rf"^batch norms would see 1 sample.*{sentence}"):
        mm.train(config)
    assert not folder(config).exists()
    flags = f"--data {config.task.data} --image-size 32 --batch-size 4 --accumulate 4 --dry-run"  # type: ignore[attr-defined]
    assert main(["train", "metaformer_nano", *flags.split()]) == 1
    assert "batch norms would see 1 sample" in capsys.readouterr().err


# --- Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("faults", "where only a test part is there to choose the best epoch on, that is said")
def test_choosing_on_the_test_part_is_said(
    config: mm.TrainConfig, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    config = replace(config, epochs=1)

    def said(**changes: Any) -> tuple[int, str]:
        mm.train(replace(config, overwrite=True, task=replace(config.task, data=str(data), **changes)))
        environment = json.loads((folder(config) / "environment.json").read_text())
        return capsys.readouterr().err.count("the best epoch is chosen on"), environment["best_epoch_chosen_on"]

    assert said() == (0, "the validation part")
    (data / "source.json").write_text(json.dumps({"val_is_test": True}))
    assert said() == (2, f"{data}/val")  # when it starts and when it ends
    (data / "source.json").unlink()
    (data / "val").rename(data / "test")
    assert said(in_memory=True) == (2, f"{data}/test")


# --- Two trainings in one folder -------------------------------------------------------------------------------------


@pytest.mark.promise("faults", "a folder in use is refused, with --overwrite and --resume too, and left as it is")
@pytest.mark.parametrize("changes", [{}, dict(overwrite=True), dict(resume="auto")])
def test_a_folder_in_use_is_refused(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = replace(config, epochs=1)
    mm.train(config)
    before = contents(folder(config))
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)
    with (
        alone_in(folder(config), "training"),
        pytest.raises(mm.MetamixerError, match=r"run is in use by another training; wait until that has ended, or"),
    ):
        mm.train(replace(config, **changes))
    assert contents(folder(config)) == before
    mm.train(replace(config, overwrite=True))


def test_a_file_system_without_locks_is_said(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.FileLock, "acquire", refuse)
    mm.train(replace(config, epochs=1))
    assert "run cannot be locked (No locks available): see to it that no other training" in capsys.readouterr().err


class Killed(BaseException):
    """Ends a run as a kill would: nothing but ``finally`` comes after it."""


@pytest.mark.promise("kills", "a kill at any moment of --overwrite leaves no old checkpoint beside new settings")
def test_a_kill_while_a_run_is_replaced(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = replace(config, epochs=1)
    mm.train(config)
    old = shutil.copytree(folder(config), tmp_path / "old")
    changed = replace(config, seed=1, overwrite=True)
    calls = [(Path, "rename"), (Path, "replace"), (Path, "mkdir"), (shutil, "rmtree")]
    for moment in range(100):
        shutil.rmtree(folder(config))
        shutil.copytree(old, folder(config))
        left = moment

        def counted(plain: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise Killed
                return plain(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for owner, name in calls:
                patch.setattr(owner, name, counted(getattr(owner, name)))
            patch.setattr(checkpointing, "write", counted(lambda *arguments: None))
            patch.setattr(mm.train.loop, "train_epoch", lambda *arguments: counted(lambda: None)())
            patch.setattr(mm.train.loop, "finish_epoch", lambda *arguments: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                mm.train(changed)
        seed = json.loads((folder(config) / "config.json").read_text())["seed"]
        assert not (seed == 1 and steps_saved(config))
        if seed == 1:
            break
    assert 8 < moment < 99


@pytest.mark.promise("faults", "a run that may not be replaced is one sentence, and stays whole")
def test_a_run_that_cannot_be_replaced_stays_whole(config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, epochs=1)
    mm.train(config)
    before = contents(folder(config))
    rename = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if self.name == "last.safetensors":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refusing)
        with pytest.raises(mm.MetamixerError, match=r"run cannot be replaced \(Permission denied\)$"):
            mm.train(replace(config, overwrite=True))
    assert contents(folder(config)) == before


@pytest.mark.promise(
    "faults", "--overwrite of a run on a disk that is read-only is one sentence, and the run stays whole"
)
def test_overwriting_a_read_only_run(config: mm.TrainConfig, small_disk: Any) -> None:
    config = replace(config, epochs=1, out=str(small_disk.path / "run"))
    mm.train(config)
    (folder(config) / ".lock").touch()  # some versions of filelock delete it
    before = contents(folder(config))
    with small_disk.read_only():
        with pytest.raises(
            mm.MetamixerError, match=r"run cannot be (written|replaced) \((Read-only file system|Permission denied)\)$"
        ):
            mm.train(replace(config, overwrite=True))
        assert contents(folder(config)) == before


def test_another_runs_checkpoint_does_not_mix_with_a_run_in_the_folder(config: mm.TrainConfig, tmp_path: Path) -> None:
    config = replace(config, epochs=1)
    mm.train(config)
    other = replace(config, out=str(tmp_path / "other"), resume=str(next((folder(config) / "checkpoints").iterdir())))
    mm.train(other)
    assert (tmp_path / "other" / "config.json").is_file()
    mm.train(replace(config, out=str(tmp_path / "third")))
    with pytest.raises(mm.MetamixerError, match="third already holds a run"):
        mm.train(replace(other, out=str(tmp_path / "third")))


# --- Disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("faults", "a folder that somebody deletes during a run is one sentence, and is not made again")
def test_a_folder_that_is_deleted_meanwhile(config: mm.TrainConfig) -> None:
    def delete(step: mm.train.Step) -> None:
        if step.number == 2:
            shutil.rmtree(folder(config))

    with pytest.raises(mm.MetamixerError, match=r"checkpoints: no such folder$"):
        mm.train(replace(config, save_every=2), delete)
    assert not folder(config).exists()


@pytest.mark.promise(
    "faults", "a disk that is full at any moment of a training is one sentence, and the files before are whole"
)
@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_disk_that_fills_up(config: mm.TrainConfig, small_disk: Any, tmp_path: Path, step: int) -> None:
    mm.train(replace(config, out=str(tmp_path / "peace")))
    config = replace(config, out=str(small_disk.path / "run"), save_every=4)

    def fill(done: mm.train.Step) -> None:
        if done.number == step:
            small_disk.leave(0)

    with pytest.raises(mm.MetamixerError) as caught:
        mm.train(config, fill)
    assert re.fullmatch(
        rf"{folder(config)}/\S+ cannot be written \((No space left on device|File too large)\)", str(caught.value)
    )
    small_disk.free()
    for path in checkpointing.checkpoints(folder(config) / "checkpoints"):
        checkpointing.read(path)
    for path in folder(config).glob("*.safetensors"):
        mm.create_model("metaformer_nano", checkpoint=path)
    assert not list(folder(config).rglob("*.part"))
    mm.train(replace(config, resume="auto"))
    compare.assert_same_run(folder(config), tmp_path / "peace")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.promise("faults", "output that goes to a full disk is one sentence, and a training's steps are saved")
def test_output_that_goes_to_a_full_disk(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--data {config.task.data} --image-size 32 --batch-size 8 --workers 0 --out {config.out}"  # type: ignore[attr-defined]
    train = ["train", "metaformer_nano", *flags.split(), "--model-args", *config.task.model_args]  # type: ignore[attr-defined]
    for command in (["models"], ["--help"], train):
        with open("/dev/full", "w") as full, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            assert main(command) == 1
        assert capsys.readouterr().err == "metamixer: standard output cannot be written (No space left on device)\n"
    assert steps_saved(config) == [6]


def test_records_that_cannot_be_opened_are_told_to_all_processes(
    config: mm.TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sharing, "from_all", lambda own: (told.append(own), [own])[1])

    def refuse(*_: Any) -> None:
        raise mm.MetamixerError("tensorboard cannot be written")

    monkeypatch.setattr(records, "Events", refuse)
    with pytest.raises(mm.MetamixerError, match="tensorboard cannot be written"):
        mm.train(config)
    assert told[-1] == "tensorboard cannot be written"


@pytest.mark.promise("faults", "a disk that is full when TensorBoard's events are due is one sentence")
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_when_events_are_due(small_disk: Any) -> None:
    events = Events(small_disk.path / "tensorboard")
    events.add({"loss": 1.0}, 10)
    small_disk.leave(0)
    rows = ({"loss": 1.0} for _ in range(20_000))
    with pytest.raises(mm.MetamixerError, match=r"tensorboard cannot be written \((No space left|File too large)"):
        list(map(events.add, rows, range(20, 200_000, 10)))
    events.close()
    events.close()
    small_disk.free()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert EventAccumulator(str(small_disk.path / "tensorboard")).Reload().Scalars("loss")[0].step == 10


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
