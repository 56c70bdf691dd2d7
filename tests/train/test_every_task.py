"""Every task, killed and taken up with other numbers of workers, ends with the bits of a run in peace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import metamixer as mm
from metamixer.tasks.task import Task
from metamixer.train.checkpointing import checkpoints

NAMES = (
    "classification", "distillation", "race", "detection", "ssdlite", "instance", "segmentation", "super_resolution",
    "forecasting", "point_clouds",
)  # fmt: skip


class KilledError(Exception):
    """Ends a training on the spot, with nothing saved, as a kill between two steps does."""


def run(config: mm.TrainConfig, losses: dict[int, list[dict[str, float]]], kill_at: int | None = None) -> None:
    """Train; every loss is added to those seen at its step."""

    def on_step(step: mm.train.Step) -> None:
        losses.setdefault(step.number, []).append(step.losses)
        if step.number == kill_at:
            raise KilledError

    if kill_at is None:
        mm.train(config, on_step)
    else:
        with pytest.raises(KilledError):
            mm.train(config, on_step)


def test_all_tasks_are_here(every_task: SimpleNamespace) -> None:
    assert set(NAMES) == every_task.TASKS.keys()
    kinds = {type(make(Path())) for make in every_task.TASKS.values()}
    assert {task for task in subclasses(Task) if task.__module__.startswith("metamixer.")} == kinds


def subclasses(kind: type) -> set[type]:
    return {kind} - {Task} | {one for child in kind.__subclasses__() for one in subclasses(child)}


@pytest.mark.promise(
    "kills", "every task, killed twice and taken up with 0, 1 and 2 workers, ends with the same bits as one in peace"
)
@pytest.mark.parametrize("name", NAMES)
def test_killed_and_taken_up_with_other_workers(
    name: str, every_task: SimpleNamespace, every_data: Path, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    seen: dict[int, list[dict[str, float]]] = {}
    right: dict[int, list[dict[str, float]]] = {}
    run(every_task.config(name, every_data, tmp_path / "peace"), right)

    killed = every_task.config(name, every_data, tmp_path / "killed", resume="auto")
    run(replace(killed, workers=1), seen, kill_at=3)
    assert [path.stem for path in checkpoints(tmp_path / "killed" / "checkpoints")] == ["step_000000002"]
    run(replace(killed, workers=2), seen, kill_at=5)
    run(killed, seen)

    assert {step: set(map(str, losses)) for step, losses in seen.items()} == {
        step: set(map(str, losses)) for step, losses in right.items()
    }
    assert len(seen[3]) == len(seen[5]) == 2
    assert len({str(losses) for losses in right.values()}) == len(right)  # a loss that never changes shows nothing
    same_run(tmp_path / "peace", tmp_path / "killed")
