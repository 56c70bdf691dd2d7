"""Whatever a path names is opened in one way: regular files only, never waiting, never without end."""

from __future__ import annotations

import os
import runpy
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamixer.data.files import open_regular, read_lines, read_regular, read_text, walk
from metamixer.errors import MetamixerError

NON_FILES = runpy.run_path(str(Path(__file__).parents[1] / "non_files.py"))["NON_FILES"]


@pytest.mark.promise("bad input", "pipes, devices, sockets, loops of links and folders are refused as files, at once")
@pytest.mark.parametrize("kind", NON_FILES)
@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    place = NON_FILES[kind](tmp_path / "a.txt")
    for read in (read_regular, read_text, open_and_read, open_and_read_from_its_end):
        with pytest.raises(MetamixerError) as raised:
            read(place, 1000)
        assert str(raised.value).startswith(str(place))
        assert "\n" not in str(raised.value)


def open_and_read(path: Path, at_most: int) -> bytes:
    with open_regular(path, at_most) as file:
        return file.read(10)


def open_and_read_from_its_end(path: Path, at_most: int) -> bytes:
    with open_regular(path, at_most) as file:
        file.seek(0, os.SEEK_END)
        return file.read()


@given(data=st.binary(max_size=3000), at_most=st.integers(0, 3000), pieces=st.integers(1, 700))
def test_the_bound_is_on_what_is_read_and_nothing_is_lost_below_it(data: bytes, at_most: int, pieces: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a")
        file.write_bytes(data)
        if len(data) > at_most:
            with pytest.raises(MetamixerError, match="too large"):
                read_regular(file, at_most)
            return
        assert read_regular(file, at_most) == data
        with open_regular(file, at_most) as opened:
            assert b"".join(iter(lambda: opened.read(pieces), b"")) == data
            opened.seek(len(data) // 2)
            assert opened.read() == data[len(data) // 2 :]


def test_files_that_grow_or_hide_their_size_are_bounded_too(tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match="too large"):  # whose size is said to be 0
        read_regular("/proc/self/status", 100)
    file = tmp_path / "growing"
    file.write_bytes(b"x" * 90)
    with open_regular(file, 100) as opened, file.open("ab") as more:
        more.write(b"x" * 90)
        more.flush()
        with pytest.raises(MetamixerError, match="too large"):
            opened.read()


def test_names_that_no_file_can_have() -> None:
    for name, reason in {
        "a\0b": "no file can have",
        "\ud800": "no file can have",
        "a" * 300: "File name too long",
    }.items():
        with pytest.raises(MetamixerError, match=reason):
            read_regular(name, 1000)


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffä\r\n \n b \n".encode())
    assert read_text(file) == "ä\r\n \n b \n"
    assert read_lines(file, 100) == ["ä", "b"]
    file.write_bytes("ä".encode("latin-1"))
    with pytest.raises(MetamixerError, match=r"cannot be read as a list .byte 0 is no UTF-8 text"):
        read_lines(file, 100)


@pytest.mark.promise("bad input", "loops of links among folders end, and no folder is gone through twice")
@pytest.mark.timeout(10)
def test_loops_of_links_among_folders_end(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b" / "self").symlink_to(".")
    (tmp_path / "0").symlink_to(".")  # the folder itself, met before anything else
    (tmp_path / "a" / "b" / "z.png").touch()
    for i in range(20):  # two links to each next one: a million ways to the last
        (tmp_path / f"d{i}").mkdir()
        for name in "xy":
            (tmp_path / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    (tmp_path / "d20").mkdir()
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "y.png").touch()
    (tmp_path / "link").symlink_to(outside)
    seen = list(walk(tmp_path))
    folders = [os.path.realpath(folder) for folder, _ in seen]
    assert len(folders) == len(set(folders)) == 1 + 2 + 21 + 1
    assert sorted(name for _, names in seen for name in names) == ["y.png", "z.png"]
