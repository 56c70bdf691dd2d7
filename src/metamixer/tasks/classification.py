"""Image classification: folders of pictures, cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.data.image_folder import ImageFolder, PictureLoader, split_of
from metamixer.data.transforms import Preprocessing, evaluation_transform, training_transform
from metamixer.errors import MetamixerError

VALIDATION_FOLDERS = ("val", "validation", "test")


@dataclass(frozen=True)
class ClassificationMetrics:
    """Accuracies in percent, mean cross-entropy in nats, pictures counted."""

    top1: float
    top5: float
    loss: float
    count: int


class Classification:
    """A folder with ``train`` and ``val`` (or ``validation``, ``test``), each with one sub-folder per class.

    Args:
        data: the folder.
        workers: processes that read pictures; 0 for none beside the loop, None for a number that suits the machine.
        crop_scale: share of the picture's area that random crops keep, from and to.
        smoothing: label smoothing.

    Raises MetamixerError where the folders are missing or hold no pictures, where there is only one class, and where a
    validation class is none of the training classes.
    """

    def __init__(
        self,
        data: str | Path,
        workers: int | None = None,
        crop_scale: tuple[float, float] = (0.35, 1.0),
        smoothing: float = 0.0,
    ) -> None:
        if not Path(data).is_dir():
            raise MetamixerError(f"{data}: no such folder")
        train, validation = split_of(data, ("train",)), split_of(data, VALIDATION_FOLDERS)
        if train is None or validation is None:
            missing = "'train'" if train is None else f"named one of {', '.join(VALIDATION_FOLDERS)}"
            raise MetamixerError(f"{data} needs a folder {missing} with one sub-folder of pictures per class")
        self.train = ImageFolder(train)
        self.classes = self.train.classes
        if len(self.classes) < 2:
            raise MetamixerError(f"{train} holds the class {self.classes[0]!r} alone; a classifier needs two or more")
        self.validation = ImageFolder(validation, classes=self.classes)
        self.workers = default_workers() if workers is None else workers
        self.crop_scale = crop_scale
        self.smoothing = smoothing

    def fit_to(self, model: nn.Module, image_size: int | None) -> None:
        """Take size and normalisation from the model's configuration, the size from the argument if given."""
        self.preprocessing = Preprocessing.of(model.pretrained_cfg, image_size)
        self.image_size = self.preprocessing.image_size

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in the training set, which must hold one at least."""
        return len(self.train) // batch_size

    def train_loader(self, size: int, batch_size: int, seed: int) -> PictureLoader:
        """Shuffled, augmented uint8 batches of ``size`` pixels; an incomplete last batch is left out."""
        self.train.transform = training_transform(size, self.crop_scale)
        return PictureLoader(
            self.train,
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(seed),
            pin_memory=torch.cuda.is_available(),
        )

    def loss(self, model: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of uint8 ``B × 3 × S × S`` against ``B`` class indices."""
        inputs = self.preprocessing.normalise(pictures).contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(model(inputs), labels, label_smoothing=self.smoothing)

    def evaluate(self, model: nn.Module, device: torch.device) -> ClassificationMetrics:
        return evaluate_folder(model, self.validation, self.preprocessing, device, self.workers)


@torch.inference_mode()
def evaluate_folder(
    model: nn.Module,
    folder: ImageFolder,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int | None = None,
    batch_size: int = 128,
    progress: str | None = None,
) -> ClassificationMetrics:
    """Accuracy of ``model`` on all pictures of ``folder``; ``progress`` titles a progress bar on a terminal."""
    folder.transform = evaluation_transform(preprocessing)
    workers = default_workers() if workers is None else workers
    loader = PictureLoader(folder, batch_size, num_workers=workers)
    was_training = model.training
    model.eval()
    correct1 = correct5 = count = 0
    loss = 0.0
    quiet = progress is None or not sys.stdout.isatty()
    for pictures, labels in track(loader, progress or "", disable=quiet, transient=True):
        labels = labels.to(device)
        inputs = preprocessing.normalise(pictures.to(device)).contiguous(memory_format=torch.channels_last)
        logits = model(inputs).float()
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        correct1 += int(hits[:, 0].sum())
        correct5 += int(hits.any(1).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += len(labels)
    model.train(was_training)
    return ClassificationMetrics(100 * correct1 / count, 100 * correct5 / count, loss / count, count)


def default_workers() -> int:
    """Reading processes: one per core that this process may use, at most 16, less one for the loop."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores - 1))


def default_device() -> torch.device:
    """The machine's accelerator where it has one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
