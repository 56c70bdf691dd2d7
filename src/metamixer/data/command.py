"""``metamixer data fetch NAME`` and ``metamixer data check DIR``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand

from metamixer.data.check import CheckReport, check_folder
from metamixer.data.fetch import fetch
from metamixer.data.files import replace_when_done
from metamixer.data.public_sets import PUBLIC_SETS
from metamixer.data.source import default_workers
from metamixer.limits import Workers, check_settings
from metamixer.printing import Table, say

SHOWN = 5  # examples of each finding; --json has all
CLASSES_SHOWN = 30


@dataclass
class Fetch:
    """Download a public data set as train/CLASS/* and val/CLASS/*.

    Args:
        name: the data set; without it, those known are listed.
        out: where to put it; data/NAME by default.
        keep_archives: leave the downloaded archives in the cache.
    """

    name: Positional[Annotated[str | None, arg(metavar="[NAME]")]] = None
    out: Path | None = None
    keep_archives: bool = False

    def run(self) -> int:
        if self.name is None:
            table = Table(("name", "MB", "pictures"), left=("pictures",))
            for name, public in PUBLIC_SETS.items():
                table.add(name, f"{sum(archive.size for archive in public.archives) / 1e6:.0f}", public.title)
            table.show()
            return 0
        fetched = fetch(self.name, self.out, self.keep_archives)
        if fetched.was_there:
            say(f"{fetched.folder} is there already")
        else:
            say(f"{fetched.folder}: {fetched.train} pictures in train, {fetched.val} in val")
        return 0


@dataclass
class Check:
    """Read every picture of a folder and report what would stop or spoil a training.

    Exits with 1 for corrupt pictures, empty or unknown classes, a training split of one class, the same picture in two
    splits or two classes, class names that differ in case only, and bad annotations; with 0 otherwise.

    Args:
        folder: CLASS/*.jpg, or such folders as train, val, validation and test; or pictures with boxes, masks or class
            maps (COCO, VOC, YOLO, ADE20K, Cityscapes).
        workers: processes that read pictures, 0 for none; by default from the machine.
        json: write the whole report to this file.
    """

    folder: Positional[Annotated[Path, arg(metavar="DIR")]]
    workers: Workers | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> int:
        report = check_folder(self.folder, default_workers() if self.workers is None else self.workers)
        if self.json is not None:
            with replace_when_done(self.json) as temporary:
                temporary.write_text(json.dumps({"ok": report.ok, **asdict(report)}, indent=2) + "\n")
        _show(report)
        return 0 if report.ok else 1


def data_command(
    action: OmitSubcommandPrefixes[
        OmitArgPrefixes[
            Annotated[Fetch, subcommand("fetch", prefix_name=False)]
            | Annotated[Check, subcommand("check", prefix_name=False)]
        ]
    ],
) -> int:
    """Fetch a public data set, or check a folder of pictures."""
    return action.run()


def _show(report: CheckReport) -> None:
    if report.counts:  # none where the pictures have annotations instead of classes
        _classes(report).show()
    common = ", ".join(f"{size} ({count})" for size, count in list(report.sizes.items())[:SHOWN])
    pictures = sum(report.sizes.values())
    say(
        f"{pictures} pictures, sides {report.shortest} to {report.longest} pixels, {report.bytes / 1e6:.1f} MB;"
        f" commonest: {common}"
    )
    for kind, titles in (("problem", report.PROBLEMS), ("note", report.NOTES)):
        for name, title in titles.items():
            found = getattr(report, name)
            if found:
                say(f"{kind}: {title}: {len(found)}")
                for line in _lines(found)[:SHOWN]:
                    say(f"  {line}")
                if len(found) > SHOWN:
                    say(f"  … {len(found) - SHOWN} more")
    say("nothing would stop or spoil a training" if report.ok else "a training would stop or be spoilt")


def _classes(report: CheckReport) -> Table:
    """Pictures by class and split."""
    splits = list(report.counts)
    table = Table(("class", *(split or "pictures" for split in splits)))
    classes = sorted({name for counts in report.counts.values() for name in counts})
    for name in classes[:CLASSES_SHOWN]:
        table.add(name, *(str(report.counts[split].get(name, "")) for split in splits))
    if len(classes) > CLASSES_SHOWN:
        table.add(f"… {len(classes) - CLASSES_SHOWN} more", *("" for _ in splits))
    table.add(f"{len(classes)} classes", *(str(sum(report.counts[split].values())) for split in splits), bold=True)
    return table


def _lines(found: Sequence[str | tuple[str, ...]] | dict[str, float]) -> list[str]:
    if isinstance(found, dict):
        return [f"{split or 'pictures'}: {ratio:.1f}" for split, ratio in found.items()]
    return [line if isinstance(line, str) else " = ".join(line) for line in found]
