"""What every dense-prediction model shares: a backbone's maps, raw outputs, and their post-processing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.data.annotations.class_maps import VOID
from metamixer.errors import MetamixerError
from metamixer.mixers.conv_norm import ConvNorm

Size = tuple[int, int]
Average = Literal["pixels", "labelled", "weights"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Segmentation:
    """One picture's classes: ``logits`` are ``classes × H × W``, ``labels`` (int64, ``H × W``) the best of them."""

    logits: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Detections:
    """One picture's objects, the surest first.

    Attributes:
        boxes: ``N × 4``, left, top, right and bottom in pixels of the network's input, or of the original picture.
        scores: ``N``, 0…1.
        labels: ``N``, int64, 0…classes − 1; the background is no class.
        masks: ``N × H × W``, bool, for heads that draw them.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


class DenseModel(nn.Module):
    """Base of all: ``forward_raw`` is what a graph can hold, ``postprocess`` makes results of it.

    Args:
        backbone: gives a list of ``B × C × H/s × W/s`` maps and a timm ``feature_info``.
        num_classes: classes, without the background.
    """

    classifiers: tuple[str, ...] = ()
    """Parts whose shape depends on the number of classes."""
    optional: tuple[str, ...] = ()
    """Parts that a checkpoint may lack, or hold although the model has them not."""
    default_size: ClassVar[int] = 800
    """The ``image_size`` of the paper's models, in pixels."""
    longest: ClassVar[float | None] = 1333 / 800
    """Pictures are resized to ``image_size`` at their shorter side, but to this many times it at most at their longer
    one; None means that they are stretched to a square."""

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        # Filled by `build`: what the model expects of a picture, and the arguments that a checkpoint of ours repeats.
        self.pretrained_cfg: dict[str, Any] = {}
        self.arguments: dict[str, Any] = {}
        self._frozen: set[str] = set()

    def maps(self, x: Tensor) -> list[Tensor]:
        """All maps of the backbone, channels first."""
        maps = self.backbone(x)
        if getattr(getattr(self.backbone, "output_fmt", None), "value", "NCHW") == "NHWC":
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        return list(maps)

    def forward_raw(self, x: Tensor) -> tuple[Tensor, ...]:
        """``B × 3 × H × W`` to the raw outputs of the head, in the order that the class names."""
        raise NotImplementedError

    def postprocess(
        self,
        raw: Sequence[Tensor],
        sizes: Sequence[Size],
        padded: Size | None = None,
        originals: Sequence[Size] | None = None,
    ) -> Any:
        """Results from raw outputs.

        Args:
            raw: what :meth:`forward_raw` gave.
            sizes: height and width of each picture in the input.
            padded: height and width of the whole input, where pictures were padded at their right and bottom;
                by default every picture fills it.
            originals: height and width of each picture before it was resized; results are then in its pixels.

        Raises MetamixerError where the number of sizes is not that of pictures.
        """
        raise NotImplementedError

    def losses(self, raw: Sequence[Tensor], targets: Any, size: Size) -> dict[str, Tensor]:
        """Named losses, whose sum is minimised, of a batch's raw outputs.

        Args:
            raw: what :meth:`forward_raw` gave.
            targets: what the pictures show; the subclasses say how.
            size: height and width of the whole input.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, targets: Any = None) -> Any:
        """Raw outputs of ``B × 3 × H × W``; with ``targets`` the losses, a dict of scalars."""
        raw = self.forward_raw(x)
        return raw if targets is None else self.losses(raw, targets, (x.shape[-2], x.shape[-1]))

    @property
    def inner_backbone(self) -> nn.Module:
        """The backbone without the wrapper that makes it give maps."""
        inner = getattr(self.backbone, "model", None)
        return inner if isinstance(inner, nn.Module) else self.backbone

    # What timm's optimisers ask of a model

    def no_weight_decay(self) -> set[str]:
        """Names of parameters, beyond biases and norms, that must not decay."""
        own: Any = getattr(self.inner_backbone, "no_weight_decay", set)
        return {self._inside + name for name in own()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups from input to output, for layer-wise learning rates: the backbone's; the rest comes last.

        A backbone of which timm took only the maps tells no layers any more, and is one group.
        """
        own: Any = getattr(self.inner_backbone, "group_matcher", None)
        if own is None:
            return {"backbone": r"^backbone\."}

        def moved(pattern: Any) -> Any:
            if isinstance(pattern, str):
                return re.sub(r"^\^", "^" + re.escape(self._inside), pattern)
            if isinstance(pattern, tuple):
                return (moved(pattern[0]), *pattern[1:])
            return [moved(one) for one in pattern]

        return {name: moved(pattern) for name, pattern in own(coarse).items()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backbone compute its activations again in the backward pass. MetamixerError where it cannot."""
        own: Any = getattr(self.inner_backbone, "set_grad_checkpointing", None)
        if own is None:
            raise MetamixerError(f"{type(self.inner_backbone).__name__} knows no gradient checkpointing")
        own(enable)

    @property
    def _inside(self) -> str:
        return "backbone." if self.inner_backbone is self.backbone else "backbone.model."

    def freeze(self, stages: int = 0, norms: bool = False) -> None:
        """Hold parts of the backbone fixed for training: they get no gradients, and norms keep their statistics.

        Args:
            stages: everything up to the backbone's map of this number (1 is the finest) is held; 0 for nothing.
            norms: hold the statistics of all batch norms of the backbone, for batches too small to have their own.

        Raises MetamixerError where the backbone has fewer maps.
        """
        info: Any = self.backbone.feature_info
        names = list(info.module_name())
        if stages > len(names):
            raise MetamixerError(f"the backbone has {len(names)} stages; {stages} cannot be frozen")
        frozen: list[nn.Module] = []
        if stages:
            frozen += _layers_up_to(self.inner_backbone, names[stages - 1])
            for layer in frozen:
                for parameter in layer.parameters(recurse=False):
                    parameter.requires_grad_(False)
        if norms:
            frozen += [m for m in self.backbone.modules() if isinstance(m, BATCH_NORMS)]
        # By name: a layer may be replaced, as synchronised batch norms replace plain ones.
        self._frozen = {name for name, module in self.named_modules() if module in frozen}
        self.train(self.training)

    def train(self, mode: bool = True) -> DenseModel:
        super().train(mode)
        for name, layer in self.named_modules():
            if name in self._frozen:
                layer.training = False  # not eval(), which reaches the modules inside
        return self


class SegmentationModel(DenseModel):
    """A class per pixel; the first raw output holds the logits, ``B × classes × H/s × W/s``, the last one those of the
    auxiliary head where there is one.

    Args:
        averaged_over: what the loss is divided by: all ``"pixels"``, the ``"labelled"`` ones (mmsegmentation's
            ``avg_non_ignore``), or the sum of their class ``"weights"``, which without weights is the same. By default
            as the head's paper: mmsegmentation divides by all pixels, void ones too, CVNets by the weights.

    Attributes:
        class_weights: ``classes``, how much each counts in the loss; None for all alike.
        auxiliary_weight: how much the auxiliary head's loss counts.

    Raises MetamixerError for another ``averaged_over``.
    """

    default_size = 512
    longest = 4.0
    align_corners: ClassVar[bool] = False
    """Whether logits are resized with the corner pixels' centres aligned."""
    default_average: ClassVar[Average] = "pixels"
    learnt: ClassVar[int] = 0
    """Which raw output the loss looks at."""
    aux_head: nn.Module | None
    class_weights: Tensor | None

    def __init__(self, backbone: nn.Module, num_classes: int, averaged_over: Average | None = None) -> None:
        super().__init__(backbone, num_classes)
        self.averaged_over = self.default_average if averaged_over is None else averaged_over
        if self.averaged_over not in get_args(Average):
            raise MetamixerError(f"averaged_over must be one of {', '.join(get_args(Average))}, not {averaged_over!r}")
        self.register_buffer("class_weights", None, persistent=False)
        self.auxiliary_weight = 0.4
        self.aux_head = None

    def losses(self, raw: Sequence[Tensor], targets: Tensor, size: Size) -> dict[str, Tensor]:
        """Cross-entropy at the input's resolution. ``targets``: int64, ``B × H × W``, class numbers or VOID.

        A batch of nothing but void has a loss of 0, with gradients of 0. So it is in mmsegmentation; CVNets, which
        divides by nothing then, gives NaN, which a training would not survive.
        """
        losses = {"segmentation": self._cross_entropy(raw[self.learnt], targets)}
        if self.aux_head is not None:
            losses["auxiliary"] = self.auxiliary_weight * self._cross_entropy(raw[-1], targets)
        return losses

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        logits = resize(logits.float(), targets.shape[-2:], self.align_corners)
        total = F.cross_entropy(logits, targets, self.class_weights, ignore_index=VOID, reduction="sum")
        return total / self.divisor(targets)

    def divisor(self, targets: Tensor) -> Tensor:
        """What a sum over pixels becomes a mean by: a scalar, above 0; see ``averaged_over``."""
        labelled = targets != VOID
        if self.averaged_over == "pixels":
            count = targets.new_full((), targets.numel())
        elif self.averaged_over == "weights" and self.class_weights is not None:
            count = (self.class_weights[targets.where(labelled, 0)] * labelled).sum()
        else:
            count = labelled.sum()
        return torch.where(count > 0, count, 1)  # where nothing counts, the sum is 0

    @torch.no_grad()
    def postprocess(
        self,
        raw: Sequence[Tensor],
        sizes: Sequence[Size],
        padded: Size | None = None,
        originals: Sequence[Size] | None = None,
    ) -> list[Segmentation]:
        """Logits resized bilinearly to each picture, and the best class of each pixel."""
        check_sizes(raw[0], sizes)
        results = []
        for i, (height, width) in enumerate(sizes):
            whole = resize(raw[0][i : i + 1], padded or (height, width), self.align_corners)
            logits = whole[0, :, :height, :width]
            if originals is not None:
                logits = resize(logits[None], originals[i], self.align_corners)[0]
            results.append(Segmentation(logits, logits.argmax(0)))
        return results


class AuxiliaryHead(nn.Module):
    """3×3 convolution, norm, activation and classifier on a middle map; helps in training and is then left out.

    ``B × in × H × W`` to ``B × classes × H × W``.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, channels, 3, act=act)
        self.drop = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.conv(x)))


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False, mode: str = "bilinear") -> Tensor:
    """``B × C × H × W`` to ``B × C × *size``."""
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=align_corners)


def check_sizes(of_batch: Tensor, sizes: Sequence[Size]) -> None:
    """Raise MetamixerError where the number of sizes is not that of pictures."""
    if len(sizes) != len(of_batch):
        raise MetamixerError(f"{len(of_batch)} pictures need as many sizes, not {len(sizes)}")


def levels_at(backbone: nn.Module, strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """Places in the backbone's list of maps, and channels, of the last map at each stride.

    Raises MetamixerError where the backbone has no map at one of them.
    """
    info: Any = backbone.feature_info
    reductions, channels = list(info.reduction()), list(info.channels())
    if missing := [stride for stride in strides if stride not in reductions]:
        raise MetamixerError(
            f"this head needs maps at strides {_listed(strides)}; the backbone has {len(reductions)}, at strides "
            f"{_listed(reductions)}, and none at {_listed(missing)}"
        )
    places = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides]
    return places, [channels[place] for place in places]


def last_levels(backbone: nn.Module, count: int) -> tuple[list[int], list[int]]:
    """Places in the backbone's list of maps, and channels, of the last. Raises MetamixerError where it has fewer."""
    info: Any = backbone.feature_info
    channels = list(info.channels())
    if len(channels) < count:
        raise MetamixerError(f"this head needs {count} maps; the backbone has {len(channels)}")
    return list(range(len(channels) - count, len(channels))), channels[-count:]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _layers_up_to(backbone: nn.Module, name: str) -> list[nn.Module]:
    """Modules with tensors of their own, or without children, in the order they were made, up to the last one inside
    the module ``name``."""
    wrapped = {name, name.replace(".", "_")}  # timm flattens names where it takes a network apart
    layers: list[nn.Module] = []
    last = 0
    for path, module in backbone.named_modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if own or not any(True for _ in module.children()):
            layers.append(module)
            if any(path == one or path.startswith(f"{one}.") for one in wrapped):
                last = len(layers)
    return layers[:last]


def normal_init(modules: Sequence[nn.Module], std: float = 0.01) -> None:
    """Normal weights around 0 and no bias for the convolutions and linear layers among (and inside) ``modules``."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
