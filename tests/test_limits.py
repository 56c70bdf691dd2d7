"""Ranges of settings, wherever they are annotated, and estimates of memory."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamixer import limits
from metamixer.errors import MetamixerError, SettingError
from metamixer.limits import NotNegative, Side, Text, Workers, check_settings, checked, describe


@checked
def work(
    size: Side,
    workers: Workers | None = None,
    scales: tuple[NotNegative, ...] = (),
    sizes: Side | tuple[Side, Side] = 1,
    *,
    name: Text = "a",
    other: Any = None,
) -> tuple[Any, ...]:
    return size, workers, scales, sizes, name, other


@dataclass(frozen=True)
class Settings:
    size: Side = 8
    scales: tuple[NotNegative, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class More(Settings):
    workers: Workers | None = None


def test_what_is_in_range_comes_as_the_annotated_type() -> None:
    assert work(np.int64(5), 0, [1, np.float32(2)], (3, 4), name="b", other=-1) == (5, 0, (1.0, 2.0), (3, 4), "b", -1)
    assert type(work(np.int64(5))[0]) is int
    assert work(sizes=7, size=8192) == (8192, None, (), 7, "a", None)
    assert More(np.int64(5), [0, 1]) == More(5, (0.0, 1.0))


OUT_OF_RANGE: list[tuple[dict[str, Any], str]] = [
    ({"size": 0}, "size must be a whole number from 1 to 8192, not 0"),
    ({"size": 100_000}, "size must be a whole number from 1 to 8192, not 100000"),
    ({"size": 2.5}, "size must be a whole number from 1 to 8192, not 2.5"),
    ({"size": math.nan}, "size must be a whole number from 1 to 8192, not nan"),
    ({"size": 10**5000}, "size must be a whole number from 1 to 8192, not a number of thousands of digits"),
    ({"size": "x" * 500}, f"size must be a whole number from 1 to 8192, not '{'x' * 27}...{'x' * 28}'"),
    ({"size": None}, "size must be a whole number from 1 to 8192, not None"),
    ({"workers": -1}, "workers must be a whole number from 0 to 256 (or left out), not -1"),
    ({"scales": (1, math.inf)}, "scales must be a number from 0 to 1e+38, not (1, inf)"),
    ({"sizes": (1, 0)}, "sizes must be a whole number from 1 to 8192, not (1, 0)"),
    ({"name": ""}, "name must be a text of 1 to 4096 characters, not ''"),
]


@pytest.mark.parametrize(("arguments", "sentence"), OUT_OF_RANGE, ids=[next(iter(a)) for a, _ in OUT_OF_RANGE])
def test_what_is_not_is_refused_by_name(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError) as raised:
        work(**{"size": 1, **arguments})
    assert str(raised.value) == sentence
    assert raised.value.name == next(iter(arguments))
    assert isinstance(raised.value, MetamixerError)


def test_dataclasses_and_those_that_add_fields_to_them() -> None:
    for make in (lambda: Settings(size=0), lambda: More(scales=(-1,)), lambda: replace(More(), workers=-1)):
        with pytest.raises(SettingError, match="must be"):
            make()


def test_missing_and_unknown_arguments_stay_type_errors() -> None:
    with pytest.raises(TypeError, match="size"):
        work()
    with pytest.raises(TypeError, match="colour"):
        work(1, colour=2)


@given(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none(), st.booleans()))
def test_a_side_is_a_whole_number_in_its_range_or_refused(value: Any) -> None:
    try:
        found = work(value)[0]
    except SettingError:
        return
    assert type(found) is int
    assert 1 <= found <= 8192


def test_ranges_in_words() -> None:
    assert describe(Side) == "a whole number from 1 to 8192"
    assert describe(limits.Positive) == "a number above 0 and of at most 1e+38"
    assert describe(limits.ShareBelowOne) == "a number of 0 or more and below 1"


def test_memory_is_asked_for_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    free = limits.available_memory()
    assert free is None or free > 2**24  # else this test would hardly run
    monkeypatch.setattr(limits, "available_memory", lambda: 10**9)
    limits.require_memory_for_pictures(8, 1000, 1000, at_once=8)
    monkeypatch.setattr(limits, "available_memory", lambda: 10**7)
    with pytest.raises(MetamixerError, match=r"128 pictures of 8 × 4096 pixels: 319 MB or more .* and 10 MB are free"):
        limits.require_memory_for_pictures(128, 4096, 8, at_once=128)
    monkeypatch.setattr(limits, "available_memory", lambda: None)
    limits.require_memory(10**18, "what is not known")


def _files(root: Path, contents: dict[str, object]) -> None:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("membership", "expected"),
    [
        ("4:cpu,memory:/jobs/one\n", 600),
        ("4:cpu,memory:/jobs/two\n", 1500),
        ("4:cpu:/jobs/one\n", 7000),
        ("0::/user/one\n", 50),
        ("0::/user/two\n", 900),
        ("0::/elsewhere\n", 7000),  # as a container without a view of its own says it
        ("nonsense", 7000),
        (None, 7000),
    ],
)
def test_memory_is_that_of_every_group_around_the_process(
    membership: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"memory.current": 100, "memory.stat": "anon 60\ninactive_file 40"}
    second = {"memory.max": 110, **taken}
    _files(tmp_path, {f"user/one/{name}": text for name, text in second.items()})
    _files(tmp_path, {f"user/two/{name}": text for name, text in ({**taken, "memory.max": "max"}).items()})
    _files(tmp_path, {f"user/{name}": text for name, text in ({**taken, "memory.max": 960}).items()})
    for group, limit in (("", 7000), ("jobs/", 1500), ("jobs/one/", 600), ("jobs/two/", 2**63 - 4096)):
        _files(
            tmp_path / "memory" / group,
            {
                "memory.limit_in_bytes": limit + 60,
                "memory.usage_in_bytes": 100,
                "memory.stat": "total_inactive_file 40",
            },
        )
    if membership is not None:
        (tmp_path / "groups").write_text(membership)
    monkeypatch.setattr(limits, "_MEMBERSHIP", tmp_path / "groups")
    monkeypatch.setattr(limits, "_CONTROL_GROUPS", tmp_path)
    assert limits.available_memory() == expected


def test_the_page_states_the_bounds() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    stated = re.findall(r"^\| ([^|]+) \| (\d+) (GiB|MiB) \|$", page, re.MULTILINE)
    found = {what: int(count) * (limits.GIB if unit == "GiB" else limits.MIB) for what, count, unit in stated}
    assert found == {
        "a picture": limits.PICTURE_BYTES,
        "annotations of a whole set (JSON)": limits.ANNOTATION_BYTES,
        "annotations of one picture (XML, text)": limits.LABEL_BYTES,
        "a list of pictures": limits.LIST_BYTES,
        "names of classes": limits.NAMES_BYTES,
        "YAML": limits.YAML_BYTES,
        "a table (CSV, unpacked)": limits.TABLE_BYTES,
        "a point cloud": limits.CLOUD_BYTES,
        "a checkpoint": limits.CHECKPOINT_BYTES,
    }
    assert f"class numbers from {limits.MOST_CLASSES:,} on" in " ".join(page.split())
    assert f"more than {limits.SHARDS:,} shards" in " ".join(page.split())
    assert f"more than {limits.NESTING} levels" in " ".join(page.split())
