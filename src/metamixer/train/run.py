"""What a training run consists of, how far it is, and its state for a checkpoint."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
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
from torch.nn.utils import get_total_norm

from metamixer.data.files import make_folder, replace_when_done
from metamixer.data.folder_lock import alone_in
from metamixer.data.source import default_workers
from metamixer.data.unfinished import temporary_beside
from metamixer.errors import MetamixerError
from metamixer.heads.base import BATCH_NORMS
from metamixer.limits import require_memory_for_pictures
from metamixer.printing import note
from metamixer.tasks.sharing import all_or_none, from_all, process
from metamixer.tasks.task import Task
from metamixer.train import checkpointing, distributed
from metamixer.train.config import TrainConfig
from metamixer.train.loader import Batch, TaskLoader
from metamixer.train.optim import create_optimizer, create_schedule
from metamixer.train.sampler import BatchSampler, Share

Row = dict[str, float]

RESULTS = ("checkpoints", "metrics.csv", "best.safetensors", "last.safetensors", "tensorboard")
"""What a run leaves in its folder beside its settings, the part first that another run could go on from."""


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

    Args:
        config: all settings.
        accelerator: of this process.
        opened: what is to be closed when the run ends, its folder's lock, is entered here.

    Raises MetamixerError for data, models, checkpoints or folders that do not fit, and where another training is using
    the folder.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, opened: ExitStack) -> None:
        self.accelerator = accelerator
        self.task = task = config.task
        set_seed(config.seed)
        with all_or_none():
            task.open()
            self.config = config = fit_to_data(config, len(task), accelerator.num_processes)
            workers = default_workers() if config.workers is None else config.workers
            task.workers = workers
            self.plain = task.create_model()
            share = Share(accelerator.process_index, accelerator.num_processes, config.accumulate)
            self.sampler = batch_sampler(config, len(task), share)
            require_enough_a_part(task, self.plain, self.sampler, config)
        self.folder = Path(config.folder)
        self.newest: Path | None = None  # the checkpoint to go on from: where this run began, or what it wrote since
        resumed = self._open_folder(opened)
        if (said := choice(task)) and accelerator.is_main_process:
            note(said)

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
        self._finite_after = -1  # the step after which the weights were known to be finite
        if accelerator.process_index:  # equal weights, but dropped paths of its own
            set_seed(config.seed + accelerator.process_index)
        if resumed is not None:
            self._restore(*resumed)
            with all_or_none():
                if accelerator.is_main_process and self._is_own(
                    resumed[0]
                ):  # what came after would pass for this run's
                    checkpointing.delete_later(self.checkpoints, self.progress.step)

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

    def clip_gradients(self) -> Tensor:
        """Limit the gradients' norm, where ``clip_grad`` says so, and return it; 0 where fp16's scaler looks at it."""
        if self.config.clip_grad:
            norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.clip_grad)
        elif self.accelerator.scaler:
            norm = torch.zeros(())
        else:
            norm = get_total_norm([weight.grad for weight in self.parameters if weight.grad is not None])
        norm = torch.as_tensor(norm, dtype=torch.float32, device=self.accelerator.device)
        return torch.zeros_like(norm) if self.accelerator.scaler else norm

    def require_finite(self) -> None:
        """Raise MetamixerError where a weight is no finite number any more: such a run is not to be kept.

        It looks once after every step.
        """
        if self._finite_after == self.progress.step:
            return
        if not bool(torch.stack([weight.detach().isfinite().all() for weight in self.parameters]).all()):
            raise MetamixerError(
                f"weights are no finite numbers after step {self.progress.step}; {self.last_good()}; lower --lr"
            )
        self._finite_after = self.progress.step

    def notes(self) -> list[str]:
        """What is to be said when the run ends."""
        return [*filter(None, [choice(self.task)]), *self.task.notes()]

    def save(self) -> None:
        """Write a checkpoint, and make the processes equal to what it holds. All of them call it.

        Raises MetamixerError where it cannot be written, or its weights are not finite.
        """
        self.require_finite()
        for model in (self.plain, *([self.ema.module] if self.ema else ())):
            distributed.equalise_buffers(model)
        state = self._state()
        written = None
        with all_or_none():
            if self.accelerator.is_main_process:
                written = checkpointing.write(state, self.checkpoints, self.progress.step)
        self.newest = from_all(written)[0]

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    def last_good(self) -> str:
        """Where to go on from, for messages."""
        return f"the last good checkpoint is {self.newest}" if self.newest else "no checkpoint was written before"

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "config": self.config.as_read(),
            "progress": asdict(self.progress),
            "model": self.plain.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "generators": gather_object([checkpointing.generators(self.accelerator.device)]),
        }

    def _restore(self, path: Path, state: Mapping[str, Any]) -> None:
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        checkpointing.load_weights(self.plain, state["model"], path)
        checkpointing.load_optimizer(self.optimizer.optimizer, state["optimizer"], path)
        checkpointing.load_weights(self.plain, state["model"], path)  # again, as looking at the optimiser moves them
        if self.ema and state["ema"] is not None:
            checkpointing.load_weights(self.ema.module, state["ema"], path)
        self.progress = Progress(**state["progress"])
        if self.progress.epoch < self.config.epochs and self.progress.batch > self.sampler.steps(self.progress.epoch):
            raise MetamixerError(f"{path}: progress.batch is {self.progress.batch}, beyond the end of its epoch")
        if not (self.folder / "best.safetensors").exists():  # resumed in another folder
            self.progress.best, self.progress.best_epoch = {}, 0
        process = self.accelerator.process_index
        if process < len(state["generators"]):
            checkpointing.restore_generators(state["generators"][process], self.accelerator.device, path)

    def _open_folder(self, opened: ExitStack) -> tuple[Path, dict[str, Any]] | None:
        """Make the folder, keep others out of it and write what repeats the run into it; the checkpoint to go on from,
        if there is one.

        Being written this early also shows whether the folder can be written.
        """
        config, first = self.config, self.accelerator.is_main_process
        with all_or_none():
            if first:
                opened.enter_context(alone_in(make_folder(self.folder), "training"))
        path = Path(config.resume) if config.resume and config.resume != "auto" else None
        if config.resume == "auto":
            path = next(reversed(checkpointing.checkpoints(self.checkpoints)), None)
        self.newest = path = from_all(path)[
            0
        ]  # the first process's, even where another machine does not see its folder
        resumed = None
        with all_or_none():
            if path:
                resumed = path, checkpointing.read(path)
                checkpointing.check_same(config, resumed[1]["config"], path)
            if first:
                if not (path and self._is_own(path)):
                    self._make_way(anew=not path)
                write_json(self.folder / "config.json", config.to_dict())
                write_json(self.folder / "environment.json", environment(self.accelerator, self.task))
        return resumed

    def _is_own(self, checkpoint: Path) -> bool:
        return checkpoint.resolve().parent == self.checkpoints.resolve()

    def _make_way(self, anew: bool) -> None:
        """Delete an earlier run in the folder, where that was asked for. Raises MetamixerError where it was not.

        All of it is moved aside first, so that it is whole where that fails, and so that a run that is killed here
        leaves nothing for the next to go on from. The new settings are written later.

        Args:
            anew: the run does not begin with another one's checkpoint.
        """
        earlier = [path for name in RESULTS if (path := self.folder / name).exists()]
        settings = self.folder / "config.json"
        if earlier and anew and self.config.resume and settings.is_file():  # it ended before its first checkpoint
            checkpointing.check_same(self.config, checkpointing.read_settings(settings), settings)
        elif earlier and not self.config.overwrite:
            raise MetamixerError(
                f"{self.folder} already holds a run; go on with --resume auto, choose another --out, or replace it with"
                " --overwrite"
            )
        if not earlier:
            return
        aside = temporary_beside(self.folder / "replaced")
        moved: list[str] = []
        try:
            aside.mkdir()
            for path in earlier:
                path.rename(aside / path.name)
                moved.append(path.name)
        except OSError as error:
            for name in moved:
                (aside / name).rename(self.folder / name)
            with suppress(OSError):  # where not even this folder could be made
                aside.rmdir()
            raise MetamixerError(f"{self.folder} cannot be replaced ({error.strerror or error})") from None
        shutil.rmtree(aside, ignore_errors=True)


def batch_sampler(config: TrainConfig, samples: int, share: Share) -> BatchSampler:
    """The batches of a run on so many samples."""
    return BatchSampler(samples, config.batch_size, config.seed, config.sizes_at, config.repeats, share)


def require_enough_a_part(task: Task, model: nn.Module, sampler: BatchSampler, config: TrainConfig) -> None:
    """Raise MetamixerError where batch norms would see a single sample at once, which has no variance."""
    norms = any(isinstance(module, BATCH_NORMS) and module.training for module in model.train().modules())
    seen = sampler.smallest_part(config.epochs) * (sampler.share.processes if config.sync_bn else 1)
    if norms and seen < task.smallest_part:
        sizes = " at the largest of --sizes" if len(config.sizes) > 1 else ""
        raise MetamixerError(
            f"batch norms would see {seen} sample at once{sizes}, of which there is no variance; raise --batch-size"
            + (" or lower --accumulate" if config.accumulate > 1 else "")
        )


def choice(task: Task) -> str | None:
    """What is to be said where the best epoch is chosen on a test part."""
    part = task.test_part()
    if part is None:
        return None
    return (
        f"the best epoch is chosen on {part}, a test part, as there is no other for validation: its result says more"
        " good of the network than new data would"
    )


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
    side = max(config.sizes, default=0) or max(config.progressive or (getattr(config.task, "image_size", None) or 0,))
    part = config.batch_size // unit
    require_memory_for_pictures(part, side, side, at_once=0 if torch.accelerator.is_available() else part)
    if config.batch_size % unit:
        raise MetamixerError(
            f"a batch of {config.batch_size} cannot be shared by {processes} processes in {config.accumulate} parts;"
            f" make --batch-size a multiple of {unit}"
        )
    return config


def prepare_model(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Memory layout and gradient checkpointing. Raises MetamixerError for a model without the latter."""
    if config.channels_last:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = _channels_last(tensor.data)  # Module.to would refuse the kernels of point clouds
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
    """Pictures ``B × C × H × W`` and kernels over them are laid out anew, other tensors stay."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def environment(accelerator: Accelerator, task: Task) -> dict[str, Any]:
    """The command, the versions and the machine of a run, and what its best epoch is chosen on, ready for JSON."""
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
        "best_epoch_chosen_on": task.test_part() or "the validation part",
    }


def write_json(path: Path, contents: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with replace_when_done(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n")
