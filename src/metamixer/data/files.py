"""Files: how every one that a path names is opened, and how one is written, whole or not at all."""

from __future__ import annotations

import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from safetensors import SafetensorError

from metamixer.data.unfinished import reason_of_failed_write, sync, sync_names, temporary_beside
from metamixer.errors import MetamixerError
from metamixer.limits import ANY_BYTES, CONFIG_BYTES, MIB, in_words, require_memory

_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK"))
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


_Got = TypeVar("_Got", int, bytes)


# --- Reading ---------------------------------------------------------------------------------------------------------


def open_regular(path: str | Path, at_most: int, what: str = "a file") -> BinaryIO:
    """A regular file, opened for reading without ever waiting; a link to one is followed.

    Reading it raises MetamixerError too: where it fails, and for more than ``at_most`` bytes, whatever size the file
    said it had. Those of ``/proc`` say 0, and files grow.

    Args:
        path: of the file.
        at_most: bytes.
        what: what it should be, for the sentence of an error: "a picture", "a CSV file".

    Raises MetamixerError where there is no such file, it may not be read, is too large, or is a folder, a pipe (such as
    a shell's ``<(…)``), a socket or a device.
    """
    with _as_sentence(path, what):
        _require_kind(path, os.stat(path), at_most, what)  # first, as opening a device may do something
        handle = os.open(path, _FLAGS)
        try:
            _require_kind(path, os.fstat(handle), at_most, what)  # again, as the name may mean another file by now
            return io.BufferedReader(_Bounded(handle, path, at_most, what))
        except BaseException:
            os.close(handle)
            raise


def require_regular(path: str | Path, at_most: int = ANY_BYTES, what: str = "a file") -> Path:
    """The path, for libraries that open by themselves. Raises MetamixerError as :func:`open_regular` does."""
    open_regular(path, at_most, what).close()
    return Path(path)


def read_regular(path: str | Path, at_most: int, what: str = "a file") -> bytes:
    """The contents of a regular file. Raises MetamixerError as :func:`open_regular` does, and where reading fails."""
    with open_regular(path, at_most, what) as file:
        size = os.fstat(file.fileno()).st_size
        if size > 64 * MIB:
            require_memory(size, f"{path}")
        return file.read()


def read_text(path: str | Path, at_most: int = CONFIG_BYTES, what: str = "a file") -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark.

    Raises MetamixerError as :func:`read_regular` does, and for what is no UTF-8.
    """
    data = read_regular(path, at_most, what)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MetamixerError(f"{path} cannot be read as {what} (byte {error.start} is no UTF-8 text)") from None


def read_lines(path: str | Path, at_most: int, what: str = "a list") -> list[str]:
    """The lines of a text that hold more than spaces, without spaces around them. Raises as :func:`read_text` does."""
    return [line.strip() for line in read_text(path, at_most, what).splitlines() if line.strip()]


def walk(folder: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below ``folder``, itself first, and the names of what else lies in it, both in order.

    Links to folders are followed; a folder is entered once, by whichever name comes first, so loops of links end.
    """
    known: set[tuple[int, int]] = set()
    _is_new(os.fspath(folder), known)
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in sorted(folders) if _is_new(os.path.join(parent, name), known)]
        yield Path(parent), sorted(names)


def _is_new(folder: str, known: set[tuple[int, int]]) -> bool:
    try:
        status = os.stat(folder)
    except OSError:
        return False
    here = status.st_dev, status.st_ino
    if here in known:
        return False
    known.add(here)
    return True


class _Bounded(io.FileIO):
    """A file that raises MetamixerError where more than ``at_most`` bytes are read of it, and where reading fails."""

    def __init__(self, handle: int, path: str | Path, at_most: int, what: str) -> None:
        super().__init__(handle, "rb")
        self.path, self.at_most, self.what = path, at_most, what

    def readinto(self, buffer: Any) -> int:
        with _as_sentence(self.path, self.what):
            got = super().readinto(buffer)
        return self._counted(got or 0)  # none where it would wait

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return self.readall()
        with _as_sentence(self.path, self.what):
            got = super().read(size)
        return self._counted(got or b"")

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(position, whence)
        except OSError as error:
            if position < 0:
                raise  # before the beginning: readers of damaged archives try that, and know what it means
            raise MetamixerError(f"{self.path} cannot be read as {self.what} ({error.strerror or error})") from None

    def readall(self) -> bytes:
        pieces = []
        while piece := self.read(max(1 << 16, os.fstat(self.fileno()).st_size - self.tell() + 1)):
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _counted(self, got: _Got) -> _Got:
        if got and self.tell() > self.at_most:
            raise _too_large(self.path, self.at_most, self.what)
        return got


def _require_kind(path: str | Path, status: os.stat_result, at_most: int, what: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for test, name in _KINDS if test(status.st_mode)), "no regular file")
        raise MetamixerError(f"{path} is {kind}, not {what}")
    if status.st_size > at_most:
        raise _too_large(path, at_most, what)


def _too_large(path: str | Path, at_most: int, what: str) -> MetamixerError:
    return MetamixerError(f"{path} is too large: {what} of more than {in_words(at_most)} is not read")


@contextmanager
def _as_sentence(path: str | Path, what: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise MetamixerError(f"{path}: no such file") from None
    except PermissionError:
        raise MetamixerError(f"{path}: no permission to read it") from None
    except OSError as error:
        raise MetamixerError(f"{path} cannot be read as {what} ({error.strerror or error})") from None
    except ValueError:  # zeros, and what the file system's encoding has not got
        raise MetamixerError(f"{path} cannot be read as {what} (no file can have such a name)") from None


# --- Writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def replace_when_done(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends well and deleted when it does not.

    The contents are on the disk before the new name is, so that not even a power cut leaves half a file. What a killed
    process left half written is deleted.

    Raises MetamixerError where the place cannot be written, before the block runs if that can be known.
    """
    path = Path(path)
    require_replaceable(path)
    if not path.parent.is_dir():
        raise MetamixerError(f"{path.parent}: no such folder")
    temporary = temporary_beside(path)
    try:
        with _failing_in_a_sentence(path):
            if path.is_dir():
                raise IsADirectoryError(None, "it is a folder")
            temporary.touch()
        with _failing_in_a_sentence(path, temporary):
            yield temporary
        with _failing_in_a_sentence(path):
            sync(temporary)
            temporary.replace(path)
            sync_names(path.parent)
    finally:
        with suppress(OSError):  # a name that could not be created cannot be deleted either
            temporary.unlink(missing_ok=True)


def require_replaceable(path: Path) -> None:
    """Raise MetamixerError where a name means a pipe or a device: whoever may rename would put a file in its place."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing there, or nothing that can be looked at
        return
    except ValueError:  # zeros, and what the file system's encoding has not got
        raise MetamixerError(f"{path} cannot be written (no file can have such a name)") from None
    kind = next((name for test, name in _KINDS if test(mode) and not stat.S_ISDIR(mode)), None)
    if kind is not None:
        raise MetamixerError(f"{path} is {kind}, which no file may replace")


@contextmanager
def folder_when_done(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, renamed to it when the block ends well and deleted when it does not.

    Like :func:`replace_when_done`. ``path`` must not exist; its parents are created. Raises MetamixerError where the
    place cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    with _failing_in_a_sentence(path):
        if path.exists():
            raise FileExistsError(None, "it exists")
    with room_beside(path) as temporary:
        yield temporary
        with _failing_in_a_sentence(path):
            sync(temporary)
            temporary.rename(path)
            sync_names(path.parent)


@contextmanager
def room_beside(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` for what is to become it, deleted in the end however the block ends.

    Raises MetamixerError where it cannot be made, or what lies in it cannot be written.
    """
    room = temporary_beside(path)
    try:
        with _failing_in_a_sentence(path):
            room.mkdir()
        with _failing_in_a_sentence(path, room):
            yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


@contextmanager
def _failing_in_a_sentence(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Full disks and the like as MetamixerError, whichever library met them; other errors as they are.

    Args:
        path: for the sentence.
        temporary: what the block writes, where it is a caller's, whose other files are not to be blamed on ``path``.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if temporary is None and isinstance(error, OSError):
            reason: str | None = error.strerror or str(error)
        else:
            reason = reason_of_failed_write(error, temporary or path)
        if reason is None:
            raise
        raise MetamixerError(f"{path} cannot be written ({reason})") from None


def make_folder(path: str | Path) -> Path:
    """``path``, created with its parents where it does not exist. Raises MetamixerError where that is not possible."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise MetamixerError(f"{path} is a file where a folder is needed") from None
    except OSError as error:
        raise MetamixerError(f"{path} cannot be created ({error.strerror or error})") from None
    return path
