"""Detection and instance segmentation: boxes and masks, the heads' losses, COCO's mean average precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metamixer.data.annotations import ObjectSet, Picture, Policy, open_objects_to_train
from metamixer.data.annotations.files import read_annotated
from metamixer.data.annotations.find import Format
from metamixer.data.annotations.shapes import to_masks
from metamixer.data.joint_transforms import (
    DIVISOR,
    Augmentation,
    augment_objects,
    pad_masks,
    pad_together,
    padded_size,
)
from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel
from metamixer.heads.build import HEADS, build
from metamixer.heads.mask_rcnn import MaskRCNN
from metamixer.limits import CountOrNone, ShareBelowOne, TrainingSide, check_settings
from metamixer.tasks.dense_inference import detect_prepared, fill_colour, prepare_to_detect, read_ahead
from metamixer.tasks.dense_metrics import coco_metrics
from metamixer.tasks.segmentation import describe_model
from metamixer.tasks.sharing import in_order, shared
from metamixer.tasks.task import Task, model_arguments, require
from metamixer.weights.checkpoint import save_checkpoint


@dataclass
class Detection(Task):
    """Boxes of objects, and their masks where the head draws them.

    Args:
        data: folder in COCO's, VOC's or YOLO's layout; see :func:`metamixer.data.annotations.open_objects`.
        head: what finds objects in the backbone's maps; the last two draw masks, and an object without one is a bad
            entry to them.
        backbone: any timm name, ours among them, with ``.tag`` for its weights; that of the head's paper by default.
        pretrained: start the backbone from its default weights.
        checkpoint: start the whole model from this file.
        model_args: further arguments of the head as ``key=value``, such as ``channels=128``.
        image_size: shorter side of pictures in pixels (of SSDLite both); that of the head's paper by default.
        augmentation: how training pictures vary; see :data:`metamixer.data.joint_transforms.Augmentation`.
        format: layout of ``data``; found out by default.
        bad_entries: refuse data with bad entries, leave those out ("drop"), or also cut boxes at the picture's edge
            ("clip").
        frozen_stages: stages of the backbone that are not trained, from the first on.
        frozen_norms: keep the statistics of the backbone's batch norms, for small batches.
        drop_path_rate: stochastic depth of the backbone.
    """

    metric: ClassVar[str] = "mAP"

    data: str = ""
    head: Literal["retinanet", "ssdlite", "mask_rcnn", "cascade_mask_rcnn"] = "retinanet"
    backbone: str | None = None
    pretrained: bool = False
    checkpoint: str | None = None
    model_args: tuple[str, ...] = ()
    image_size: TrainingSide | None = None
    augmentation: Augmentation = "flip"
    format: Format = "auto"
    bad_entries: Policy = "raise"
    frozen_stages: CountOrNone = 0
    frozen_norms: bool = False
    drop_path_rate: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        check_settings(self)
        self.side = HEADS[self.head].model.default_size if self.image_size is None else self.image_size
        require(self.side >= DIVISOR, f"image_size must be {DIVISOR} or more")

    @property
    def masks(self) -> bool:
        """Whether masks are learnt."""
        return issubclass(HEADS[self.head].model, MaskRCNN)

    @property
    def model(self) -> str:
        """What the run's folder is called after."""
        return f"{self.head}_{(self.backbone or HEADS[self.head].backbone).partition('.')[0]}"

    def open(self) -> None:
        if not self.data:
            raise MetamixerError("the folder of pictures and boxes is not given: set data")
        self._train, self._validation = open_objects_to_train(self.data, self.format, self.bad_entries, self.masks)

    def create_model(self) -> DenseModel:
        model = build(
            self.head,
            self.backbone,
            len(self._train.classes),
            self.checkpoint,
            pretrained=self.pretrained or None,
            backbone_kwargs={"drop_path_rate": self.drop_path_rate} if self.drop_path_rate else None,
            **model_arguments(self.model_args),
        )
        model.freeze(self.frozen_stages, self.frozen_norms)
        describe_model(model, self._train.classes, self.side)
        self._preprocessing = Preprocessing.of(model.pretrained_cfg)
        self._fill = fill_colour(model)
        self._longest = model.longest
        return model

    def __len__(self) -> int:
        return len(self._train.pictures)

    def describe(self, index: int) -> str:
        return str(self._train.pictures[index].file)

    def sample(self, index: int, size: int | None) -> dict[str, Tensor]:
        """``picture`` (uint8 ``3 × H × W``), ``boxes``, ``labels``, ``size`` and for heads that draw them ``masks``."""
        entry = self._train.pictures[index]
        learnt = [one for one in entry.instances if not one.crowd]
        return augment_objects(
            torch.from_numpy(np.array(read_annotated(entry.file, entry.size))).permute(2, 0, 1),
            torch.tensor([one.box for one in learnt], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([one.label for one in learnt], dtype=torch.int64),
            torch.from_numpy(to_masks([one.segmentation for one in learnt], entry.size)) if self.masks else None,
            shorter=self.side if size is None else size,
            longest=self._longest,
            augmentation=self.augmentation,
            fill=self._fill,
        )

    def collate(self, samples: Sequence[Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """uint8 pictures padded to one size, and what each shows; masks are padded as their picture is by itself."""
        pictures = pad_together([sample["picture"] for sample in samples], self._fill)
        targets = [{name: sample[name] for name in sample if name != "picture"} for sample in samples]
        for target in targets:
            if "masks" in target:
                target["masks"] = pad_masks(target["masks"], padded_size(target["size"].tolist()))
        return pictures, targets

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        pictures, targets = batch
        return model(self._preprocessing.normalise(pictures), targets)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(model, DenseModel)
        return evaluate_detection(model, self._validation, self.side, self.masks, self.workers, share=True)

    def save(self, model: nn.Module, path: Path) -> None:
        save_checkpoint(model, path, classes=self._train.classes)


def evaluate_detection(
    model: DenseModel,
    objects: ObjectSet,
    image_size: int | None = None,
    masks: bool = False,
    workers: int | None = None,
    share: bool = False,
) -> dict[str, float]:
    """COCO's metrics over all pictures; see :func:`~metamixer.tasks.dense_metrics.coco_metrics`.

    With ``share`` the processes of a distributed run, all of which call this, look at a part of the pictures each.
    """

    def found_in(indices: range) -> list[list[dict[str, Any]]]:
        """COCO's entries of each picture."""
        entries = []
        pictures = read_ahead(
            lambda i: prepare_to_detect(model, read_entry(objects.pictures[i]), image_size), indices, workers
        )
        for i, picture in zip(indices, pictures, strict=True):
            found = detect_prepared(model, picture)
            entries.append((found if masks else replace(found, masks=None)).to_coco(i + 1))
        return entries

    entries = in_order(shared(len(objects.pictures), found_in, share))
    return coco_metrics(objects.pictures, list(chain.from_iterable(entries)), masks)


def read_entry(entry: Picture) -> Image.Image:
    """The picture itself."""
    return read_annotated(entry.file, entry.size)
