"""What a race leaves to look at: an HTML page that opens without a network, two pictures, tables for other programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.table import Table

from metamixer.bench.race.figures import draw_curves, draw_pareto, styles
from metamixer.bench.race.standings import RaceResult, Standing
from metamixer.data.files import replace_when_done
from metamixer.deploy.timing import Timing
from metamixer.html_page import data_uri, definitions, facts, html_page, table

# The settings that the page lists; race.json has all.
_OF_LOOP = ("epochs", "batch_size", "opt", "lr", "sched", "warmup_epochs", "weight_decay", "clip_grad", "ema_decay")
_OF_TASK = ("image_size", "crop_scale", "policy", "erase", "mixup", "cutmix", "smoothing", "drop_path_rate")


def write_report(result: RaceResult, folder: Path) -> None:
    """Write all files of the report into ``folder``."""
    with replace_when_done(folder / "pareto.png") as temporary:
        draw_pareto(result, temporary)
    with replace_when_done(folder / "curves.png") as temporary:
        draw_curves(result, temporary)
    _write_csv(folder / "standings.csv", [flat(standing) for standing in result.standings])
    cells = [{name: value for name, value in asdict(cell).items() if name != "curve"} for cell in result.cells]
    _write_csv(folder / "cells.csv", cells)
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


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with replace_when_done(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def standings_table(result: RaceResult) -> Table:
    """The standings as a table for the terminal."""
    settings = result.settings
    title = f"{settings['model']}, {settings['epochs']} epochs, {_seeds(result)}"
    table = Table(title=title, title_justify="left")
    for heading in ("mixer", "top-1 %", "behind", "parameters", "MACs", "training", "PyTorch", "ONNX Runtime"):
        table.add_column(heading, justify="left" if heading == "mixer" else "right", overflow="fold")
    for s in result.standings:
        table.add_row(
            s.mixer,
            _spread(s.top1, s.top1_std),
            _behind(s, result),
            f"{s.speed.parameters / 1e6:.3f} M",
            f"{s.speed.macs / 1e6:.1f} M",
            f"{s.speed.images_per_second:.0f}/s",
            f"{s.speed.torch.median_ms:.2f} ms",
            "–" if s.speed.onnx is None else f"{s.speed.onnx.median_ms:.2f} ms",
        )
    missing = {s.speed.onnx_missing for s in result.standings if s.speed.onnx_missing}
    if missing:
        table.caption = "no ONNX Runtime: " + "; ".join(sorted(missing))
    return table


def render_page(result: RaceResult, pareto: bytes, curves: bytes) -> str:
    """The page, with both pictures inlined."""
    settings, counts = result.settings, result.pictures
    style = files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    data = Path(settings["data"]).name or settings["data"]
    several = result.standings[0].seeds > 1
    spread = (
        "± is the standard deviation over the seeds (n − 1). <em>Behind</em> compares with the first mixer seed by"
        " seed; its ± is a standard error: a difference below two of them may be luck."
        if several
        else "One seed only: how much of a difference is luck cannot be told. Repeat with <code>--seeds 3</code> or"
        " more."
    )
    title = f"The mixer race: {settings['model']} on {data}"
    body = f"""<h1>{escape(title)}</h1>
<p class="soft">One backbone, trained from scratch with {len(result.standings)} token mixers: the same
{counts["training"]:,} pictures of {counts["classes"]} classes in the same order, the same settings,
{settings["epochs"]} epochs, {_seeds(result)}. Accuracy is measured on {counts["validation"]:,} other pictures.</p>
{_facts(result)}
<h2>Standings</h2>
<p class="soft">Validation top-1 after the last epoch. {spread}</p>
{_standings(result)}
<h2>Accuracy against latency</h2>
<p class="soft">Up and to the left is better. On the dashed line are the mixers than which none is both faster and more
accurate. Bars: standard deviation of the accuracy, quartiles of the latency.</p>
<figure><img src="{data_uri(pareto, "image/png")}" alt="Top-1 accuracy against latency, one point per mixer"></figure>
<h2>How they learned</h2>
<p class="soft">After every epoch: mean of the seeds, and their range as a band.</p>
<figure><img src="{data_uri(curves, "image/png")}" alt="Validation accuracy and training loss over the epochs"></figure>
<h2>Every training</h2>
{_cells(result)}
<h2>What was equal</h2>
{_equal(result)}
<h2>How to read this</h2>
<ul class="limits">
<li>The settings are the same for all and tuned for none. Another learning rate, another size of the pictures or a
longer schedule can change the order.</li>
<li>{_about_parameters(result)}</li>
<li>Latencies are those of one picture on one machine, measured in turns. Compare them with each other, not with
those of another page.</li>
<li>MACs count convolutions and matrix products, the spectral transforms included; elementwise work is not counted.</li>
</ul>
<h2>How this page was made</h2>
{_made(result)}"""
    return html_page(title, body, style)


def _seeds(result: RaceResult) -> str:
    count = len({cell.seed for cell in result.cells})
    return "one seed" if count == 1 else f"{count} seeds"


def _facts(result: RaceResult) -> str:
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
    return facts([(escape(mixer), text) for mixer, text in entries])


def _standings(result: RaceResult) -> str:
    headings = ["mixer", "top-1 %", "behind, points", "parameters", "MACs", "training memory", "training, pictures/s"]
    headings += ["PyTorch", "ONNX Runtime"]
    style = styles(result)
    rows = []
    for s in result.standings:
        widened = "" if s.speed.ffn_expansion is None else f"<small>FFN × {s.speed.ffn_expansion:g}</small>"
        onnx = "–" if s.speed.onnx is None else _latency(s.speed.onnx)
        if s.speed.onnx_missing:
            onnx = f'<small class="why">not measured: {escape(s.speed.onnx_missing)}</small>'
        rows.append(
            (
                _named(s.mixer, style[s.mixer][0]),
                _spread(s.top1, s.top1_std),
                _behind(s, result),
                f"{s.speed.parameters:,}<small>{s.speed.merged_parameters:,} merged</small>{widened}",
                f"{s.speed.macs / 1e6:.2f} M",
                f"{s.speed.training_memory / 2**20:,.0f} MiB",
                f"{s.speed.images_per_second:,.0f}",
                _latency(s.speed.torch),
                onnx,
            )
        )
    return table(headings, rows)


def _cells(result: RaceResult) -> str:
    style = styles(result)
    rows = [
        (
            _named(cell.mixer, style[cell.mixer][0]),
            f"{cell.seed}",
            f"{cell.top1:.2f}",
            f"{cell.top5:.2f}",
            f"{cell.curve[-1]['train_loss']:.3f}",
            f"{cell.images_per_second:,.0f}",
        )
        for mixer in style
        for cell in result.cells
        if cell.mixer == mixer
    ]
    return table(("mixer", "seed", "top-1 %", "top-5 %", "training loss", "pictures/s, reading included"), rows)


def _equal(result: RaceResult) -> str:
    settings = result.settings
    entries = {name.replace("_", " "): settings[name] for name in (*_OF_LOOP, *_OF_TASK) if name in settings}
    for name in ("pictures", "val_pictures"):
        if settings.get(name):
            entries[f"{name.replace('val_', 'validation ')} per class"] = f"the first {settings[name]}"
    return definitions({key: escape(_plain(value)) for key, value in entries.items()})


def _about_parameters(result: RaceResult) -> str:
    target = result.settings["same_parameters"]
    if target is None:
        return (
            "The mixers differ in parameters and MACs: the backbone around them is the same, so a mixer with more of"
            " them also has more to learn with. <code>--same-parameters</code> evens the parameters out."
        )
    return (
        f"All networks have about {target:,} parameters: the FFNs of the smaller ones were widened. So the mixer is not"
        " the only difference, and MACs differ still."
    )


def _made(result: RaceResult) -> str:
    machine = result.machine
    versions = ", ".join(f"{name} {number}" for name, number in machine.versions.items())
    noun = "thread" if result.threads == 1 else "threads"
    first = min(cell.seed for cell in result.cells)
    return definitions(
        {
            "date": date.today().isoformat(),
            "seeds": f"{first} to {max(cell.seed for cell in result.cells)}",
            "machine": escape(f"{machine.processor}, {machine.cores} cores, {machine.system}"),
            "versions": escape(versions),
            "latency": f"one picture, {result.threads} {noun}, on the CPU, merged network: median and quartiles of"
            " calls in turns over all mixers and both runtimes",
            "training speed": "steps on pictures already in memory, in turns over all mixers; under <em>Every training"
            "</em> as the run went",
            "training memory": "estimate: weights, gradients, optimiser, averaged weights and activations of a batch",
            "numbers": "<code>standings.csv</code>, <code>cells.csv</code>, <code>race.json</code>; settings and"
            " weights of every training in <code>runs/</code>",
        }
    )


def _named(mixer: str, colour: str) -> str:
    return f'<span class="dot" style="--colour:{colour}"></span>{escape(mixer)}'


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def _behind(standing: Standing, result: RaceResult) -> str:
    return "–" if standing is result.standings[0] else _spread(standing.behind, standing.behind_error)


def _latency(timing: Timing) -> str:
    return f"{timing.median_ms:.2f} ms<small>{timing.low:.2f}–{timing.high:.2f}</small>"


def _plain(value: Any) -> str:
    if value is None:
        return "as the network’s own"
    return " to ".join(map(str, value)) if isinstance(value, list) else str(value)
