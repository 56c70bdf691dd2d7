"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from metamixer.data.files import folder_when_done, make_folder, replace_when_done
from metamixer.errors import MetamixerError


def test_written_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with replace_when_done(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"

    def interrupted() -> None:
        with replace_when_done(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_named_before_the_work(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    places = {
        tmp_path / "missing" / "a.txt": "no such folder",
        file / "a.txt": "no such folder",
        tmp_path: "it is a folder",
        tmp_path / ("x" * 300): "File name too long",
    }
    try:
        (locked / "probe").touch()
    except PermissionError:  # not so for root, who may write anywhere
        places[locked / "a.txt"] = "Permission denied"
    for place, reason in places.items():
        reached = []
        with pytest.raises(MetamixerError, match=reason), replace_when_done(place):
            reached.append(place)
        assert not reached


def test_make_folder(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(str(tmp_path / "a")) == tmp_path / "a"
    (tmp_path / "file").touch()
    with pytest.raises(MetamixerError, match="is a file where a folder is needed"):
        make_folder(tmp_path / "file")
    with pytest.raises(MetamixerError, match="cannot be created"):
        make_folder(tmp_path / "file" / "below")


def test_a_folder_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "set"
    with folder_when_done(target) as unfinished:
        (unfinished / "a").mkdir()
        (unfinished / "a" / "b.txt").write_text("new")
        assert not target.exists()
    assert (target / "a" / "b.txt").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_folder_is_left_when_the_block_fails(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with folder_when_done(tmp_path / "set") as unfinished:
            (unfinished / "half.txt").touch()
            raise error

    with pytest.raises(error):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").touch()
    reached = []
    with pytest.raises(MetamixerError, match="it exists"), folder_when_done(tmp_path / "set"):
        reached.append(True)
    assert not reached
    assert list((tmp_path / "set").iterdir()) == [tmp_path / "set" / "mine.txt"]
