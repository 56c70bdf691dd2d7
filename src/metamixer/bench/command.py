"""``metamixer bench``: the table on the screen, the files, and the picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from metamixer.bench.latency import RUNTIMES, LatencyReport, LatencyRow, benchmark
from metamixer.bench.published_top1 import published_top1
from metamixer.data.files import replace_when_done
from metamixer.data.tables import write_records
from metamixer.errors import MetamixerError
from metamixer.limits import BatchSize, Count, Threads, checked
from metamixer.printing import Table, say, working

TABLES, PICTURES = (".csv", ".json"), (".png", ".svg", ".pdf")
_BUSY = 0.5  # average load from which on other work has disturbed the times


@checked
def bench_command(
    models: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL")]],
    *,
    against: str = "",
    runtimes: str = "torch,onnx",
    threads: Threads = 1,
    batch: BatchSize = 1,
    image_size: Count | None = None,
    repeats: Count = 50,
    out: Path | None = None,
    picture: Path | None = None,
) -> None:
    """Time models side by side on the CPU, merged for inference, each in a process of its own, in turns.

    Args:
        models: models to time, by name; also a head of dense prediction, or the path of a checkpoint.
        against: other models of timm to time in the same run, for comparison, separated by commas.
        runtimes: separated by commas: torch, aotinductor, onnx, openvino, executorch, litert, ncnn, coreml.
        threads: threads within an operator; each process is pinned to as many cores.
        batch: pictures per call.
        image_size: side of the pictures in pixels; each model's own by default.
        repeats: measured calls per model and runtime.
        out: a .csv or .json file to write.
        picture: a .png, .svg or .pdf file to draw: published ImageNet top-1 against latency.
    """
    names = [*models, *_split(against)]
    _check_files(names, image_size, out, picture)
    with working("Exporting and timing …"):
        report = benchmark(names, _split(runtimes), threads, batch, image_size, repeats)
    if report.rows:
        latency_table(report.rows).show()
    say(report.machine)
    if report.load is not None and report.load > _BUSY:
        say(f"Other work was running (load average {report.load:.1f}): the times are worth little.")
    if out is not None and report.rows:
        save_report(report, out)
    if picture is not None and any(row.top1 is not None for row in report.rows):
        from metamixer.bench.pareto import draw_pareto  # matplotlib takes its time

        with replace_when_done(picture) as temporary:
            draw_pareto(report.rows, temporary, picture.suffix[1:])
    if report.failed:
        reasons = "; ".join(
            f"{model} in {RUNTIMES[name].runtime}: {why}" for (model, name), why in report.failed.items()
        )
        total = len(report.rows) + len(report.failed)
        raise MetamixerError(f"{len(report.failed)} of {total} pairs could not be timed: {reasons}")


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _check_files(models: Sequence[str], image_size: int | None, out: Path | None, picture: Path | None) -> None:
    """Complain of what would spoil the end of a long measurement before it begins."""
    for path, suffixes in ((out, TABLES), (picture, PICTURES)):
        if path is None:
            continue
        if path.suffix not in suffixes:
            *others, last = suffixes
            raise MetamixerError(f"{path}: the file's name must end in {', '.join(others)} or {last}")
        if not os.path.isdir(path.parent):
            raise MetamixerError(f"{path.parent}: no such folder")
        if os.path.isdir(path):
            raise MetamixerError(f"{path} is a folder where a file is to be written")
        if not os.access(path.parent, os.W_OK):
            raise MetamixerError(f"{path.parent} is a folder that cannot be written to")
    if picture is not None and all(published_top1(name, image_size) is None for name in models):
        raise MetamixerError("there is nothing to draw: for none of these models is an accuracy published at its size")


def save_report(report: LatencyReport, path: Path) -> None:
    """Write a report as ``.csv`` (rows alone) or ``.json`` (with the machine and what failed)."""
    if path.suffix == ".csv":
        write_records(path, map(asdict, report.rows))
        return
    content = {
        "machine": asdict(report.machine),
        "load": report.load,
        "rows": [asdict(row) for row in report.rows],
        "failed": [{"model": m, "runtime": r, "reason": why} for (m, r), why in report.failed.items()],
    }
    with replace_when_done(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def latency_table(rows: Sequence[LatencyRow]) -> Table:
    """The rows as a table for the terminal; what holds for a model in every runtime stands in its first row."""
    first = rows[0]
    noun = "picture" if first.batch == 1 else "pictures"
    title = f"Milliseconds for {first.batch} {noun}, threads: {first.threads}, median of {first.repeats} (quartiles)"
    caption = (
        "parameters and MACs in millions, merged, transforms counted; top-1 on ImageNet as published; MB: peak memory "
        "on top of the runtime's own"
    )
    headings = ("model", "size", "params", "MACs", "top-1", "runtime", "milliseconds", "MB")
    result = Table(headings, left=("runtime",), title=title, caption=caption, dense=True)
    named = None
    for row in rows:
        top1 = "–" if row.top1 is None else f"{row.top1:.1f}"
        facts = (row.model, f"{row.image_size}", f"{row.parameters / 1e6:.2f}", f"{row.macs / 1e6:,.0f}", top1)
        result.add(
            *(facts if row.model != named else ("",) * len(facts)),
            row.runtime,
            f"{row.median_ms:.2f} ({row.low:.2f}–{row.high:.2f})",
            "–" if row.memory_mb is None else f"{row.memory_mb:.0f}",
        )
        named = row.model
    return result
