"""Download a file once, resuming where an earlier attempt broke off."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from metamixer.data.files import open_regular
from metamixer.errors import MetamixerError
from metamixer.limits import ANY_BYTES
from metamixer.printing import Bar

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without an answer


def cache_folder() -> Path:
    """Where downloads are kept: ``METAMIXER_CACHE``, or ``~/.cache/metamixer``."""
    named = os.environ.get("METAMIXER_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "metamixer"


def download(url: str, name: str, size: int | None = None, sha256: str | None = None, md5: str | None = None) -> Path:
    """The file at ``url``, from the cache if it is there.

    It grows as ``name.part`` and takes its name only when it is whole, so a broken download leaves no half file, and
    the next attempt goes on where it stopped.

    Args:
        url: http or https address.
        name: file name in the cache; it may lie in folders there.
        size: bytes it must have, where known; what the server announces is checked in any case.
        sha256, md5: digests it must have, where known. MD5 shows damage, not malice.

    Raises MetamixerError without a network, for an address that does not exist, a cache that cannot be written, or a
    file of another size or digest, which is deleted.
    """
    target = cache_folder() / name
    if target.is_file() and (size is None or target.stat().st_size == size):
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        with one_process(target):
            if target.is_file() and (size is None or target.stat().st_size == size):  # while this one waited
                return target
            announced = _fetch(url, part)
            _check(url, part, size if size is not None else announced, {"sha256": sha256, "md5": md5})
            part.replace(target)
    except OSError as error:  # those of the network were caught where they arose
        raise MetamixerError(f"{target} cannot be written ({error.strerror or error})") from None
    return target


@contextmanager
def one_process(target: Path) -> Iterator[None]:
    """One process at a time writes ``target``, whose folder is made: those of a distributed run start together."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f"{target.name}.lock")):
        yield


def held_bytes(part: Path) -> int:
    """What an earlier attempt left. Raises MetamixerError where that is no file."""
    if not os.path.lexists(part):
        return 0
    with open_regular(part, ANY_BYTES) as file:
        return file.seek(0, os.SEEK_END)


def _fetch(url: str, part: Path) -> int | None:
    """Download into ``part``, going on from what it holds; the size that the server announced."""
    while True:
        held = held_bytes(part)
        request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
        try:
            response = urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416:
                raise MetamixerError(f"{url} answered {error.code} ({error.reason})") from None
            # The range begins beyond the end: either everything is here, or the file has changed.
            whole = _total(error.headers.get("Content-Range"))
            if whole == held:
                return whole
            part.unlink()
            continue
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(url, error) from None
        with response:
            resumed = response.status == 206
            length = response.headers.get("Content-Length")
            announced = int(length) + (held if resumed else 0) if length else None
            gained = _write(response, part, resumed, announced, url)
        if announced is None or part.stat().st_size >= announced:
            return announced
        if not gained:
            raise MetamixerError(f"the download of {url} broke off; run the same command again to go on with it")


def _write(response: http.client.HTTPResponse, part: Path, resumed: bool, announced: int | None, url: str) -> int:
    """Append the answer to ``part`` (or start it anew); the bytes gained. A lost connection ends it early."""
    gained = 0
    with (
        part.open("ab" if resumed else "wb") as file,
        Bar(url.rpartition("/")[2], announced, file.tell()) as bar,
    ):
        while True:
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException):
                return gained
            if not chunk:
                return gained
            file.write(chunk)
            gained += len(chunk)
            bar.update(file.tell())


def _check(url: str, part: Path, size: int | None, digests: dict[str, str | None]) -> None:
    problem = ""
    if size is not None and part.stat().st_size != size:
        problem = f"has {part.stat().st_size} bytes instead of {size}"
    for algorithm, expected in digests.items():
        if not problem and expected is not None:
            digest = _digest(part, algorithm)
            if digest != expected.lower():
                problem = f"has the {_TITLES[algorithm]} {digest} instead of {expected}"
    if problem:
        part.unlink()
        raise MetamixerError(f"{url} {problem} and was deleted")


_TITLES = {"sha256": "SHA-256", "md5": "MD5"}


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _total(content_range: str | None) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d+)", content_range or "")
    return int(match[1]) if match else None


def _unreachable(url: str, error: Exception) -> MetamixerError:
    reason = getattr(error, "reason", None) or error
    return MetamixerError(f"{url} could not be reached ({reason}); is there a network?")
