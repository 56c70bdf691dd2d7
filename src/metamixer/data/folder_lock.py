"""One writer at a time in a folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from metamixer.errors import MetamixerError
from metamixer.printing import note

PATIENCE = 6.0
"""Seconds to wait: the reading processes of a killed training may hold its folder for five seconds more."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[None]:
    """Hold the file ``.lock`` in a folder; the system lets go of it when the process ends, however it ends.

    Where the file system knows no locks, that is said and nothing is held.

    Args:
        folder: to be written into; it exists.
        what: who may be using it, for the message: "training", "race".

    Raises MetamixerError where another process, or thread, holds it, and where the folder cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        missing = take(lock, PATIENCE)
    except Timeout:
        raise MetamixerError(
            f"{folder} is in use by another {what}; wait until that has ended, or choose another --out"
        ) from None
    except OSError as error:
        raise MetamixerError(f"{folder} cannot be written ({error.strerror or error})") from None
    if missing:
        note(f"{folder} cannot be locked ({missing}): see to it that no other {what} writes into it")
    try:
        yield
    finally:
        lock.release()


def take(lock: FileLock, timeout: float) -> str | None:
    """Take a lock; why the file system has none, and None where it is held now.

    Args:
        lock: to be released by the caller in any case.
        timeout: in seconds; negative waits for ever.

    Raises filelock.Timeout where another holds it, and OSError where its file cannot be written.
    """
    try:
        lock.acquire(timeout=timeout)
    except NotImplementedError as error:
        return str(error)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return error.strerror or str(error)
    return None
