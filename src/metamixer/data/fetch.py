"""Download a public data set and lay it out as class folders."""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from metamixer.data.download import download
from metamixer.data.files import folder_when_done
from metamixer.data.public_sets import PUBLIC_SETS, PublicSet
from metamixer.data.source import SOURCE_FILE, Split
from metamixer.errors import MetamixerError
from metamixer.printing import progress


@dataclass(frozen=True)
class Fetched:
    """A data set on this machine.

    Attributes:
        folder: holds ``train/CLASS/*`` and ``val/CLASS/*``.
        train, val: pictures; None where the folder was there before.
        was_there: nothing was downloaded.
    """

    folder: Path
    train: int | None
    val: int | None
    was_there: bool


def fetch(name: str, folder: str | Path | None = None, keep_archives: bool = False) -> Fetched:
    """A public data set as class folders, downloaded where it is not there yet.

    The folder appears when it is whole: after a broken download or conversion the same call goes on or starts anew.

    Args:
        name: see ``PUBLIC_SETS``.
        folder: where to put it; ``data/NAME`` by default.
        keep_archives: leave what was downloaded in the cache, for another folder.

    Raises MetamixerError for an unknown name, a download that fails or differs from the published one, a damaged or
    hostile archive, and a place that cannot be written or holds something else.
    """
    if name not in PUBLIC_SETS:
        near = difflib.get_close_matches(name, PUBLIC_SETS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(PUBLIC_SETS)}"
        raise MetamixerError(f"unknown data set {name!r}; {hint}")
    folder = Path(folder) if folder is not None else Path("data", name)
    if os.path.lexists(folder):
        if not os.path.isfile(folder / SOURCE_FILE):
            raise MetamixerError(f"{folder} is there already, and not as `metamixer data fetch` leaves it")
        return Fetched(folder, None, None, was_there=True)
    public = PUBLIC_SETS[name]
    archives = [
        download(archive.url, f"archives/{archive.file_name}", archive.size, archive.sha256, archive.md5)
        for archive in public.archives
    ]
    with folder_when_done(folder) as unfinished:
        counts = _write(public, archives, unfinished)
    if not keep_archives:
        for path in archives:
            path.unlink()
    return Fetched(folder, counts["train"], counts["val"], was_there=False)


def _write(public: PublicSet, archives: list[Path], folder: Path) -> Counter[Split]:
    """Write the pictures and ``source.json`` into ``folder``; how many of each split."""
    counts: Counter[Split] = Counter()
    known = set()
    pictures = progress(public.pictures(archives), "unpacking", sum(public.counts) if public.counts else None)
    for picture in pictures:
        if {"", ".", ".."} & {picture.class_name, picture.file_name} or "/" in picture.class_name + picture.file_name:
            raise MetamixerError(f"{archives[0]} names a class {picture.class_name!r}, which no folder can be called")
        place = folder / picture.split / picture.class_name
        if place not in known:
            place.mkdir(parents=True, exist_ok=True)
            known.add(place)
        with open(place / picture.file_name, "xb") as file:  # two of one name would be one lost
            file.write(picture.data)
        counts[picture.split] += 1
    found = (counts["train"], counts["val"])
    if (public.counts is not None and found != public.counts) or 0 in found:
        raise MetamixerError(
            f"{archives[0]} holds {found[0]} + {found[1]} pictures"
            + (f", not {public.counts[0]} + {public.counts[1]}" if public.counts else "")
        )
    record = {
        "title": public.title,
        "page": public.page,
        "archives": [asdict(archive) for archive in public.archives],
        "train": found[0],
        "val": found[1],
        "val_is_test": public.val_is_test,
    }
    (folder / SOURCE_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return counts
