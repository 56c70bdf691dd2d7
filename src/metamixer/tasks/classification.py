"""Image classification: folders of pictures, cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from metamixer.data.image_folder import ImageFolder, split_of
from metamixer.data.transforms import Preprocessing, evaluation_transform, training_transform
from metamixer.errors import MetamixerError

VALIDATION_FOLDERS = ("val", "validation", "test")


@dataclass(frozen=True)
class ClassificationMetrics:
    """Accuracies in percent, mean cross-entropy, pictures counted."""

    top1: float
    top5: float
    loss: float
    count: int


class Classification:
    """A folder with ``train`` and ``val`` (or ``validation``, ``test``), each with one sub-folder per class."""

    def __init__(
        self,
        data: str | Path,
        workers: int | None = None,
        crop_scale: tuple[float, float] = (0.35, 1.0),
        smoothing: float = 0.0,
    ) -> None:
        train, validation = split_of(data, ("train",)), split_of(data, VALIDATION_FOLDERS)
        if train is None or validation is None:
            if not Path(data).is_dir():
                raise MetamixerError(f"{data}: no such folder")
            raise MetamixerError(f"{data} needs a folder 'train' and one of {', '.join(VALIDATION_FOLDERS)}")
        self.train = ImageFolder(train)
        self.validation = ImageFolder(validation)
        self.classes = self.train.classes
        if self.validation.classes != self.classes:
            odd = sorted(set(self.validation.classes) ^ set(self.classes))
            raise MetamixerError(f"{train} and {validation} do not hold the same classes; only one has {odd[0]!r}")
        self.workers = default_workers() if workers is None else workers
        self.crop_scale = crop_scale
        self.smoothing = smoothing

    def fit_to(self, model: nn.Module, image_size: int | None) -> None:
        """Take size and normalisation from the model's configuration, the size from the argument if given."""
        self.preprocessing = Preprocessing.of(model.pretrained_cfg, image_size)
        self.image_size = self.preprocessing.image_size

    def steps_per_epoch(self, batch_size: int) -> int:
        steps = len(self.train) // batch_size
        if not steps:
            raise MetamixerError(f"{len(self.train)} training pictures are fewer than one batch of {batch_size}")
        return steps

    def train_loader(self, size: int, batch_size: int, seed: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """Shuffled, augmented uint8 batches of ``size`` pixels; an incomplete last batch is left out."""
        self.train.transform = training_transform(size, self.crop_scale)
        return DataLoader(
            self.train,
            batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            generator=torch.Generator().manual_seed(seed),
            pin_memory=torch.cuda.is_available(),
        )

    def loss(self, model: nn.Module, pictures: Tensor, labels: Tensor) -> Tensor:
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
) -> ClassificationMetrics:
    """Accuracy of ``model`` on all pictures of ``folder``."""
    folder.transform = evaluation_transform(preprocessing)
    workers = default_workers() if workers is None else workers
    was_training = model.training
    model.eval()
    correct1 = correct5 = count = 0
    loss = 0.0
    for pictures, labels in DataLoader(folder, batch_size, num_workers=workers):
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
