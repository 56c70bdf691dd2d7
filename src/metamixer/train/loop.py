"""The training loop of classifiers."""

from __future__ import annotations

import csv
import difflib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from tyro.conf import OmitArgPrefixes

from metamixer.data.files import make_folder, replace_when_done
from metamixer.errors import MetamixerError
from metamixer.models import create_model
from metamixer.tasks.classification import Classification
from metamixer.train.config import TrainConfig
from metamixer.weights.checkpoint import save_checkpoint


@dataclass(frozen=True)
class TrainResult:
    """Best validation accuracy (percent), its epoch (from 1), and where the weights are."""

    top1: float
    epoch: int
    best: Path
    last: Path


def train(config: TrainConfig) -> TrainResult:
    """Train a classifier as ``config`` says.

    The run folder gets ``config.json`` (the configuration as it was run), ``metrics.csv`` (a row per epoch), and
    ``best.safetensors`` and ``last.safetensors`` (averaged weights with class names and preprocessing).

    Raises MetamixerError for data, models, checkpoints or folders that do not fit, for a picture that cannot be read,
    and where the loss is no longer finite.
    """
    accelerator = _accelerator(config)
    set_seed(config.seed)
    task = Classification(config.data, workers=config.workers, crop_scale=config.crop_scale, smoothing=config.smoothing)
    config = _fit_to_data(config, len(task.train))
    steps = task.steps_per_epoch(config.batch_size)
    model = create_model(
        config.model,
        pretrained=config.pretrained or None,  # a name with a tag asks for weights too
        checkpoint=config.checkpoint,
        num_classes=len(task.classes),
        drop_path_rate=config.drop_path_rate,
    )
    task.fit_to(model, config.image_size)
    out = _open_run_folder(config)

    optimizer, scheduler = _optimizer_and_scheduler(model, config, steps)
    model = model.to(memory_format=torch.channels_last)
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    ema = ModelEmaV3(plain, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
    averaged = ema.module if ema else plain

    best = TrainResult(-1.0, 0, out / "best.safetensors", out / "last.safetensors")
    rows: list[dict[str, float]] = []
    step = 0
    for epoch in range(config.epochs):
        size = _size_at(epoch, config, task.image_size)
        loader = task.train_loader(size, config.batch_size, seed=config.seed + epoch)
        model.train()
        started, seen, loss_sum = time.perf_counter(), 0, 0.0
        with _progress(f"epoch {epoch + 1}/{config.epochs} at {size}", steps) as show:
            for pictures, labels in loader:
                pictures, labels = pictures.to(accelerator.device), labels.to(accelerator.device)
                with accelerator.autocast():
                    loss = task.loss(model, pictures, labels)
                if not torch.isfinite(loss):
                    raise MetamixerError(f"the loss became {loss.item()} in epoch {epoch + 1}, step {step}; lower --lr")
                accelerator.backward(loss)
                if config.clip_grad:
                    accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                scheduler.step_update(step)
                if ema:
                    ema.update(plain, step=step)
                seen += len(labels)
                loss_sum += loss.item() * len(labels)
                show(loss_sum / seen, seen / (time.perf_counter() - started))
        elapsed = time.perf_counter() - started
        metrics = task.evaluate(averaged, accelerator.device)
        rows.append(
            {
                "epoch": epoch + 1,
                "image_size": size,
                "lr": optimizer.param_groups[0]["lr"],
                "train_loss": loss_sum / seen,
                "val_loss": metrics.loss,
                "top1": metrics.top1,
                "top5": metrics.top5,
                "images_per_second": seen / elapsed,
                "seconds": elapsed,
            }
        )
        print("  ".join(f"{name} {value:.5g}" for name, value in rows[-1].items()), flush=True)
        _write_metrics(out / "metrics.csv", rows)
        save_checkpoint(averaged, best.last, classes=task.classes, preprocessing=task.preprocessing)
        if metrics.top1 > best.top1:
            best = replace(best, top1=metrics.top1, epoch=epoch + 1)
            save_checkpoint(averaged, best.best, classes=task.classes, preprocessing=task.preprocessing)
    return best


def train_command(config: OmitArgPrefixes[TrainConfig]) -> None:
    """Train a classifier on a folder of pictures.

    The run's folder gets config.json, metrics.csv, best.safetensors and last.safetensors.
    """
    result = train(config)
    print(f"best top-1 {result.top1:.2f} % in epoch {result.epoch}: {result.best}")


def _accelerator(config: TrainConfig) -> Accelerator:
    # Accelerate keeps the first precision for the whole process; a second run here may ask for another.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(mixed_precision=config.mixed_precision)
    except ValueError as error:  # this hardware has not got it
        raise MetamixerError(f"--mixed-precision {config.mixed_precision} does not work here ({error})") from None
    if accelerator.num_processes > 1:
        raise MetamixerError("this loop trains in one process; start it without torchrun or accelerate launch")
    return accelerator


def _fit_to_data(config: TrainConfig, pictures: int) -> TrainConfig:
    """A batch no larger than the training set, which at two classes or more holds two pictures at least."""
    if pictures >= config.batch_size:
        return config
    print(f"batch size lowered from {config.batch_size} to the {pictures} training pictures", file=sys.stderr)
    return replace(config, batch_size=pictures)


def _open_run_folder(config: TrainConfig) -> Path:
    """Create the folder and write ``config.json``, which also shows early whether it can be written."""
    out = make_folder(config.out or f"runs/{config.model}")
    earlier = [out / name for name in ("metrics.csv", "best.safetensors", "last.safetensors") if (out / name).exists()]
    if earlier and not config.overwrite:
        raise MetamixerError(f"{out} already holds a run; choose another --out, or replace it with --overwrite")
    with replace_when_done(out / "config.json") as path:
        path.write_text(json.dumps(asdict(config), indent=2) + "\n")
    for file in earlier:
        file.unlink()
    return out


def _optimizer_and_scheduler(model: nn.Module, config: TrainConfig, steps: int) -> tuple[Any, Scheduler]:
    """timm's optimiser and schedule, the learning rate rising from and falling to a hundredth of its peak."""
    known = list_optimizers()
    if config.opt.lower() not in known:
        near = difflib.get_close_matches(config.opt, known, 1)
        raise MetamixerError(f"unknown optimiser {config.opt!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.sched,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,  # fractions of an epoch work too
        warmup_lr=config.lr / 100,
        min_lr=config.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return optimizer, scheduler


def _size_at(epoch: int, config: TrainConfig, final: int) -> int:
    """Side in pixels: from ``progressive_from`` in steps of 16, the last fifth of the epochs at full size."""
    if config.progressive_from is None or config.epochs == 1:
        return final
    share = epoch / (0.8 * (config.epochs - 1))
    if share >= 1:
        return final
    return min(final, round((config.progressive_from + share * (final - config.progressive_from)) / 16) * 16)


def _write_metrics(path: Path, rows: list[dict[str, float]]) -> None:
    with replace_when_done(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({name: round(value, 6) for name, value in row.items()} for row in rows)


@contextmanager
def _progress(title: str, steps: int) -> Iterator[Callable[[float, float], None]]:
    """A progress bar on a terminal, silent elsewhere; yields a function of mean loss and pictures per second."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} images/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task(title, total=steps, loss=float("nan"), speed=0.0)
        yield lambda loss, speed: progress.update(bar, advance=1, loss=loss, speed=speed)
