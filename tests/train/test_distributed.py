"""One, two and three processes on the CPU, by gloo: the same training, the same validation, the same end."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metamixer.tasks import sharing

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without distributed"),
    pytest.mark.skipif(sys.platform == "win32", reason="there is no fork"),
]
NAMES = (  # a network of each task
    "classification", "distillation", "detection", "instance", "segmentation", "super_resolution", "forecasting",
    "point_clouds",
)  # fmt: skip
PLAIN = {"sizes": [], "accumulate": 1}
"""Batches of six that two and three processes can share."""


@dataclass
class Outcome:
    """What the processes of one request ended with, said, and found out: of each process, of each job."""

    codes: list[int]
    said: list[str]
    found: list[list[dict[str, Any]]]


class Server:
    """``many_processes.py``, started once."""

    def __init__(self, data: Path) -> None:
        script = Path(__file__).with_name("many_processes.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, processes: int, out: Path, *jobs: dict[str, Any]) -> Outcome:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"processes": processes, "out": str(out), "jobs": jobs}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        told = json.loads(self.process.stdout.readline())
        files = [out / f"found.{process}.json" for process in range(processes)]
        return Outcome(**told, found=[json.loads(file.read_text()) if file.exists() else [] for file in files])

    def close(self) -> None:
        self.process.communicate()  # closes both pipes: nothing more is asked


@pytest.fixture(scope="session")
def server(every_data: Path) -> Iterator[Server]:
    started = Server(every_data)
    yield started
    started.close()


def job(task: str, run: str, *, changes: dict[str, Any] | None = None, **how: Any) -> dict[str, Any]:
    return {"do": "train", "task": task, "run": run, "changes": {**PLAIN, **(changes or {})}, **how}


def trained(server: Server, processes: int, out: Path, *jobs: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """What each process found out, once all of them have come to the end."""
    outcome = server.run(processes, out, *jobs)
    assert outcome.codes == [0] * processes, (outcome.said, [found[-1]["said"] for found in outcome.found if found])
    return outcome.found


def totals(found: dict[str, Any]) -> list[float]:
    return [sum(losses.values()) for losses in found["losses"]]


@given(count=st.integers(0, 40), processes=st.integers(1, 5))
def test_shares_are_every_sample_once_and_come_back_in_order(count: int, processes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "processes", lambda: processes)
        shares = []
        patch.setattr(sharing, "from_all", lambda own: [own])
        for process in range(processes):
            patch.setattr(sharing, "process", lambda process=process: process)
            shares += sharing.shared(count, list)
    assert sorted(index for share in shares for index in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sharing.in_order(shares) == list(range(count))


@pytest.mark.promise("processes", "two and three processes take the very steps of one, accumulating too")
@pytest.mark.parametrize("task", ["classification", "super_resolution"])
def test_several_processes_equal_one(task: str, server: Server, tmp_path: Path) -> None:
    """Where batch norms learn nothing: they see their own process's part of a batch."""
    still = task == "classification"
    changes = {"batch_size": 12, "epochs": 3}
    one, two, three = (
        [found[0] for found in trained(server, processes, tmp_path, job(task, f"{processes}", **how))]
        for processes, how in {
            1: {"changes": changes, "still": still},
            2: {"changes": changes | {"accumulate": 3}, "still": still},
            3: {"changes": changes, "still": still},
        }.items()
    )
    expected = totals(one[0])
    assert len(expected) == 3
    assert max(expected) - min(expected) > 0.01  # it learns
    for found in (*two, *three):
        # Sums of float32 in another order, over three steps.
        assert totals(found) == pytest.approx(expected, abs=1e-5)
        assert found["metrics"] == pytest.approx(one[0]["metrics"], abs=1e-4, nan_ok=True)
    if still:
        assert {tuple(shape) for found in two for shape in found["shapes"]} == {(2, 3, 32, 32)}
        assert {tuple(shape) for found in three for shape in found["shapes"]} == {(4, 3, 32, 32)}


@pytest.mark.promise("processes", "processes draw the same sizes of pictures for every batch")
def test_they_agree_on_the_sizes_of_multi_scale_batches(server: Server, tmp_path: Path) -> None:
    changes = {"sizes": [32, 24], "batch_size": 4, "epochs": 4}
    first, second = (found[0]["shapes"] for found in trained(server, 2, tmp_path, job("race", "run", changes=changes)))
    assert first == second
    assert {tuple(shape) for shape in first} == {(2, 3, 32, 32), (3, 3, 24, 24)}


@pytest.mark.promise(
    "processes", "every task trains on two processes; weights, averages and batch norms are equal on both when saved"
)
def test_every_task_trains_and_all_processes_hold_the_same(server: Server, tmp_path: Path) -> None:
    jobs = [job(name, name, changes={"epochs": 1}) for name in NAMES]
    first, second = trained(server, 2, tmp_path, *jobs)
    for name, one, other in zip(NAMES, first, second, strict=True):
        assert len(one["states"]) >= 2, name  # after two steps, and at the end
        assert one["states"] == other["states"], name
        assert one["losses"] == other["losses"], name
        assert one["metrics"] == pytest.approx(other["metrics"], abs=0, nan_ok=True), name


@pytest.mark.promise(
    "processes", "every task's validation is shared: each sample once, and the metrics are those of one process"
)
def test_every_task_validates_as_in_one_process(server: Server, tmp_path: Path) -> None:
    jobs = {"do": "evaluate", "tasks": list(NAMES)}
    found = {n: server.run(n, tmp_path / f"{n}", jobs) for n in (1, 2, 3)}
    assert {n: outcome.codes for n, outcome in found.items()} == {n: [0] * n for n in found}, found
    (one,) = found[1].found[0]
    for name in NAMES:
        whole = sorted(one[name]["looked_at"])
        assert set(whole) == set(range(max(whole) + 1)), name
        for n in (2, 3):
            mine = [process[0][name] for process in found[n].found]
            assert sorted(index for part in mine for index in part["looked_at"]) == whole, name
            assert all(part["metrics"] == pytest.approx(mine[0]["metrics"], abs=0, nan_ok=True) for part in mine), name
            # A classifier's logits depend, in their last bits, on how many pictures are looked at together.
            tolerance = 1e-5 if name in ("classification", "distillation") else 0
            assert mine[0]["metrics"] == pytest.approx(one[name]["metrics"], abs=tolerance, nan_ok=True), name


@pytest.mark.promise(
    "processes",
    "a signal to one process ends all; taken up, two end with the bits of a run in peace, three with its sums",
)
@pytest.mark.parametrize(
    ("task", "processes", "workers"),
    [
        ("classification", 2, 1),
        ("super_resolution", 3, 0),
        *(pytest.param(name, 2, 2, marks=pytest.mark.slow) for name in NAMES if name != "super_resolution"),
    ],
)
def test_a_signal_to_one_process_ends_all_and_all_go_on(
    task: str,
    processes: int,
    workers: int,
    server: Server,
    same_run: Callable[[Path, Path], None],
    tmp_path: Path,
) -> None:
    """With norms that learn, averages, and uneven shares of the validation."""
    changes = {"workers": workers, "resume": "auto"}
    peace = [found[0] for found in trained(server, processes, tmp_path, job(task, "peace", changes=changes))]
    stopped = server.run(processes, tmp_path, job(task, "run", changes=changes, signal_at=1))
    assert stopped.codes == [143] * processes, stopped.said
    done = [len(found[0]["losses"]) for found in stopped.found]
    assert len(set(done)) == 1
    assert 1 < done[0] < len(peace[0]["losses"])
    resumed = trained(server, processes, tmp_path, job(task, "run", changes=changes))
    for before, after, whole in zip(stopped.found, resumed, peace, strict=True):
        losses = [sum(one.values()) for one in before[0]["losses"] + after[0]["losses"]]
        # DistributedDataParallel orders gradients anew after a process's first step, and a ring of three adds them up
        # by their place; two numbers have but one sum.
        assert losses == (totals(whole) if processes == 2 else pytest.approx(totals(whole), abs=1e-5))
    if processes == 2:
        same_run(tmp_path / "peace", tmp_path / "run")


@pytest.mark.promise("processes", "what goes wrong in one process ends all of them, with its sentence, and none waits")
@pytest.mark.parametrize(
    ("fault", "processes", "sentences"),
    [
        ("open", 2, {"open failed here"}),
        ("validation", 3, {"picture 1 cannot be read"}),
        ("sample", 2, {"sample failed here", "the connection to another process of this run broke"}),
    ],
)
def test_what_fails_in_one_process_ends_all(
    fault: str, processes: int, sentences: set[str], server: Server, tmp_path: Path
) -> None:
    outcome = server.run(processes, tmp_path, job("race", "run", fault=fault))
    assert outcome.codes == [1] * processes, outcome.said
    said = [found[0]["said"] for found in outcome.found]
    assert {sentence for sentence in sentences for one in said if one.startswith(sentence)} == sentences, said
    assert all(any(one.startswith(sentence) for sentence in sentences) for one in said), said


def test_a_folder_that_holds_a_run_is_refused_by_all(server: Server, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").touch()
    outcome = server.run(2, tmp_path, job("race", "run"))
    assert outcome.codes == [1, 1], outcome.said
    assert all("already holds a run" in found[0]["said"] for found in outcome.found)


@pytest.mark.promise("losses", "a loss whose parts differ between processes or batches ends the run in one sentence")
@pytest.mark.parametrize("when", ["names at once", "names later"])
def test_parts_of_a_loss_must_be_the_same_everywhere(when: str, server: Server, tmp_path: Path) -> None:
    outcome = server.run(2, tmp_path, job("point_clouds", "run", fault=when))
    assert outcome.codes == [1, 1], outcome.said
    said = [found[0]["said"] for found in outcome.found]
    where = "another process" if when == "names at once" else "step 3"
    assert all(f"in {where}, not " in one and "Task.loss must name the same parts" in one for one in said), said


@pytest.mark.promise("losses", "clouds without any labelled point on one process train beside labelled ones")
def test_an_unlabelled_crop_on_one_process(server: Server, tmp_path: Path) -> None:
    first, second = trained(server, 2, tmp_path, job("point_clouds", "run", changes={"epochs": 1}, fault="unlabelled"))
    assert first[0]["losses"] == second[0]["losses"]
    assert all(set(losses) == {"cross_entropy", "lovasz"} for losses in first[0]["losses"])
    assert all(math.isfinite(value) for losses in first[0]["losses"] for value in losses.values())


def test_settings_that_several_processes_cannot_have(server: Server, tmp_path: Path) -> None:
    refusals = {
        "18 training samples are too few for 2 processes that work in 10 parts": {"accumulate": 10},
        "a batch of 6 cannot be shared by 2 processes in 2 parts": {"accumulate": 2},
        "--sync-bn needs GPUs": {"sync_bn": True},
    }
    jobs = [job("race", f"{i}", changes=changes) for i, changes in enumerate(refusals.values())]
    outcome = server.run(2, tmp_path, *jobs)
    for found in outcome.found:
        for sentence, one in zip(refusals, found, strict=True):
            assert one["code"] == 1
            assert sentence in one["said"]


def test_the_files_are_those_of_the_first_process(server: Server, tmp_path: Path) -> None:
    trained(server, 3, tmp_path, job("classification", "run", changes={"epochs": 1}))
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [(row["epoch"], row["count"]) for row in rows] == [("1", "7")]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 3
