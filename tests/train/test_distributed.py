"""Two processes on the CPU against one, by gloo. Batch norms are frozen, see two_processes.py."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch was built without distributed")


@dataclass
class Runs:
    folder: Path
    codes: dict[str, list[int]]
    errors: str

    def losses(self, name: str, process: int = 0) -> list[float]:
        return json.loads((self.folder / f"{name}.{process}.json").read_text())["losses"]

    def shapes(self, name: str, process: int = 0) -> list[list[int]]:
        return json.loads((self.folder / f"{name}.{process}.json").read_text())["shapes"]

    def metrics(self, name: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / name / "metrics.csv").read_text().splitlines()))


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(pictures), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return Runs(folder, json.loads(done.stdout.splitlines()[-1]), done.stderr)


def test_two_processes_and_accumulation_equal_one_process(runs: Runs) -> None:
    assert runs.codes["one"] == [0], runs.errors
    assert runs.codes["two"] == [0, 0], runs.errors
    one = runs.losses("one")
    assert len(one) == 24
    assert max(one) - min(one) > 0.1  # it learnt
    for process in range(2):
        assert runs.losses("two", process) == pytest.approx(one, abs=1e-5)
        assert set(map(tuple, runs.shapes("two", process))) == {(2, 3, 32, 32)}
    for name in ("top1", "val_loss", "count"):  # the processes share the validation, too
        found = [[float(row[name]) for row in runs.metrics(run)] for run in ("two", "one")]
        assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_they_agree_on_the_sizes_of_multi_scale_batches(runs: Runs) -> None:
    assert runs.codes["scales_one"] + runs.codes["scales_two"] == [0, 0, 0], runs.errors
    one = runs.losses("scales_one")
    assert len(one) >= 20
    assert runs.losses("scales_two") == pytest.approx(one, abs=1e-5)
    first, second = (runs.shapes("scales_two", process) for process in range(2))
    assert first == second
    assert set(map(tuple, first)) == {(2, 3, 32, 32), (8, 3, 16, 16)}


def test_a_signal_to_one_process_ends_both_and_both_go_on(runs: Runs) -> None:
    assert runs.codes["interrupted"] == [143, 143], runs.errors
    assert runs.codes["resumed"] == [0, 0], runs.errors
    done = len(runs.losses("interrupted"))
    assert 5 < done < 10
    assert runs.losses("interrupted") + runs.losses("resumed") == pytest.approx(runs.losses("one"), abs=1e-5)


def test_more_parts_than_samples(runs: Runs) -> None:
    assert runs.codes["too_many"] == [1, 1]
    assert "48 training samples are too few for 2 processes that work in 25 parts" in runs.errors
