"""Everything that a path can name and that is no file to read."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path


def _pipe(place: Path) -> Path:
    os.mkfifo(place)
    return place


def _socket(place: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(place.parent)  # a socket's path has at most 108 bytes
        try:
            one.bind(place.name)
        finally:
            os.chdir(here)
    return place


def _loop(place: Path) -> Path:
    other = place.with_name(f"other-{place.name}")
    other.symlink_to(place)
    place.symlink_to(other)
    return place


def _folder(place: Path) -> Path:
    place.mkdir()
    return place


def _link_to(target: str) -> Callable[[Path], Path]:
    def link(place: Path) -> Path:
        place.symlink_to(target)
        return place

    return link


NON_FILES: dict[str, Callable[[Path], Path]] = {
    "pipe": _pipe,
    "link to itself": _loop,
    "socket": _socket,
    "folder": _folder,
    "endless device": _link_to("/dev/zero"),
    "full device": _link_to("/dev/full"),
    "terminal": _link_to("/dev/tty"),
    "memory": _link_to("/proc/self/mem"),
    "link to nothing": _link_to("nothing"),
}
"""Functions that make one of a kind at a place, by the kind's name. The names keep their ending: what a file is taken
for goes by it."""
