"""Files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metamixer.errors import MetamixerError


@contextmanager
def replace_when_done(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it when the block ends well and deleted when it does not.

    Raises MetamixerError where the place cannot be written, before the block runs if that can be known.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise MetamixerError(f"{path.parent}: no such folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        temporary.touch()
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise MetamixerError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):  # a name that could not be created cannot be deleted either
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_when_done(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, renamed to it when the block ends well and deleted when it does not.

    ``path`` must not exist; its parents are created. Raises MetamixerError where the place cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists():
            raise FileExistsError(None, "it exists")
        temporary.mkdir()
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise MetamixerError(f"{path} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
