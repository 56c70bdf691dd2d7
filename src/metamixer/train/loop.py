"""The training loop of classifiers."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

from metamixer.data.files import replace_when_done
from metamixer.errors import MetamixerError
from metamixer.models import create_model
from metamixer.tasks.classification import Classification
from metamixer.train.config import TrainConfig
from metamixer.weights.checkpoint import save_checkpoint


@dataclass(frozen=True)
class TrainResult:
    """Best validation accuracy (percent), its epoch, and where the weights are."""

    top1: float
    epoch: int
    best: Path
    last: Path


def train(config: TrainConfig) -> TrainResult:
    """Train a classifier as ``config`` says; writes ``config.json``, ``metrics.csv``, ``best`` and ``last.safetensors``.

    Raises MetamixerError for data, models or checkpoints that do not fit, and where the loss is no longer finite.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    set_seed(config.seed)
    task = Classification(config.data, workers=config.workers, crop_scale=config.crop_scale, smoothing=config.smoothing)
    model = create_model(
        config.model,
        pretrained=config.pretrained,
        checkpoint=config.checkpoint,
        num_classes=len(task.classes),
        drop_path_rate=config.drop_path_rate,
    )
    task.fit_to(model, config.image_size)
    out = _run_folder(config)

    steps = task.steps_per_epoch(config.batch_size)
    optimizer = create_optimizer_v2(model, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.sched,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.lr / 100,
        min_lr=config.lr / 100,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    model = model.to(memory_format=torch.channels_last)
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    ema = ModelEmaV3(plain, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
    averaged = ema.module if ema else plain

    best = TrainResult(-1.0, -1, out / "best.safetensors", out / "last.safetensors")
    step = 0
    for epoch in range(config.epochs):
        size = _size_at(epoch, config, task.image_size)
        loader = task.train_loader(size, config.batch_size, seed=config.seed + epoch)
        model.train()
        started, seen, loss_sum = time.perf_counter(), 0, 0.0
        for pictures, labels in _progress(loader, f"epoch {epoch + 1}/{config.epochs} at {size}", accelerator):
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
        elapsed = time.perf_counter() - started
        metrics = task.evaluate(averaged, accelerator.device)
        row = {
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
        _append(out / "metrics.csv", row)
        accelerator.print("  ".join(f"{k} {v:.5g}" for k, v in row.items()))
        save_checkpoint(averaged, best.last, classes=task.classes, preprocessing=task.preprocessing)
        if metrics.top1 > best.top1:
            best = TrainResult(metrics.top1, epoch + 1, best.best, best.last)
            save_checkpoint(averaged, best.best, classes=task.classes, preprocessing=task.preprocessing)
    return best


def _size_at(epoch: int, config: TrainConfig, final: int) -> int:
    if config.progressive_from is None or config.epochs == 1:
        return final
    # The last fifth of the epochs runs at full size.
    share = min(1.0, epoch / (0.8 * (config.epochs - 1)))
    return min(final, round((config.progressive_from + share * (final - config.progressive_from)) / 16) * 16)


def _run_folder(config: TrainConfig) -> Path:
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replace_when_done(out / "config.json") as path:
            path.write_text(json.dumps(asdict(config), indent=2) + "\n")
    except OSError as error:
        raise MetamixerError(f"{out} cannot be written ({error.strerror})") from None
    (out / "metrics.csv").unlink(missing_ok=True)
    return out


def _append(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow({k: round(v, 6) for k, v in row.items()})


def _progress(loader: object, title: str, accelerator: Accelerator) -> Iterator[object]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not accelerator.is_main_process or not os.isatty(1)
    with Progress(*columns, disable=quiet) as progress:
        yield from progress.track(loader, description=title)  # type: ignore[arg-type]
