"""What every backbone shares: stem → stages → final layer → pool → classifier, with the whole timm interface.

A family's file builds the parts; nothing else differs between families from the outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from timm.layers import ClassifierHead, DropPath
from timm.models import build_model_with_cfg, checkpoint_seq
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.fx import Proxy
from typing_extensions import Self

from metamixer._timm_registration import register_if_postponed
from metamixer.errors import MetamixerError
from metamixer.mixers.conv_norm import ParallelDepthwise, affine_of
from metamixer.mixers.framework import MetaMixer
from metamixer.ops.placement import placed
from metamixer.ops.tracing import is_tracing
from metamixer.weights.load import load_into, read_state, state_from


@placed
class Stage(nn.Module):
    """Optional downsampling followed by blocks at one resolution: ``B × C × H × W`` to ``B × C' × H/s × W/s``."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def run_blocks(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.run_blocks(self.downsample(x))


@placed
class ScaledResidual(nn.Module):
    """``x + drop_path(layer_scale ⊙ mixer(norm(x)))``; layer scale and norm are optional.

    Args:
        mixer: ``B × C × H × W`` to the same shape.
        dim: channels.
        layer_scale: its initial value, None for none.
        drop_path: rate of stochastic depth.
        norm: layer before the mixer.
    """

    def __init__(
        self,
        mixer: nn.Module,
        dim: int,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm = norm or nn.Identity()
        self.mixer = mixer
        self.layer_scale = None if layer_scale is None else nn.Parameter(torch.full((dim, 1, 1), layer_scale))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.norm(x))
        if self.layer_scale is not None:
            y = y * self.layer_scale
        return x + self.drop_path(y)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Fold the norm into the mixer's first and the layer scale into its last convolution, where it has such."""
        mixer = self.mixer
        if isinstance(self.norm, nn.BatchNorm2d) and isinstance(mixer, MetaMixer) and mixer.absorb_norm(self.norm):
            self.norm = nn.Identity()
        last = getattr(self.mixer, "aggregate", None)
        if isinstance(last, ParallelDepthwise):
            last = self.mixer.aggregate = last.fuse()
        if self.layer_scale is not None and isinstance(last, nn.Conv2d):
            last.weight *= self.layer_scale[..., None]
            last.bias *= self.layer_scale.flatten()
            self.layer_scale = None


@placed
class DistilledHead(ClassifierHead):
    """Two classifiers on the pooled map, averaged at inference (CAS-ViT, after DeiT).

    With ``distilled_training`` set, a model in training mode returns the pair (class, distillation) instead.
    """

    def __init__(self, in_features: int, num_classes: int, pool_type: str = "avg", drop_rate: float = 0.0) -> None:
        super().__init__(in_features, num_classes, pool_type=pool_type, drop_rate=drop_rate)
        self.fc_dist: nn.Module | None = _beside(self.fc)
        self.distilled_training = False

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        super().reset(num_classes, pool_type)
        self.fc_dist = _beside(self.fc)

    def merge_in_place(self) -> None:
        """The average of two linear classifiers is one linear classifier."""
        if isinstance(self.fc, nn.Linear) and isinstance(self.fc_dist, nn.Linear):
            self.fc.weight.add_(self.fc_dist.weight).div_(2)
            self.fc.bias.add_(self.fc_dist.bias).div_(2)
            self.fc_dist = None

    def forward(self, x: Tensor, pre_logits: bool = False) -> Any:
        x = self.drop(self.global_pool(x))
        if pre_logits:
            return self.flatten(x)
        if self.fc_dist is None:  # merged for inference
            return self.flatten(self.fc(x))
        classes, distilled = self.fc(x), self.fc_dist(x)
        if self.training and self.distilled_training:
            return self.flatten(classes), self.flatten(distilled)
        return self.flatten((classes + distilled) / 2)


def _beside(fc: nn.Module) -> nn.Module:
    """A fresh classifier of the same shape, device and dtype."""
    if not isinstance(fc, nn.Linear):
        return nn.Identity()
    return nn.Linear(fc.in_features, fc.out_features, device=fc.weight.device, dtype=fc.weight.dtype)


class Backbone(nn.Module):
    """Base of all families.

    Args:
        stem: ``B × in_chans × H × W`` to the first stage's input.
        stages: modules run one after the other; each has a ``grad_checkpointing`` flag.
        feature_dims: channels after each stage.
        reductions: stride of each stage's output relative to the picture.
        final: layer between the last stage and pooling (a norm, or AFFNet's expansion).
        num_features: channels after ``final``.
        num_classes: classes; 0 leaves the classifier out.
        global_pool: pooling by timm's name (``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"`` …; ``""`` for none).
        drop_rate: dropout before the classifier.
        distilled: whether a second (distillation) classifier stands beside the first.
        feature_norms: one batch norm per intermediate map, as CAS-ViT's dense-prediction backbone has them.

    The constructors of all families also take ``device`` and ``dtype``.

    Attributes:
        arguments: the keyword arguments beyond an architecture's defaults that shaped the network; what a checkpoint
            repeats. Networks that :func:`create_backbone` wraps as feature extractors have it too.

    In training, pictures of which a batch norm would see but one value a channel raise MetamixerError.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        feature_dims: Sequence[int],
        reductions: Sequence[int],
        final: nn.Module,
        num_features: int,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        distilled: bool = False,
        feature_norms: bool = False,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = num_features
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"stages.{i}"}
            for i, (dim, reduction) in enumerate(zip(feature_dims, reductions, strict=True))
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        if feature_norms:
            self.feature_norms: nn.ModuleList | None = nn.ModuleList(nn.BatchNorm2d(dim) for dim in feature_dims)
        else:
            self.feature_norms = None
        self.final = final
        head = DistilledHead if distilled else ClassifierHead
        self.head = head(num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            placed(cls)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters beyond biases and norms (which timm leaves out anyway) that must not decay."""
        return {name for name, _ in self.named_parameters() if name.endswith(("layer_scale", ".b1", ".b2", ".grid"))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups from input to output, for layer-wise learning rates."""
        blocks: Any = r"^stages\.(\d+)"
        if not coarse:
            blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (blocks, (99,))]
        return {"stem": r"^stem", "blocks": blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        if isinstance(self.head, DistilledHead) and self.head.fc_dist is not None:
            return self.head.fc, self.head.fc_dist
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier for ``num_classes`` (0: none); the pooling stays unless ``global_pool`` names another."""
        self.num_classes = num_classes
        self.arguments["num_classes"] = num_classes
        if global_pool is not None:
            self.arguments["global_pool"] = global_pool
        self.head.in_features = self.num_features  # fewer after pruning
        self.head.reset(num_classes, global_pool)
        weight = next(self.stem.parameters())
        self.head.to(weight.device, weight.dtype)

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """In training mode return (class logits, distillation logits). Raises ValueError for a single classifier."""
        if not isinstance(self.head, DistilledHead):
            raise ValueError("this model has one classifier; create it with distilled=True")
        self.head.distilled_training = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps after the stages.

        Args:
            x: ``B × in_chans × H × W``.
            indices: last n stages if an int, all if None, else the stages' numbers.
            norm: apply the final layer to the last map, where that keeps its channels.
            stop_early: do not run stages beyond the last one asked for, nor the final layer unless that is the last.
            output_fmt: only ``"NCHW"``.
            intermediates_only: return the list of maps alone, else (final features, maps); where it stopped early the
                features are the last map.

        Raises ValueError for stages that are not there and for another ``output_fmt``.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"maps are NCHW, not {output_fmt!r}")
        take, last = stages_taken(len(self.feature_info), indices)
        self._check_batch(x)
        maps = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                is_last = i == len(self.feature_info) - 1
                if self.feature_norms is not None:
                    maps.append(self.feature_norms[i](x))
                elif norm and is_last and self.num_features == self.feature_info[-1]["num_chs"]:
                    maps.append(self.final(x))
                else:
                    maps.append(x)
        if intermediates_only:
            return maps
        stopped_early = stop_early and last < len(self.feature_info) - 1
        return x if stopped_early else self.final(x), maps

    @torch.jit.ignore
    def load_pretrained(self, path: str) -> None:
        """Load a checkpoint of any layout, see :func:`metamixer.weights.load.load_into`; timm calls it."""
        load_into(self, read_state(path), path)

    @torch.jit.ignore
    def merge_in_place(self) -> Self:
        """Fold norms, parallel kernels, layer scales and linear chains, average two classifiers into one, and fold a
        last norm into the classifier. Returns the network itself, which computes the same in evaluation mode alone.
        """
        reparameterize_model(self, inplace=True)
        with torch.no_grad():
            if isinstance(self.head, DistilledHead):
                self.head.merge_in_place()
            self._fold_final_norm()
        return self

    def _fold_final_norm(self) -> None:
        """An affine map per channel commutes with averaging over positions, so it moves behind the pooling."""
        fc = self.head.fc
        averages = getattr(self.head.global_pool, "pool_type", "") == "avg"
        if isinstance(self.final, nn.BatchNorm2d) and isinstance(fc, nn.Linear) and averages:
            scale, shift = affine_of(self.final)
            fc.bias.add_(fc.weight @ shift)
            fc.weight.mul_(scale)
            self.final = nn.Identity()

    def prune_intermediate_layers(
        self, indices: int | list[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop stages beyond the last one asked for, and on request the final layer and the classifier.

        Where stages are dropped, final layer and classifier go too, since they are made for the last stage.
        """
        take, last = stages_taken(len(self.feature_info), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if self.feature_norms is not None:
            self.feature_norms = self.feature_norms[: last + 1]
        if prune_norm or shortened:
            self.final = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or self.num_features != self.head.in_features:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """``B × in_chans × H × W`` to ``B × num_features × H/32 × W/32``."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            self._check_batch(x)
        return self.final(self.stages(self.stem(x)))

    def _check_batch(self, x: Tensor) -> None:
        """Raise MetamixerError where a batch norm would learn from one value a channel, as PyTorch's own error is."""
        if not self.training or isinstance(x, Proxy) or is_tracing():
            return
        reduction = self.feature_info[len(self.stages) - 1]["reduction"]
        if len(x) == 1 and max(x.shape[-2:]) <= reduction and any(_learns(module) for module in self.modules()):
            raise MetamixerError(
                f"one picture of {x.shape[-2]} × {x.shape[-1]} pixels leaves one value per channel at stride"
                f" {reduction}, of which a batch norm in training knows no deviation: take two pictures or more, larger"
                " ones, or model.eval()"
            )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; with ``pre_logits`` only pool."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _learns(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.training


def stages_taken(count: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Numbers of the stages asked for, and the last of them: the last n for an int, all for None, else these.

    Negative numbers count from the end. Raises ValueError for a stage that is not there.
    """
    if isinstance(indices, int):
        wanted = list(range(count))[-indices:] if 0 < indices <= count else []
    else:
        wanted = [i + count if i < 0 else i for i in (range(count) if indices is None else indices)]
    if not wanted or not all(0 <= i < count for i in wanted):
        raise ValueError(f"there are {count} stages, of which indices={indices!r} names none or one too many")
    return wanted, max(wanted)


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Stochastic depth per stage and block, rising linearly from 0 at the first block to ``last`` at the last one."""
    steps = max(1, sum(depths) - 1)
    blocks = iter(range(sum(depths)))
    return [[last * next(blocks) / steps for _ in range(depth)] for depth in depths]


# What a call says beyond the network's shape: where weights come from, and where they go.
_NOT_OF_THE_NETWORK = (
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "pretrained_model_args",
    "cache_dir",
    "device",
    "dtype",
)


BackboneT = TypeVar("BackboneT", bound=Backbone)


def create_backbone(
    family: type[BackboneT], variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]
) -> BackboneT:
    """The network of a registered name, or the feature extractor around it, as timm builds it.

    Args:
        family: its class.
        variant: the name.
        pretrained: load weights.
        defaults: the variant's arguments; ``depths`` among them.
        kwargs: the caller's: the family's own, timm's (``features_only``, ``pretrained_cfg`` …), ``device``, ``dtype``.
    """
    arguments = {**defaults, **kwargs}
    model: BackboneT = build_model_with_cfg(
        family,
        variant,
        pretrained,
        pretrained_filter_fn=state_from,
        feature_cfg={"feature_cls": "getter", "out_indices": tuple(range(len(arguments["depths"])))},
        **arguments,
    )
    model.arguments = {name: value for name, value in kwargs.items() if name not in _NOT_OF_THE_NETWORK}
    return model


def pretrained_cfg(
    *,
    first_conv: str,
    paper_ids: str,
    paper_name: str,
    origin_url: str,
    input_size: tuple[int, int, int] = (3, 224, 224),
    classifier: str | tuple[str, ...] = "head.fc",
    license: Literal["apache-2.0", "mit"] = "apache-2.0",
    **changes: Any,
) -> dict[str, Any]:
    """A timm ``pretrained_cfg``: ImageNet mean and deviation, any input size, the last map at stride 32."""
    return {
        "num_classes": 1000,
        "input_size": input_size,
        "pool_size": (input_size[1] // 32, input_size[2] // 32),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": classifier,
        "license": license,
        "paper_ids": paper_ids,
        "paper_name": paper_name,
        "origin_url": origin_url,
        **changes,
    }


LOADED = True
register_if_postponed()
