"""Files appear whole or not at all."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from metamixer.data import files, unfinished
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


@pytest.mark.promise("bad input", "no pipe, socket or device is replaced by a file that is written")
def test_only_files_are_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(os.devnull)
    for path, kind in ((pipe, "a pipe"), (link, "a device"), (tmp_path / "a\0b", "no file can have such a name")):
        with pytest.raises(MetamixerError, match=kind), replace_when_done(path):
            pytest.fail("the block ran")
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("opener", [replace_when_done, folder_when_done])
def test_an_error_of_another_file_is_not_the_targets(tmp_path: Path, opener: Callable[[Path], Any]) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"), opener(tmp_path / "a"):
        (tmp_path / "missing.txt").read_text()
    with pytest.raises(IsADirectoryError), opener(tmp_path / "a"):
        tmp_path.read_bytes()
    with (
        pytest.raises(MetamixerError, match=r"a cannot be written \((No such file|Not a directory)"),
        opener(tmp_path / "a") as temporary,
    ):
        (temporary / "missing" / "a").write_text("new")
    assert list(tmp_path.iterdir()) == []


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


DYING = """
import os, signal, sys
from pathlib import Path
from metamixer.data.files import folder_when_done, replace_when_done
target = Path(sys.argv[1])
with replace_when_done(target / "file") as file, folder_when_done(target / "folder") as folder:
    file.write_text("half")
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.promise("kills", "what a killed process left half written is deleted by the next one, under any name")
def test_what_a_killed_process_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    machine = next(tmp_path.iterdir()).name.split(".")[-2].split("-")[0]
    living = tmp_path / f".file.{machine}-{os.getppid()}.part"
    own = tmp_path / f".file.{machine}-{os.getpid()}-0.part"  # numbers come again
    elsewhere, abandoned = tmp_path / ".file.00000000-1.part", tmp_path / ".old.00000000-1.part"
    for path in (living, own, elsewhere, abandoned):
        path.touch()
    os.utime(abandoned, (0, time.time() - 2 * unfinished._ABANDONED))
    with replace_when_done(tmp_path / "other"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"other", living.name, elsewhere.name}


@pytest.mark.promise("faults", "whatever is renamed into place is on the disk first, and its name after it")
def test_contents_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix if sys.platform == "linux" else "?")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("renamed"), replace(self, target))[1])
    with replace_when_done(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    if sys.platform == "linux":
        assert done == [".part", "renamed", ""]
    assert done[1] == "renamed"


def test_a_folder_is_synced_file_by_file_while_there_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(unfinished.os, "fsync", lambda descriptor: synced.append("fsync"))
    monkeypatch.setattr(unfinished.os, "sync", lambda: synced.append("sync"), raising=False)
    monkeypatch.setattr(unfinished, "_ONE_BY_ONE", 3)
    (tmp_path / "set" / "inner").mkdir(parents=True)
    for name in ("a", "inner/b"):
        (tmp_path / "set" / name).touch(mode=0o400)
    unfinished.sync(tmp_path / "set")
    assert set(synced) == {"fsync"}
    assert len(synced) == 4 if hasattr(os, "O_DIRECTORY") else 2  # two files, two folders
    synced.clear()
    (tmp_path / "set" / "c").touch()
    unfinished.sync(tmp_path / "set")
    assert synced == ["sync"]


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="no folder can be synced here")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EIO])
def test_file_systems_that_sync_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    def write() -> None:
        with replace_when_done(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")

    monkeypatch.setattr(unfinished.os, "fsync", refuse_folders)
    if number == errno.EIO:  # that is no missing ability
        with pytest.raises(MetamixerError, match="Input/output error"):
            write()
    else:
        write()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_threads_leave_each_others_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that come into a folder at once, that write one target, and that call the folder by another name."""
    clear = unfinished._clear_leftovers
    monkeypatch.setattr(unfinished, "_clear_leftovers", lambda folder: (time.sleep(0.05), clear(folder)))
    (tmp_path / "here").mkdir()
    (tmp_path / "there").symlink_to("here")

    def write(index: int) -> None:
        folder = tmp_path / ("there" if index == 3 else "here")
        with replace_when_done(folder / "one.txt") as temporary:
            temporary.write_text(f"{index}")
            time.sleep(0.2)
            assert temporary.read_text() == f"{index}"

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["one.txt"]


@pytest.mark.promise("faults", "a full disk is one sentence, whichever library writes, and the file before stays whole")
@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write(bytes(2**22)),
        lambda file: np.save(file, np.zeros(2**19)),
        lambda file: save_file({"weights": torch.zeros(2**20)}, file.name),
        lambda file: torch.save({"weights": torch.zeros(2**20)}, file),
        lambda file: Image.effect_noise((2000, 2000), 99).save(file, "PNG"),
    ],
    ids=["bytes", "numpy", "safetensors", "torch", "picture"],
)
def test_a_full_disk_whichever_library_writes(small_disk: Any, write: Callable[[Any], object]) -> None:
    target = small_disk.path / "file"
    with replace_when_done(target) as temporary:
        temporary.write_text("old")
    small_disk.leave(100_000)
    with (
        pytest.raises(MetamixerError) as caught,
        replace_when_done(target) as temporary,
        temporary.open("wb") as file,
    ):
        write(file)
    small_disk.free()
    reason = r"No space left on device|File too large|\d+ requested and \d+ written"
    assert re.fullmatch(rf"{re.escape(str(target))} cannot be written \(({reason})\)", str(caught.value))
    assert target.read_text() == "old"
    assert list(small_disk.path.iterdir()) == [target]
