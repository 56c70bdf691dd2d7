"""Files of torch.save: harmless types are read wherever such a file is read, and nothing else is."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamixer import MetamixerError, create_model
from metamixer.data.clouds import Scenes
from metamixer.data.pickles import load_pickle
from metamixer.train import checkpointing
from metamixer.weights.convert import convert

HARMLESS: dict[str, Any] = {
    "a NumPy number": np.float64(0.5),
    "a NumPy whole number": np.int64(3),
    "NumPy's true": np.bool_(True),
    "NumPy's text": np.str_("best"),
    "NumPy's date": np.datetime64("2026-11-28"),
    "an array": np.arange(6.0).reshape(2, 3),
    "an array by columns": np.asfortranarray(np.ones((2, 3), "f4")),
    "a NumPy type": np.dtype("f4"),
    "a dictionary with defaults": collections.defaultdict(list, {"a": [1]}),
    "counts by default": collections.defaultdict(int, {"a": 1}),
    "an ordered dictionary": collections.OrderedDict(a=1),
    "counts": collections.Counter("aab"),
    "a path": pathlib.PurePosixPath("/a/b"),
    "a path of Windows": pathlib.PureWindowsPath("c:/x"),
    "a time": datetime.datetime(2026, 11, 28, 7, 30),
    "a time somewhere": datetime.datetime(2026, 11, 28, 7, 30, tzinfo=datetime.timezone.utc),
    "a date": datetime.date(2026, 11, 28),
    "a span": datetime.timedelta(1),
    "a command line": argparse.Namespace(epochs=3),
    "a size": torch.Size([1, 2]),
    "a type": torch.float16,
    "a device": torch.device("cpu"),
    "a set": {1, 2},
    "bytes": b"abc",
    "a complex number": 1j,
    "a large number": 10**50,
}


@pytest.mark.promise("bad input", "checkpoints with NumPy numbers, paths, dates and the like are read by every reader")
@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_harmless_types_are_read(kind: str, form: str, tmp_path: Path) -> None:
    torch.save({"extra": HARMLESS[kind]}, tmp_path / "a.pth", _use_new_zipfile_serialization=form == "zip")
    read = load_pickle(tmp_path / "a.pth")["extra"]
    np.testing.assert_equal(read, HARMLESS[kind])


def test_paths_of_either_system_and_names_of_numpy_1(tmp_path: Path) -> None:
    """What a class is called in files depends on where, and with which versions, they were written."""
    torch.save(
        {"path": Path("a/b"), "value": np.float64(0.5)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False
    )
    written = (tmp_path / "a.pth").read_bytes()
    for old, new in (
        (type(Path()).__module__.encode() + b"\nPosixPath", b"pathlib\nWindowsPath"),
        (type(Path()).__module__.encode() + b"\nPosixPath", b"pathlib._local\nPosixPath"),
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
    ):
        assert old in written
        (tmp_path / "b.pth").write_bytes(written.replace(old, new))
        read = load_pickle(tmp_path / "b.pth")
        assert (str(read["path"]).replace("\\", "/"), read["value"]) == ("a/b", 0.5)


def test_every_reader_trusts_the_same(tmp_path: Path) -> None:
    extras = {
        "best": np.float64(0.5),
        "path": Path("x"),
        "log": collections.defaultdict(list),
        "on": HARMLESS["a date"],
    }
    model = create_model("ffnet_nano", num_classes=2)
    torch.save({"state_dict": model.state_dict(), **extras}, tmp_path / "a.pth")
    assert create_model("ffnet_nano", num_classes=2, checkpoint=tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors")
    torch.save({"coord": np.zeros((3, 3)), "segment": np.zeros(3, int), **extras}, tmp_path / "cloud.pth")
    assert len(Scenes(tmp_path / "cloud.pth", 2)[0].coord) == 3
    torch.save({"config": {}, "model": {}, "optimizer": {}, "progress": {}, **extras}, tmp_path / "step_1.pt")
    with pytest.raises(MetamixerError, match=r"step_1.pt: progress.epoch is missing|best is no entry|is missing"):
        checkpointing.read(tmp_path / "step_1.pt")  # read, and found to be no run


class Runs:
    """Runs a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.promise("bad input", "no checkpoint, scene or run can run code")
@pytest.mark.parametrize(
    "function", [Path.touch, eval, getattr, __import__, io.open, type, np.load, torch.load, print, vars, staticmethod]
)
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_nothing_is_run(function: Any, form: str, tmp_path: Path) -> None:
    victim = tmp_path / "was here"
    contents = {"state_dict": {"a": torch.zeros(1)}, "config": Runs(function, victim)}
    path = tmp_path / "a.pth"
    if form == "plain":
        path.write_bytes(pickle.dumps(contents, protocol=2))
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=form == "zip")
    for read in (load_pickle, checkpointing.read, lambda path: create_model("ffnet_nano", checkpoint=path)):
        with pytest.raises(MetamixerError, match="was not opened, because reading it could run code"):
            read(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([Runs(print)], dtype=object),  # an array that holds anything
        np.zeros(1, [("a", "f4")])[0],  # a row of a table
    ],
)
def test_arrays_of_objects_are_refused(value: Any, tmp_path: Path) -> None:
    torch.save({"extra": value}, tmp_path / "a.pth")
    with pytest.raises(MetamixerError, match=r"was not opened|cut short or damaged"):
        load_pickle(tmp_path / "a.pth")


def test_a_large_array_that_is_not_there_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(np, "empty", lambda shape, *more: asked.append(shape) or np.zeros(shape, *more))
    torch.save({"extra": Runs(np.ndarray.__reduce__(np.zeros(1))[0], np.ndarray, (10**12,), b"d")}, tmp_path / "a.pth")
    load_pickle(tmp_path / "a.pth")
    assert asked == [0]


@pytest.mark.promise("bad input", "archives that unpack to far more than they are, are refused")
def test_archives_that_grow_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as archive,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as squeezed,
    ):
        for name in archive.namelist():
            squeezed.writestr(name, archive.read(name))
    with pytest.raises(MetamixerError, match="is compressed"):
        load_pickle(tmp_path / "b.pth")

    written = (tmp_path / "a.pth").read_bytes()
    entry, size = written.rindex(b"a/data/0") - 46, 400_000  # in the directory, at the end
    assert int.from_bytes(written[entry + 24 : entry + 28], "little") == size
    larger = (size * 9).to_bytes(4, "little")
    (tmp_path / "c.pth").write_bytes(written[: entry + 20] + larger + larger + written[entry + 28 :])
    with pytest.raises(MetamixerError, match=r"overlap|cut short or damaged"):
        load_pickle(tmp_path / "c.pth")
