"""What a training run consists of, how far it is, and its state for a checkpoint."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, recursively_apply, send_to_device, set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from metamixer.data.files import make_folder, replace_when_done
from metamixer.data.source import default_workers
from metamixer.errors import MetamixerError
from metamixer.printing import note
from metamixer.tasks.sharing import all_or_none, from_all, process
from metamixer.train import checkpointing, distributed
from metamixer.train.config import TrainConfig
from metamixer.train.loader import Batch, TaskLoader
from metamixer.train.optim import create_optimizer, create_schedule
from metamixer.train.sampler import BatchSampler, Share

Row = dict[str, float]

RESULTS = ("metrics.csv", "best.safetensors", "last.safetensors", "checkpoints", "tensorboard")
"""What a run leaves in its folder beside its settings."""


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch, batch: the next batch: its epoch, and its place in it, both from 0.
        step: steps of the optimiser so far.
        seen, loss_sum, seconds: samples of this epoch so far, the sum of their losses, and the time that they took.
        rows: the metrics of the epochs that are done.
        best, best_epoch: the metrics of the best of them, and its number from 1.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seen: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    best: Row = field(default_factory=dict)
    best_epoch: int = 0


class Run:
    """Model, data, optimiser and schedule of a run, set up for all processes and resumed where that was asked for.

    Raises MetamixerError for data, models, checkpoints or folders that do not fit.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.task = task = config.task
        set_seed(config.seed)
        with all_or_none():
            task.open()
            self.config = config = fit_to_data(config, len(task), accelerator.num_processes)
            workers = default_workers() if config.workers is None else config.workers
            task.workers = workers
            self.plain = task.create_model()
        self.folder = Path(config.folder)
        resumed = self._open_folder()

        share = Share(accelerator.process_index, accelerator.num_processes, config.accumulate)
        self.sampler = BatchSampler(len(task), config.batch_size, config.seed, config.sizes_at, config.repeats, share)
        self.loader = TaskLoader(task, self.sampler, workers, pin_memory=accelerator.device.type == "cuda")
        self.steps = sum(self.sampler.steps(epoch) for epoch in range(config.epochs))

        prepare_model(self.plain, config).to(accelerator.device)
        self.ema = ModelEmaV3(self.plain, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        if config.compile:
            self.plain.compile()
        self.model = distributed.wrap(self.plain, config, accelerator)
        optimizer = create_optimizer(self.plain, config)
        self.parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
        self.scheduler = create_schedule(optimizer, config, self.steps / config.epochs)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.progress = Progress()
        if accelerator.process_index:  # equal weights, but dropped paths of its own
            set_seed(config.seed + accelerator.process_index)
        if resumed is not None:
            self._restore(*resumed)

    def batches(self) -> Iterator[list[Batch]]:
        """What is left of this epoch's batches, each as the parts that this process works through."""
        self.sampler.set_epoch(self.progress.epoch, skip=self.progress.batch)
        parts = iter(self.loader)
        while batch := list(islice(parts, self.config.accumulate)):
            yield batch

    def to_device(self, data: Any) -> Any:
        """A batch's tensors on this process's device."""
        return to_device(data, self.accelerator.device, self.config.channels_last)

    def weights(self) -> nn.Module:
        """The model to validate and to keep: averaged if ``ema_decay`` says so, equal on all processes."""
        model = self.ema.module if self.ema else self.plain
        distributed.equalise_buffers(model)
        return model

    def save(self) -> None:
        """Write a checkpoint, and make the processes equal to what it holds. All of them call it."""
        for model in (self.plain, *([self.ema.module] if self.ema else ())):
            distributed.equalise_buffers(model)
        state = self._state()
        with all_or_none():
            if self.accelerator.is_main_process:
                checkpointing.write(state, self.folder / "checkpoints", self.progress.step)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint in the run's folder."""
        return next(reversed(checkpointing.checkpoints(self.folder / "checkpoints")), None)

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "config": json.loads(json.dumps(self.config.to_dict())),
            "progress": asdict(self.progress),
            "model": self.plain.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "generators": gather_object([checkpointing.generators(self.accelerator.device)]),
        }

    def _restore(self, path: Path, state: Mapping[str, Any]) -> None:
        checkpointing.load_weights(self.plain, state["model"], path)
        if self.ema and state["ema"] is not None:
            checkpointing.load_weights(self.ema.module, state["ema"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        if not (self.folder / "best.safetensors").exists():  # resumed in another folder
            self.progress.best, self.progress.best_epoch = {}, 0
        process = self.accelerator.process_index
        if process < len(state["generators"]):
            checkpointing.restore_generators(state["generators"][process], self.accelerator.device)

    def _open_folder(self) -> tuple[Path, dict[str, Any]] | None:
        """Make the folder and write what repeats the run into it; the checkpoint to go on from, if there is one.

        Being written this early also shows whether the folder can be written.
        """
        config, first = self.config, self.accelerator.is_main_process
        with all_or_none():
            if first:
                make_folder(self.folder)
        path = self.last_checkpoint() if config.resume == "auto" else config.resume and Path(config.resume)
        path = from_all(path)[0]  # the first process's, even where another machine does not see its folder
        resumed = None
        with all_or_none():
            if path:
                resumed = path, checkpointing.read(path)
                checkpointing.check_same(config, resumed[1]["config"], path)
            if first:
                if resumed is None:
                    self._make_way()
                write_json(self.folder / "config.json", config.to_dict())
                write_json(self.folder / "environment.json", environment(self.accelerator))
        return resumed

    def _make_way(self) -> None:
        """Delete an earlier run in the folder, where that was asked for. Raises MetamixerError where it was not."""
        earlier = [path for name in RESULTS if (path := self.folder / name).exists()]
        settings = self.folder / "config.json"
        if earlier and self.config.resume and settings.is_file():  # it ended before its first checkpoint
            checkpointing.check_same(self.config, json.loads(settings.read_text()), settings)
        elif earlier and not self.config.overwrite:
            raise MetamixerError(
                f"{self.folder} already holds a run; go on with --resume auto, choose another --out, or replace it with"
                " --overwrite"
            )
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def fit_to_data(config: TrainConfig, samples: int, processes: int) -> TrainConfig:
    """A batch no larger than the training set. Raises MetamixerError where it cannot be shared equally."""
    unit = processes * config.accumulate
    if samples < unit:
        raise MetamixerError(
            f"{samples} training samples are too few for {processes} processes that work in {config.accumulate} parts"
        )
    if samples < config.batch_size:
        lowered = samples // unit * unit
        if process() == 0:
            note(f"batch size lowered from {config.batch_size} to {lowered} of {samples} training samples")
        config = replace(config, batch_size=lowered)
    if config.batch_size % unit:
        raise MetamixerError(
            f"a batch of {config.batch_size} cannot be shared by {processes} processes in {config.accumulate} parts;"
            f" make --batch-size a multiple of {unit}"
        )
    return config


def prepare_model(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Memory layout and gradient checkpointing. Raises MetamixerError for a model without the latter."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)
    if config.grad_checkpointing:
        enable: Any = getattr(model, "set_grad_checkpointing", None)
        if enable is None:
            raise MetamixerError(f"{type(model).__name__} has no gradient checkpointing")
        enable()
    return model


def to_device(data: Any, device: torch.device, channels_last: bool) -> Any:
    """The tensors in tuples, lists and dicts on a device; ``channels_last`` is the layout that convolutions prefer."""
    data = send_to_device(data, device, non_blocking=True)
    return recursively_apply(_channels_last, data) if channels_last else data


def _channels_last(tensor: Tensor) -> Tensor:
    """Pictures ``B × C × H × W`` are laid out anew, other tensors stay."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """The command, the versions and the machine of a run, ready for JSON."""
    packages = ("metamixer", "torch", "torchvision", "timm", "accelerate", "numpy")
    device = accelerator.device
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, contents: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with replace_when_done(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n")
