"""What a race leaves to look at: an HTML page that opens without a network, two pictures, tables for other programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from metamixer.bench.race.figures import draw_curves, draw_pareto, styles
from metamixer.bench.race.standings import RaceResult, Standing
from metamixer.data.files import replace_when_done
from metamixer.data.tables import write_records
from metamixer.html_page import data_uri, render
from metamixer.printing import Table

# The settings that the page lists; race.json has all.
_OF_LOOP = ("epochs", "batch_size", "opt", "lr", "sched", "warmup_epochs", "weight_decay", "clip_grad", "ema_decay")
_OF_TASK = ("image_size", "crop_scale", "policy", "erase", "mixup", "cutmix", "smoothing", "drop_path_rate")


def write_report(result: RaceResult, folder: Path) -> None:
    """Write all files of the report into ``folder``."""
    with replace_when_done(folder / "pareto.png") as temporary:
        draw_pareto(result, temporary)
    with replace_when_done(folder / "curves.png") as temporary:
        draw_curves(result, temporary)
    write_records(folder / "standings.csv", [flat(standing) for standing in result.standings])
    cells = [{name: value for name, value in asdict(cell).items() if name != "curve"} for cell in result.cells]
    write_records(folder / "cells.csv", cells)
    with replace_when_done(folder / "race.json") as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=2) + "\n")
    page = render_page(result, (folder / "pareto.png").read_bytes(), (folder / "curves.png").read_bytes())
    with replace_when_done(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def flat(standing: Standing) -> dict[str, Any]:
    """A standing as one row, latencies as median and quartiles in milliseconds."""
    row = {name: value for name, value in asdict(standing).items() if name != "speed"}
    for name, value in asdict(standing.speed).items():
        if name in ("torch", "onnx"):
            timing = value or {"median_ms": None, "low": None, "high": None}
            row |= {f"{name}_{key.removesuffix('_ms')}_ms": number for key, number in timing.items()}
        else:
            row[name] = value
    return row


def standings_table(result: RaceResult) -> Table:
    """The standings as a table for the terminal."""
    settings = result.settings
    title = f"{settings['model']}, {settings['epochs']} epochs, {_seeds(result)}"
    headings = ("mixer", "top-1 %", "behind", "parameters", "MACs", "training", "PyTorch", "ONNX Runtime")
    missing = sorted({s.speed.onnx_missing for s in result.standings if s.speed.onnx_missing})
    table = Table(headings, title=title, caption=f"no ONNX Runtime: {'; '.join(missing)}" if missing else "")
    for s in result.standings:
        table.add(
            s.mixer,
            _spread(s.top1, s.top1_std),
            _behind(s, result),
            f"{s.speed.parameters / 1e6:.3f} M",
            f"{s.speed.macs / 1e6:.1f} M",
            f"{s.speed.images_per_second:.0f}/s",
            f"{s.speed.torch.median_ms:.2f} ms",
            "–" if s.speed.onnx is None else f"{s.speed.onnx.median_ms:.2f} ms",
        )
    return table


def render_page(result: RaceResult, pareto: bytes, curves: bytes) -> str:
    """The page (``templates/race.html``), with both pictures inlined."""
    settings = result.settings
    return render(
        "templates/race.html",
        result=result,
        title=f"The mixer race: {settings['model']} on {Path(settings['data']).name or settings['data']}",
        seeds=_seeds(result),
        facts=_facts(result),
        equal=_equal(result),
        colours={mixer: colour for mixer, (colour, _) in styles(result).items()},
        spread=_spread,
        behind=_behind,
        pareto=data_uri(pareto, "image/png"),
        curves=data_uri(curves, "image/png"),
        today=date.today().isoformat(),
    )


def _seeds(result: RaceResult) -> str:
    count = len({cell.seed for cell in result.cells})
    return "one seed" if count == 1 else f"{count} seeds"


def _facts(result: RaceResult) -> list[tuple[str, str]]:
    first = result.standings[0]
    fastest = min(result.standings, key=lambda s: s.speed.torch.median_ms)
    entries = [
        (first.mixer, f"most accurate: {_spread(first.top1, first.top1_std)} % top-1"),
        (fastest.mixer, f"fastest in PyTorch: {fastest.speed.torch.median_ms:.2f} ms"),
    ]
    in_onnx = [(s.speed.onnx.median_ms, s.mixer) for s in result.standings if s.speed.onnx]
    if in_onnx:
        entries.append((min(in_onnx)[1], f"fastest in ONNX Runtime: {min(in_onnx)[0]:.2f} ms"))
    trains = max(result.standings, key=lambda s: s.speed.images_per_second)
    entries.append((trains.mixer, f"trains fastest: {trains.speed.images_per_second:.0f} pictures/s"))
    return entries


def _equal(result: RaceResult) -> dict[str, str]:
    """The settings that the page lists, and what they were."""
    settings = result.settings
    entries = {name.replace("_", " "): settings[name] for name in (*_OF_LOOP, *_OF_TASK) if name in settings}
    for name in ("pictures", "val_pictures"):
        if settings.get(name):
            entries[f"{name.replace('val_', 'validation ')} per class"] = f"the first {settings[name]}"
    return {key: _plain(value) for key, value in entries.items()}


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _behind(standing: Standing, result: RaceResult) -> str:
    return "–" if standing is result.standings[0] else _spread(standing.behind, standing.behind_error)


def _plain(value: Any) -> str:
    if value is None:
        return "as the network’s own"
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
