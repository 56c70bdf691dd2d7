"""What a race makes of its numbers: mean, deviation, differences, the Pareto front, equal parameters."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from metamixer.bench.plotting import pareto_front
from metamixer.bench.race import Cell, RaceTask
from metamixer.bench.race.contenders import contenders, entry, equal_parameters
from metamixer.bench.race.grid import Speeds
from metamixer.bench.race.speed import Speed
from metamixer.bench.race.standings import standings
from metamixer.deploy.export import count_parameters
from metamixer.deploy.timing import Timing
from metamixer.schemas import validated

SPEED = Speed(10, 9, 100, None, 1000, 50.0, Timing(2.0, 1.0, 3.0), None, "it is missing")


def cells(mixer: str, *values: float) -> list[Cell]:
    return [Cell(mixer, seed, value, 99.0, 10.0, []) for seed, value in enumerate(values)]


def test_mean_and_deviation_over_the_seeds() -> None:
    found = standings([*cells("a", 50, 52, 54), *cells("b", 60, 61, 65)], {"a": SPEED, "b": SPEED})
    assert [s.mixer for s in found] == ["b", "a"]
    assert [s.top1 for s in found] == [62, 52]
    assert [s.top1_std for s in found] == pytest.approx([math.sqrt((4 + 1 + 9) / 2), 2])
    # Seed by seed a lies 10, 9 and 11 behind: mean 10, deviation 1.
    assert (found[1].behind, found[1].behind_error) == pytest.approx((10, 1 / math.sqrt(3)))
    assert (found[0].behind, found[0].behind_error, found[0].seeds) == (0, None, 3)


def test_one_seed_has_no_deviation() -> None:
    first, second = standings([*cells("a", 50), *cells("b", 49)], {"a": SPEED, "b": SPEED})
    assert (first.top1_std, second.behind, second.behind_error) == (None, 1, None)


def test_a_mixer_that_lacks_a_seed_does_not_stand() -> None:
    found = standings([*cells("a", 50, 51), *cells("b", 60)], {"a": SPEED, "b": SPEED})
    assert [s.mixer for s in found] == ["a"]


def test_a_cell_tells_the_last_epoch_and_the_median_speed() -> None:
    rows = [{"top1": t, "top5": t + 1, "images_per_second": v} for t, v in ((30, 5), (70, 50), (60, 40))]
    cell = Cell.of("a", 4, rows)
    assert (cell.top1, cell.top5, cell.images_per_second, cell.seed) == (60, 61, 40, 4)


def test_pareto_front() -> None:
    points = {"fast": (1, 50), "worse": (2, 49), "equal": (3, 60), "slower": (4, 60), "best": (5, 70), "same": (1, 48)}
    assert pareto_front(points) == ["fast", "equal", "best"]


def test_speed_comes_back_from_json() -> None:
    from dataclasses import asdict, replace

    for speed in (SPEED, replace(SPEED, onnx=Timing(1.0, 1.0, 2.0), onnx_missing=None)):
        written = json.dumps({"asked": {}, "speeds": {"a": asdict(speed)}})
        assert validated(Speeds, written, "speed.json", json=True).speeds == {"a": speed}


def test_parameters_can_be_made_equal(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    task = RaceTask(data=str(tmp_path), image_size=32)
    task.open()
    before = contenders(["pooling,dsm,dsm:dynamic=False"])
    found, largest = equal_parameters(task, before)
    sizes = {c.label: count_parameters(entry(task, c)[1]) for c in found}
    assert largest == max(count_parameters(entry(task, c)[1]) for c in before)
    assert min(count_parameters(entry(task, c)[1]) for c in before) < 0.9 * largest
    # The step of one hidden channel in each of eight blocks is 0.2 % of this network.
    assert all(size == pytest.approx(largest, rel=3e-3) for size in sizes.values()), sizes
