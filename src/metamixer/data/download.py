"""Download a file once, resuming where an earlier attempt broke off."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metamixer.data.connection import RefusedError, address, ask
from metamixer.data.files import open_regular, read_text
from metamixer.data.folder_lock import take
from metamixer.data.unfinished import sync, sync_names
from metamixer.errors import MetamixerError
from metamixer.limits import ANY_BYTES, KIB, in_words
from metamixer.printing import Bar, notices

CHUNK = 1 << 20
_TITLES = {"sha256": "SHA-256", "md5": "MD5"}


def cache_folder() -> Path:
    """Where downloads are kept: ``METAMIXER_CACHE``, or ``~/.cache/metamixer``."""
    named = os.environ.get("METAMIXER_CACHE")
    return Path(os.path.expanduser(named)) if named else Path.home() / ".cache" / "metamixer"


def download(
    url: str,
    name: str,
    size: int | None = None,
    sha256: str | None = None,
    md5: str | None = None,
    secrets: Mapping[str, str] | None = None,
) -> Path:
    """The file at ``url``, from the cache if it is there; if not, a notice tells what is being fetched.

    It grows as ``name.part`` and takes its name only when it is whole, so a broken download leaves no half file, and
    the next attempt goes on where it stopped.

    Args:
        url: http or https address.
        name: file name in the cache; it may lie in folders there.
        size: bytes it must have, where known; what the server announces is checked in any case.
        sha256, md5: digests it must have, where known. MD5 shows damage, not malice.
        secrets: headers that only this server may see.

    Raises MetamixerError without a network (UnreachableError), for what the server refuses or does not have
    (RefusedError), a web page in place of the file, a cache that cannot be written or has no room, or a file of another
    size or digest, which is deleted.
    """
    target = cache_folder() / name
    try:
        if _is_there(target, size):
            return target
        with one_process(target):
            if _is_there(target, size):  # while this one waited
                return target
            notices.warning("fetching %s", address(url))
            part = Part(target)
            digests = {"sha256": sha256, "md5": md5}
            announced = _fetch(url, part, size, any(digests.values()), secrets)
            _check(url, part, size if size is not None else announced, digests)
            part.take_name()
    except (OSError, ValueError) as error:  # those of the network were caught where they arose
        raise MetamixerError(f"{target} cannot be written ({getattr(error, 'strerror', None) or error})") from None
    return target


def _is_there(target: Path, size: int | None) -> bool:
    return os.path.isfile(target) and (size is None or target.stat().st_size == size)


@contextmanager
def one_process(target: Path) -> Iterator[None]:
    """One process at a time writes ``target``, whose folder is made: those of a distributed run start together.

    Where the file system knows no locks, that is said and nothing is held. Raises OSError where it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        missing = take(lock, timeout=1)
    except Timeout:
        notices.warning("waiting for another process that is fetching %s", target.name)
        missing = take(lock, timeout=-1)
    if missing:
        notices.warning(
            "%s cannot be locked (%s): see to it that no other process fetches %s", lock.lock_file, missing, target.name
        )
    try:
        yield
    finally:
        lock.release()


class Part:
    """A file on its way to ``target``, and beside it the mark by which the server knows this state of it (its ETag)."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._mark = target.with_name(f"{target.name}.part.etag")

    @property
    def held(self) -> int:
        """Bytes that an earlier attempt left. Raises MetamixerError where that is no file."""
        if not os.path.lexists(self.path):
            return 0
        with open_regular(self.path, ANY_BYTES) as file:
            return file.seek(0, os.SEEK_END)

    @property
    def mark(self) -> str:
        """By which the server knows what is there; empty where it gave none."""
        found = read_text(self._mark, 64 * KIB).strip() if os.path.lexists(self._mark) else ""
        return found if re.fullmatch(r"[ -~]{1,1000}", found) else ""

    def start(self, mark: str) -> None:
        """Begin anew."""
        self.drop()
        if mark:
            self._mark.write_text(mark, encoding="utf-8")

    def take_name(self) -> None:
        """What is whole becomes the target, on the disk before its name is. Raises OSError where that fails."""
        sync(self.path)
        self.path.replace(self.target)
        self._mark.unlink(missing_ok=True)
        sync_names(self.target.parent)

    def drop(self) -> None:
        """Delete what is there."""
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)


def _fetch(url: str, part: Part, size: int | None, digest: bool, secrets: Mapping[str, str] | None) -> int | None:
    """Download into ``part``, going on from what it holds; the size that the server announced."""
    if part.held and not (digest or part.mark):  # nothing would tell that the file has changed meanwhile
        part.drop()
    continues = True  # whether the server goes on where a broken answer ended
    while True:
        held = part.held
        headers = {"Range": f"bytes={held}-"} | ({"If-Range": part.mark} if part.mark else {}) if held else {}
        try:
            response = ask(url, headers, secrets)
        except RefusedError as error:
            if error.code != 416 or not held:
                raise
            # The range begins beyond the end: either everything is here, or the file has changed.
            whole = _total(error.headers.get("Content-Range"))
            if whole == held:
                return whole
            part.drop()
            continue
        with response:
            resumed = response.status == 206
            if resumed and not (held and _begin(response.headers.get("Content-Range")) == held):
                if not held:
                    raise MetamixerError(f"{address(url)} answers with a part of the file only")
                part.drop()
                continues = False
                continue
            _require_file(url, response)
            if not resumed:
                part.start(_mark_of(response.headers))
                held = 0
            length = response.headers.get("Content-Length") or ""
            announced = int(length) + held if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None
            if size is not None and announced not in (None, size):
                part.drop()
                raise MetamixerError(f"{address(url)} has {announced} bytes instead of {size} and was deleted")
            _require_room(part.path, (announced or size or 0) - held)
            gained, ended = _write(response, part, announced, size, url)
        if ended and (announced is None or part.held >= announced):
            return announced
        if not (gained and continues):
            raise MetamixerError(
                f"the download of {address(url)} broke off; run the same command again to go on with it"
            )


def _write(response: Any, part: Part, announced: int | None, size: int | None, url: str) -> tuple[int, bool]:
    """Append the answer to ``part``; the bytes gained, and whether it ended well rather than by a lost connection."""
    gained = 0
    try:
        with (
            part.path.open("ab") as file,
            Bar(address(url).rpartition("/")[2], announced or size, file.tell()) as bar,
        ):
            while size is None or file.tell() <= size:  # one that goes on for ever ends here
                try:
                    chunk = response.read1(CHUNK)  # what came before a lost connection too
                except (OSError, http.client.HTTPException):
                    return gained, False
                if not chunk:
                    break
                file.write(chunk)
                gained += len(chunk)
                bar.update(file.tell())
    except OSError:  # a full disk stays in the way of others
        part.drop()
        raise
    return gained, True


def _require_file(url: str, response: Any) -> None:
    """A page that asks to log in or to accept something is not the file, even though the server says all is well."""
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml") and not address(url).endswith((".html", ".htm")):
        raise MetamixerError(
            f"{address(url)} answers with a web page instead of the file; a login or a proxy may stand in between"
        )


def _require_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise MetamixerError(f"{part.parent} has {in_words(free)} free, and {in_words(needed)} are to be fetched")


def _mark_of(headers: Any) -> str:
    """A strong ETag, else the date of the last change, for ``If-Range``."""
    etag = headers.get("ETag") or ""
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""


def _check(url: str, part: Part, size: int | None, digests: dict[str, str | None]) -> None:
    problem = ""
    held = part.held
    if size is not None and held != size:
        problem = f"has {held if held < size else f'more than {size}'} bytes instead of {size}"
    elif not held:
        problem = "has no contents"
    for algorithm, expected in digests.items():
        if not problem and expected is not None:
            digest = _digest(part.path, algorithm)
            if digest != expected.lower():
                problem = f"has the {_TITLES[algorithm]} {digest} instead of {expected}"
    if problem:
        part.drop()
        raise MetamixerError(f"{address(url)} {problem} and was deleted")


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _total(content_range: str | None) -> int | None:
    match = re.fullmatch(r"bytes \*/(\d{1,18})", content_range or "", re.ASCII)
    return int(match[1]) if match else None


def _begin(content_range: str | None) -> int | None:
    match = re.match(r"bytes (\d{1,18})-", content_range or "", re.ASCII)
    return int(match[1]) if match else None
