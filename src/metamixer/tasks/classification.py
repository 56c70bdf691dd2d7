"""Image classification: folders of pictures, cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from torchvision.transforms.v2.functional import to_dtype

from metamixer import printing
from metamixer.backbones.base import DistilledHead
from metamixer.data.memory import keep_in_memory
from metamixer.data.mixing import mix
from metamixer.data.source import (
    SPLIT_NAMES,
    BadPictures,
    PictureLoader,
    Pictures,
    Split,
    default_workers,
    open_pictures,
)
from metamixer.data.transforms import (
    Interpolation,
    Policy,
    Preprocessing,
    TrainingTransform,
    evaluation_transform,
)
from metamixer.errors import MetamixerError
from metamixer.limits import (
    Magnitude,
    NotNegative,
    Positive,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    Side,
    TrainingSide,
    check_settings,
)
from metamixer.models import create_model
from metamixer.tasks.distillation import Distillation, Teacher, distillation_loss
from metamixer.tasks.evaluation_mode import evaluation_mode
from metamixer.tasks.sharing import from_all, shared
from metamixer.tasks.task import Task, model_arguments, require
from metamixer.weights.checkpoint import save_checkpoint
from metamixer.weights.convert import chosen_arguments

VALIDATION_FOLDERS = SPLIT_NAMES["val"]


@dataclass(frozen=True)
class ClassificationMetrics:
    """Accuracies in percent, mean cross-entropy in nats, pictures counted."""

    top1: float
    top5: float
    loss: float
    count: int


@dataclass
class Classification(Task):
    """Classify pictures.

    Args:
        model: a model's name; ``name.tag``, or ``name`` with ``pretrained``, starts from its weights.
        data: a folder with ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` (``validation`` or ``test`` also serve), a
            folder or addresses of tar shards, or ``hf://OWNER/NAME``.
        bad_pictures: what an unreadable picture does: "raise" when it is reached, "skip" it (they are listed at the
            end), or "check": read all of them first.
        in_memory: decode all pictures once and keep them, where they take less than 1 GiB: faster for tiny ones.
        image_size: side of the pictures; the model's own by default.
        crop_scale: share of the picture's area that random crops keep, from and to.
        crop_ratio: the crops' width divided by their height, from and to.
        interpolation: how crops are resized: "bilinear", "bicubic", or "random" between them.
        policy: "rand" for RandAugment, "trivial" for TrivialAugment, "three" for three-augment.
        magnitude: of RandAugment, from 0 to 10.
        magnitude_std: deviation of the noise added to it.
        colour_jitter: strength of random brightness, contrast and saturation.
        erase: share of the pictures in which a rectangle is replaced by noise (random erasing).
        mixup: alpha of Mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        mix_probability: share of the batches that are mixed; of those, half by CutMix where both are on.
        smoothing: label smoothing.
        drop_path_rate: stochastic depth.
        model_args: further arguments of the model as ``key=value``, such as ``mixer=pooling``.
        pretrained: start from the model's default weights.
        checkpoint: start from this file.
        teacher: a checkpoint's path or a model's name, also timm's, to learn from.
        distillation: "hard" for the teacher's likeliest class, "soft" for its whole distribution.
        alpha: weight of the teacher in the loss; the labels have the rest.
        temperature: of both distributions in "soft" distillation.
        teacher_size: side of the pictures that the teacher sees; by default the student's, or the teacher's own where
            it takes no other.

    A model with a second classifier learns from the teacher with that one, as in DeiT.

    ``open`` raises MetamixerError where the data is missing or holds no pictures, where there is only one class, and
    where a validation class is none of the training classes.
    """

    model: str
    data: str = ""
    bad_pictures: BadPictures = "raise"
    in_memory: bool = False
    image_size: TrainingSide | None = None
    crop_scale: tuple[ShareAboveZero, ShareAboveZero] = (0.35, 1.0)
    crop_ratio: tuple[Positive, Positive] = (0.8, 1.25)
    interpolation: Interpolation = "bilinear"
    policy: Policy = "none"
    magnitude: Magnitude = 9.0
    magnitude_std: NotNegative = 0.5
    colour_jitter: Share = 0.0
    erase: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    mix_probability: Share = 1.0
    smoothing: ShareBelowOne = 0.1
    drop_path_rate: ShareBelowOne = 0.0
    model_args: tuple[str, ...] = ()
    pretrained: bool = False
    checkpoint: str | None = None
    teacher: str | None = None
    distillation: Distillation = "hard"
    alpha: Share = 0.5
    temperature: Positive = 1.0
    teacher_size: Side | None = None

    metric = "top1"

    def __post_init__(self) -> None:
        check_settings(self)
        low, high = self.crop_scale
        narrow, wide = self.crop_ratio
        require(low <= high, "crop_scale must rise")
        require(narrow <= wide, "crop_ratio must rise")
        self._teacher: Teacher | None = None

    def open(self) -> None:
        if not self.data:
            raise MetamixerError("the folder of pictures is not given: set data")
        self.train = self.open_split("train")
        self.classes = self.train.classes
        if len(self.classes) < 2:
            raise MetamixerError(
                f"{self.data} holds the class {self.classes[0]!r} alone; a classifier needs two or more"
            )
        self.validation = self.open_split("val", self.classes)
        if self.in_memory:
            self.train, self.validation = (
                keep_in_memory(pictures, workers=self._workers()) for pictures in (self.train, self.validation)
            )

    def open_split(self, split: Split, classes: Sequence[str] | None = None) -> Pictures:
        """The pictures of a split, of these classes; raises as ``open`` does."""
        return open_pictures(self.data, split, classes, self.bad_pictures, self._workers())

    def _workers(self) -> int:
        return default_workers() if self.workers is None else self.workers

    def create_model(self) -> nn.Module:
        arguments = model_arguments(self.model_args)
        architecture = self.model.partition(".")[0]
        if timm.is_model(architecture):  # else create_model says what is wrong
            arguments = chosen_arguments(architecture, arguments)
        try:
            model = create_model(
                self.model,
                pretrained=self.pretrained or None,  # a name with a tag asks for weights too
                checkpoint=self.checkpoint,
                num_classes=len(self.classes),
                drop_path_rate=self.drop_path_rate,
                **arguments,
            )
        except (TypeError, ValueError) as error:
            raise MetamixerError(f"{self.model} refuses its arguments ({error})") from None
        if self.teacher is not None:
            self._teacher = Teacher(self.teacher, len(self.classes), self.teacher_size)
            if isinstance(getattr(model, "head", None), DistilledHead):
                cast(Any, model).set_distilled_training()
        self.preprocessing = Preprocessing.of(model.pretrained_cfg, self.image_size)
        self.transform = TrainingTransform(
            self.preprocessing.image_size,
            self.crop_scale,
            crop_ratio=self.crop_ratio,
            interpolation=self.interpolation,
            policy=self.policy,
            magnitude=self.magnitude,
            magnitude_std=self.magnitude_std,
            colour_jitter=self.colour_jitter,
            erase=self.erase,
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
        )
        return model

    def __len__(self) -> int:
        return len(self.train)

    def sample(self, index: int, size: int | None) -> tuple[Tensor, int]:
        """A uint8 picture ``3 × S × S`` and its class."""
        self.train.transform = partial(self.transform, size=size)
        return self.train[index]

    def describe(self, index: int) -> str:
        return self.train.name(index)

    def collate(self, samples: Sequence[Any]) -> Any:
        return default_collate(list(samples))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor | dict[str, Tensor]:
        """Cross-entropy of uint8 ``B × 3 × S × S`` against ``B`` class indices, and the distance to the teacher."""
        pictures, targets = batch
        if self.mixup or self.cutmix:
            pictures, targets = mix(
                to_dtype(pictures, torch.float32, scale=True),
                targets,
                len(self.classes),
                self.mixup,
                self.cutmix,
                self.mix_probability,
            )
        outputs = model(self.preprocessing.normalise(pictures))
        # A model with a second classifier gives a pair while it learns from a teacher.
        logits, taught = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        if self._teacher is None:
            return loss
        distance = distillation_loss(taught.float(), self._teacher(pictures), self.distillation, self.temperature)
        return {"labels": (1 - self.alpha) * loss, "teacher": self.alpha * distance}

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        metrics = evaluate_folder(model, self.validation, self.preprocessing, device, self.workers, share=True)
        return asdict(metrics)

    def save(self, model: nn.Module, path: Path) -> None:
        save_checkpoint(model, path, classes=self.classes, preprocessing=self.preprocessing)

    def test_part(self) -> str | None:
        return self.validation.test_part

    def notes(self) -> list[str]:
        # Each process knows those that it came upon.
        found = from_all([*self.train.unreadable, *self.validation.unreadable])
        unreadable = list(dict.fromkeys(name for names in found for name in names))
        return [f"{len(unreadable)} unreadable pictures were skipped: {', '.join(unreadable)}"] if unreadable else []

    def __getstate__(self) -> dict[str, Any]:
        """What processes that read pictures need: all but the teacher."""
        return {**self.__dict__, "_teacher": None}


def evaluate_folder(
    model: nn.Module,
    folder: Pictures,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int | None = None,
    batch_size: int = 128,
    progress: str | None = None,
    share: bool = False,
) -> ClassificationMetrics:
    """Accuracy of ``model`` on all pictures of ``folder``; ``progress`` titles a progress bar on a terminal.

    With ``share`` the processes of a distributed run, all of which call this, work through a part each.
    """
    folder.transform = evaluation_transform(preprocessing)
    workers = default_workers() if workers is None else workers

    @torch.inference_mode()
    def sums(indices: range) -> tuple[int, int, float, int]:
        """Right at first, right among five, cross-entropy, pictures."""
        loader = PictureLoader(folder, batch_size, num_workers=workers, sampler=indices)
        correct1 = correct5 = count = 0
        loss = 0.0
        batches = loader if progress is None else printing.progress(loader, progress)
        with evaluation_mode(model):
            for pictures, labels in batches:
                labels = labels.to(device)
                inputs = preprocessing.normalise(pictures.to(device)).contiguous(memory_format=torch.channels_last)
                logits = model(inputs).float()
                hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
                correct1 += int(hits[:, 0].sum())
                correct5 += int(hits.any(1).sum())
                loss += float(F.cross_entropy(logits, labels, reduction="sum"))
                count += len(labels)
        return correct1, correct5, loss, count

    correct1, correct5, loss, count = map(sum, zip(*shared(len(folder), sums, share), strict=True))
    if not count:
        raise MetamixerError(f"none of the {len(folder)} pictures can be read, {folder.name(0)} among them")
    return ClassificationMetrics(100 * correct1 / count, 100 * correct5 / count, loss / count, count)


def default_device() -> torch.device:
    """The machine's accelerator where it has one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
