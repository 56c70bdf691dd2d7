"""Semantic segmentation: class maps, cross-entropy, mean intersection over union, pictures with coloured classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from metamixer.data.annotations import ClassMaps, Policy, open_class_maps_to_train
from metamixer.data.annotations.class_maps import VOID, read_class_map
from metamixer.data.annotations.files import read_annotated
from metamixer.data.joint_transforms import augment_class_map
from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel, SegmentationModel
from metamixer.heads.build import HEADS, build
from metamixer.limits import (
    CountOrNone,
    NotNegative,
    PixelValue,
    Scale,
    ShareBelowOne,
    Side,
    TrainingSide,
    check_settings,
)
from metamixer.tasks.dense_inference import (
    Prepared,
    SegmentationInference,
    fill_colour,
    prepare_to_segment,
    read_ahead,
    segment_prepared,
)
from metamixer.tasks.dense_metrics import ClassMapMetrics
from metamixer.tasks.sharing import shared
from metamixer.tasks.task import Task, model_arguments, require
from metamixer.weights.checkpoint import save_checkpoint


@dataclass
class SemanticSegmentation(Task):
    """A class for every pixel, from pictures with class maps.

    Args:
        data: folder of pictures and class maps; see :func:`metamixer.data.annotations.open_class_maps`.
        head: what turns the backbone's maps into classes.
        backbone: any timm name, ours among them, with ``.tag`` for its weights; that of the head's paper by default.
        pretrained: start the backbone from its default weights.
        checkpoint: start the whole model from this file.
        model_args: further arguments of the head as ``key=value``, such as ``channels=128`` or ``auxiliary=True``.
        image_size: shorter side of pictures in pixels, before ``scale`` in training; that of the head's paper by
            default.
        crop: side of the training crops; ``image_size`` by default.
        scale: smallest and largest factor on training pictures.
        colours: vary brightness, contrast, saturation and hue.
        flip: mirror half of the pictures.
        classes: names in the order of their numbers; by default what the folder says.
        void: the value of pixels without a class, beside 255.
        zero_is_void: 0 is void too, and the first class is 1 (ADE20K).
        class_weights: how much each class counts in the loss; all alike by default.
        auxiliary_weight: how much the auxiliary classifier's loss counts.
        bad_entries: refuse data with bad entries, or leave those out ("drop", "clip").
        frozen_stages: stages of the backbone that are not trained, from the first on.
        frozen_norms: keep the statistics of the backbone's batch norms, for small batches.
        drop_path_rate: stochastic depth of the backbone.
        inference: validate on whole pictures, or on windows that slide over them.
        window, stride: of the sliding windows, in pixels; ``crop`` and two thirds of it by default.
        scales, mirror: further views in validation whose probabilities are averaged.
    """

    metric: ClassVar[str] = "mIoU"

    data: str = ""
    head: Literal["semantic_fpn", "upernet", "ffnet_seg", "deeplabv3", "pspnet"] = "semantic_fpn"
    backbone: str | None = None
    pretrained: bool = False
    checkpoint: str | None = None
    model_args: tuple[str, ...] = ()
    image_size: TrainingSide | None = None
    crop: TrainingSide | None = None
    scale: tuple[Scale, Scale] = (0.5, 2.0)
    colours: bool = True
    flip: bool = True
    classes: tuple[str, ...] = ()
    void: PixelValue = VOID
    zero_is_void: bool = False
    class_weights: tuple[NotNegative, ...] = ()
    auxiliary_weight: NotNegative = 0.4
    bad_entries: Policy = "raise"
    frozen_stages: CountOrNone = 0
    frozen_norms: bool = False
    drop_path_rate: ShareBelowOne = 0.0
    inference: Literal["whole", "slide"] = "whole"
    window: Side | None = None
    stride: Side | None = None
    scales: tuple[Scale, ...] = (1.0,)
    mirror: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        self.side = HEADS[self.head].model.default_size if self.image_size is None else self.image_size
        self.crop_side = self.side if self.crop is None else self.crop
        require(self.side >= 32 and self.crop_side >= 32, "image_size and crop must be 32 or more")
        require(self.crop_side % 32 == 0, "crop must be a multiple of 32")
        require(self.scale[0] <= self.scale[1], "scale must rise")
        window = (self.window or self.crop_side) if self.inference == "slide" else None
        stride = self.stride if self.inference == "slide" else None
        self.how = SegmentationInference(window, stride, self.scales, self.mirror)

    @property
    def model(self) -> str:
        """What the run's folder is called after."""
        return f"{self.head}_{(self.backbone or HEADS[self.head].backbone).partition('.')[0]}"

    def open(self) -> None:
        if not self.data:
            raise MetamixerError("the folder of pictures and class maps is not given: set data")
        self._train, self._validation = open_class_maps_to_train(
            self.data, self.bad_entries, self.classes or None, self.void, self.zero_is_void
        )
        self._names = self._train.classes
        fits = not self.class_weights or len(self.class_weights) == len(self._names)
        require(fits, f"{len(self._names)} classes need as many class_weights, not {len(self.class_weights)}")

    def create_model(self) -> SegmentationModel:
        model = build(
            self.head,
            self.backbone,
            len(self._names),
            self.checkpoint,
            pretrained=self.pretrained or None,
            backbone_kwargs={"drop_path_rate": self.drop_path_rate} if self.drop_path_rate else None,
            **model_arguments(self.model_args),
        )
        assert isinstance(model, SegmentationModel)
        if self.class_weights:
            model.class_weights = torch.tensor(self.class_weights)
        model.auxiliary_weight = self.auxiliary_weight
        model.freeze(self.frozen_stages, self.frozen_norms)
        describe_model(model, self._names, self.side)
        self._preprocessing = Preprocessing.of(model.pretrained_cfg)
        self._fill = fill_colour(model)
        self._longest = model.longest
        return model

    def __len__(self) -> int:
        return len(self._train.pairs)

    def describe(self, index: int) -> str:
        return str(self._train.pairs[index][0])

    def sample(self, index: int, size: int | None) -> tuple[Tensor, Tensor]:
        """A crop ``3 × S × S`` and its class map ``S × S``, both uint8."""
        picture, labels = read_pair(self._train, index)
        crop = self.crop_side if size is None else size
        return augment_class_map(
            torch.from_numpy(np.array(picture)).permute(2, 0, 1),
            torch.from_numpy(labels),
            shorter=round(self.side * crop / self.crop_side),
            longest=self._longest or 1.0,
            crop=crop,
            scale=self.scale,
            colours=self.colours,
            flip=self.flip,
            fill=self._fill,
        )

    def collate(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        pictures, labels = zip(*samples, strict=True)
        return torch.stack(pictures), torch.stack(labels)

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        pictures, labels = batch  # class maps travel as bytes, an eighth of what the loss wants
        return model(self._preprocessing.normalise(pictures), labels.long())

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(model, SegmentationModel)
        metrics = evaluate_segmentation(model, self._validation, self.side, self.how, self.workers, share=True)
        return metrics.summary()

    def save(self, model: nn.Module, path: Path) -> None:
        save_checkpoint(model, path, classes=self._names)


def evaluate_segmentation(
    model: SegmentationModel,
    maps: ClassMaps,
    image_size: int | None = None,
    how: SegmentationInference | None = None,
    workers: int | None = None,
    share: bool = False,
) -> ClassMapMetrics:
    """The confusion of classes over all pictures, at their own size.

    With ``share`` the processes of a distributed run, all of which call this, look at a part of the pictures each.
    """

    def read(index: int) -> tuple[Prepared, np.ndarray]:
        picture, labels = read_pair(maps, index)
        return prepare_to_segment(model, picture, image_size, how), labels

    def confusion(indices: range) -> Tensor:
        metrics = ClassMapMetrics.empty(model.num_classes)
        for picture, labels in read_ahead(read, indices, workers):
            found = segment_prepared(model, picture, how).class_map
            assert found is not None
            metrics.add(torch.from_numpy(labels), torch.from_numpy(found))
        return metrics.counts

    return ClassMapMetrics(torch.stack(shared(len(maps.pairs), confusion, share)).sum(0))


def read_pair(maps: ClassMaps, index: int) -> tuple[Image.Image, np.ndarray]:
    """The picture, and its class map ``H × W``, uint8."""
    file, labels = maps.pairs[index][0], read_class_map(maps.pairs[index][1], maps)
    return read_annotated(file, (labels.shape[0], labels.shape[1])), labels


def describe_model(model: DenseModel, classes: Sequence[str], side: int) -> None:
    """What a checkpoint of the model will say of it: its classes, and the size of pictures."""
    model.pretrained_cfg |= {"label_names": tuple(classes), "input_size": (3, side, side)}
