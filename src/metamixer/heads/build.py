"""Join a head to a backbone and load a checkpoint of either's authors, or ours."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import model_entrypoint
from torch import Tensor, nn

from metamixer.errors import MetamixerError
from metamixer.heads.base import DenseModel
from metamixer.heads.cascade_mask_rcnn import CascadeMaskRCNN
from metamixer.heads.deeplabv3 import DeepLabV3
from metamixer.heads.ffnet_seg import FFNetSeg, FFNetSegBackbone
from metamixer.heads.mask_rcnn import MaskRCNN
from metamixer.heads.pspnet import PSPNet
from metamixer.heads.retinanet import RetinaNet
from metamixer.heads.semantic_fpn import SemanticFPN
from metamixer.heads.ssdlite import SSDLite
from metamixer.heads.upernet import UPerNet
from metamixer.models import check_tag, create_model, list_models
from metamixer.printing import notices
from metamixer.schemas import ARGUMENTS, parameters_of, validated, validated_arguments
from metamixer.weights.checkpoint import Metadata, read_metadata
from metamixer.weights.load import COUNTERS, check_fit, check_size, made_by, read_network
from metamixer.weights.released_dense import dense_to_our_layout
from metamixer.weights.timm_weights import timm_weights


@dataclass(frozen=True)
class Head:
    """A head with what its paper used: the backbone and the number of classes."""

    model: type[DenseModel]
    backbone: str
    num_classes: int


HEADS = {
    "semantic_fpn": Head(SemanticFPN, "casvit_xs", 150),
    "upernet": Head(UPerNet, "ffnet_2", 150),
    "ffnet_seg": Head(FFNetSeg, "ffnet_seg", 150),
    "deeplabv3": Head(DeepLabV3, "affnet_et", 150),
    "pspnet": Head(PSPNet, "affnet_et", 150),
    "retinanet": Head(RetinaNet, "casvit_xs", 80),
    "mask_rcnn": Head(MaskRCNN, "casvit_xs", 80),
    "cascade_mask_rcnn": Head(CascadeMaskRCNN, "ffnet_2", 80),
    "ssdlite": Head(SSDLite, "affnet_et", 80),
}
_WITH_FEATURE_NORMS = ("casvit", "ffnet")  # families whose released dense backbones norm every map


def list_heads() -> list[str]:
    """Names that :func:`build` knows."""
    return list(HEADS)


def build(
    head: str,
    backbone: str | None = None,
    num_classes: int | None = None,
    checkpoint: str | Path | None = None,
    *,
    pretrained: bool | None = None,
    backbone_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> DenseModel:
    """A dense-prediction model.

    Args:
        head: one of :func:`list_heads`.
        backbone: any timm name, ours among them; by default that of the head's paper. A tag (``name.tag``) or
            ``pretrained`` loads its weights.
        num_classes: without the background; by default what the checkpoint says of itself, else that of the paper.
        checkpoint: file of the whole network: ours, or as mmdetection, mmsegmentation or CVNets wrote it for one of
            the papers. Another number of classes keeps everything but the classifiers, with a notice in the log.
        pretrained: whether to load the backbone's weights; a checkpoint makes that needless.
        backbone_kwargs: further arguments of the backbone (``drop_path_rate``, ``checkpoint``, ``feature_norms`` …).
        kwargs: the head's own, such as ``auxiliary``, ``output_stride`` or ``score_threshold``.

    Raises MetamixerError for an unknown head, backbone or argument, a backbone without the maps that the head needs,
    and a checkpoint that cannot be read or belongs to another model.
    """
    if head not in HEADS:
        near = get_close_matches(head, HEADS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(HEADS)}"
        raise MetamixerError(f"unknown head {head!r}; {hint}")
    known = HEADS[head]
    backbone_kwargs = dict(backbone_kwargs or {})
    file = None if checkpoint is None else Path(os.path.expanduser(checkpoint))
    metadata = _metadata_of(file, head)
    if metadata is not None:
        held, said, inner = _checked_arguments(cast(Path, file), known, metadata)
        if backbone is not None and held not in (None, backbone.partition(".")[0]):
            raise MetamixerError(f"{file} holds {head} on {held}, not on {backbone}")
        backbone = backbone or held
        backbone_kwargs = {**inner, **backbone_kwargs}
        held_classes = said.pop("num_classes", None)
        num_classes = held_classes if num_classes is None else num_classes
        kwargs = {**said, **kwargs}
    name = backbone or known.backbone
    num_classes = known.num_classes if num_classes is None else num_classes
    if num_classes < 1:
        raise MetamixerError(f"num_classes must be 1 or more, not {num_classes}")
    _check_arguments(head, known.model, kwargs)
    try:
        model = _assemble(known.model, name, num_classes, False if file else pretrained, backbone_kwargs, kwargs)
    except _UnfitBackboneError as error:
        raise MetamixerError(f"{head} on {name}: {error}") from None
    cfg: Mapping[str, Any] = getattr(model.backbone, "pretrained_cfg", {})
    _leave_unused_norms(model)
    side = known.model.default_size
    model.pretrained_cfg = {
        "architecture": head,
        "input_size": (3, side, side),  # of its shorter side: pictures keep their proportions
        "crop_pct": 1.0,
        "mean": cfg.get("mean", IMAGENET_DEFAULT_MEAN),
        "std": cfg.get("std", IMAGENET_DEFAULT_STD),
        "interpolation": "bilinear",
    }
    if metadata is not None:
        said = metadata.pretrained_cfg()
        if metadata.classes is None or len(metadata.classes) != num_classes:
            said.pop("label_names", None)
        model.pretrained_cfg |= {key: said[key] for key in (*model.pretrained_cfg, "label_names") if key in said}
    shaping = {key: value for key, value in backbone_kwargs.items() if key != "checkpoint" and "drop" not in key}
    model.arguments = {"backbone": name.partition(".")[0], "backbone_kwargs": shaping, **kwargs}
    if file is not None:
        load_dense(model, dense_to_our_layout(read_network(file)), file)
    return model


def load_dense(model: DenseModel, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Put a whole network's weights, by our names, into a model of :func:`build`.

    Classifiers for another number of classes and parts that may be absent (auxiliary heads) keep the model's own
    weights, with a notice in the log. Raises MetamixerError for anything else that does not fit; the model is then
    unchanged.
    """
    expected = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in expected or not name.endswith(COUNTERS)}
    fitted = {name: tensor for name, tensor in state.items() if name in expected or not name.startswith(model.optional)}
    said = []
    if len(fitted) < len(state):
        said.append("holds an auxiliary head, which the model has not: it is left out")
    if any(name.startswith(model.optional) for name in expected) and not any(
        name.startswith(model.optional) for name in fitted
    ):
        said.append("holds no auxiliary head: the model's own stays")
    for name, tensor in expected.items():
        if name.endswith("num_batches_tracked"):
            fitted.setdefault(name, tensor)
    fresh: list[str] = []
    for name, own in expected.items():
        part = name.rpartition(".")[0]
        if name not in fitted:
            if name.startswith(model.optional):
                fitted[name] = own
        elif part in model.classifiers and fitted[name].shape != own.shape and fitted[name].shape[1:] == own.shape[1:]:
            fitted[name] = own
            if part not in fresh:
                fresh.append(part)
    if fresh:
        parts = ", ".join(fresh)
        said.append(f"was trained on another number of classes than {model.num_classes}: {parts} starts fresh")
    check_fit(fitted, expected, f"{model.pretrained_cfg['architecture']} on {_backbone_of(model)}", source)
    model.load_state_dict(fitted)
    for notice in said:
        notices.warning("%s %s", source, notice)


def _backbone_of(model: DenseModel) -> str:
    return str(model.arguments.get("backbone", type(model.backbone).__name__))


def _metadata_of(file: Path | None, head: str) -> Metadata | None:
    if file is None or file.suffix != ".safetensors":
        return None
    metadata = read_metadata(file)
    if metadata is not None and metadata.architecture != head:
        raise MetamixerError(f"{file} belongs to {metadata.architecture}, not to {head}")
    return metadata


def _assemble(
    model: type[DenseModel],
    backbone: str,
    num_classes: int,
    pretrained: bool | None,
    backbone_kwargs: dict[str, Any],
    kwargs: Mapping[str, Any],
) -> DenseModel:
    """The network; ``backbone_kwargs`` gets the output stride that the head wants."""
    if "output_stride" in inspect.signature(model).parameters:
        stride = kwargs.get("output_stride", 16)
        if stride != 32:  # what every backbone has
            backbone_kwargs.setdefault("output_stride", stride)
    features = _make_backbone(backbone, pretrained, backbone_kwargs)
    try:
        return model(features, num_classes, **kwargs)
    except MetamixerError as error:
        raise _UnfitBackboneError(str(error)) from None


class _UnfitBackboneError(MetamixerError):
    """A backbone without the maps that a head needs."""


def _checked_arguments(
    file: Path, known: Head, metadata: Metadata
) -> tuple[str | None, dict[str, Any], dict[str, Any]]:
    """The backbone that a file of ours names, its head's arguments and its backbone's, neither wrong nor too large.

    Raises MetamixerError where they are.
    """
    said = dict(metadata.arguments)
    named, inner = said.pop("backbone", known.backbone), said.pop("backbone_kwargs", {})
    backbone = validated(ARGUMENTS["backbone"], named, file, entry="arguments.backbone")
    if backbone == "ffnet_seg":
        constructor: Callable[..., Any] = FFNetSegBackbone
    elif timm.is_model(backbone):
        constructor = made_by(model_entrypoint(backbone))
    else:
        raise MetamixerError(f"{file} is on an unknown backbone, {backbone!r}")
    inner = validated_arguments(inner, constructor, file, "arguments.backbone_kwargs")
    said = validated_arguments(said, known.model, file)
    rest = {name: value for name, value in said.items() if name != "num_classes"}
    classes = said.get("num_classes", known.num_classes)
    check_size(lambda: _assemble(known.model, backbone, classes, False, dict(inner), rest), file)
    return backbone, said, inner


def _check_arguments(head: str, model: type[DenseModel], kwargs: Mapping[str, Any]) -> None:
    known = parameters_of(model) - {"backbone", "num_classes"}
    for name in kwargs:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known)) or 'none'}"
            raise MetamixerError(f"{head} has no argument {name!r}; {hint}")


def _make_backbone(name: str, pretrained: bool | None, arguments: dict[str, Any]) -> nn.Module:
    architecture, _, tag = name.partition(".")
    if name == "ffnet_seg":
        if pretrained:
            raise MetamixerError("there are no weights of ffnet_seg's backbone alone; pass checkpoint=PATH")
        return _created(name, lambda: FFNetSegBackbone(**arguments), arguments)
    if architecture in list_models():
        if architecture.startswith(_WITH_FEATURE_NORMS):
            arguments.setdefault("feature_norms", True)
        return _created(
            name, lambda: create_model(name, features_only=True, pretrained=pretrained, **arguments), arguments
        )
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MetamixerError(f"unknown backbone {name!r}{hint}")
    check_tag(name)
    wanted = bool(tag) if pretrained is None else pretrained
    weights = {"pretrained_cfg_overlay": timm_weights(name)} if wanted else {}
    return _created(
        name, lambda: timm.create_model(name, features_only=True, pretrained=wanted, **weights, **arguments), arguments
    )


def _leave_unused_norms(model: Any) -> None:
    """Norms of maps that the head does not read are not trained: processes that share gradients would wait for them."""
    norms = list(getattr(model.inner_backbone, "feature_norms", None) or ())
    read = getattr(model, "places", range(len(norms)))
    for i, norm in enumerate(norms):
        norm.requires_grad_(i in read)


def _created(name: str, create: Any, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        return create()
    except MetamixerError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        given = ", ".join(f"{key}={value}" for key, value in arguments.items())
        hint = "; output_stride=32 leaves its stride alone" if "output_stride" in arguments else ""
        raise MetamixerError(
            f"{name} cannot be made a backbone{f' with {given}' if given else ''} ({error}){hint}"
        ) from None
