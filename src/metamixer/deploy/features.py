"""Backbones without a classifier, where they are exported: one output for every feature map, ``stage_0`` and on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

from torch import Tensor, nn

from metamixer.deploy.source import ClassifierSource
from metamixer.errors import MetamixerError


class FeatureMaps(nn.Module):
    """The maps after all stages of a classifier, ``B × C × H × W`` each, as a tuple; its classifier is left out.

    Args:
        model: one of timm's interface, such as ours; it is copied.
        name: what the message calls it.

    Raises MetamixerError for a model that does not give its maps.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        if not (hasattr(model, "forward_intermediates") and hasattr(model, "prune_intermediate_layers")):
            raise MetamixerError(f"{name} does not give the maps after its stages: it has no forward_intermediates")
        self.model = deepcopy(model)
        self.out_indices = tuple(self.model.prune_intermediate_layers(None, prune_norm=True))
        self.feature_info: list[dict[str, Any]] = [model.feature_info[i] for i in self.out_indices]
        self.pretrained_cfg: Any = getattr(model, "pretrained_cfg", None)
        self.in_chans = getattr(model, "in_chans", 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.forward_intermediates(x, indices=list(self.out_indices), intermediates_only=True))


class FeaturesSource(ClassifierSource):
    """Pictures for a backbone that gives its feature maps.

    Args:
        model: a :class:`FeatureMaps`, or what ``create_model(…, features_only=True)`` makes, of ours or of timm's.
        name: as of :class:`~metamixer.deploy.source.Source`.
        normalise: build the normalisation into the graph.

    Raises MetamixerError where the model does not know its normalisation.
    """

    classifies = False
    refuses: ClassVar[Mapping[str, str]] = {
        "softmax": "its outputs are no classes",
        "int8": "what eight bits cost is judged by first classes, and it names none",
        "nms": "it gives no boxes",
    }

    def __init__(self, model: nn.Module, name: str, normalise: bool) -> None:
        super().__init__(model, name, normalise, softmax=False)
        self.outputs = tuple(f"stage_{i}" for i in indices_of(model))

    def graph(self, model: nn.Module) -> nn.Module:
        return super().graph(_Tuple(model)).eval()

    def metadata(self, inputs: Tensor, sizes: tuple[int, int] | None) -> dict[str, str]:
        info = [{key: stage[key] for key in ("num_chs", "reduction")} for stage in _stages(self.model)]
        return super().metadata(inputs, sizes) | {"output": ", ".join(self.outputs), "feature_info": json.dumps(info)}


class _Tuple(nn.Module):
    """A model's list or dict of maps as a tuple, which every converter knows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.model(x)
        return tuple(maps.values() if isinstance(maps, dict) else maps)


def indices_of(model: Any) -> tuple[int, ...]:
    """The stages whose maps a model gives, counted from 0; none for a model that gives no maps."""
    if isinstance(model, FeatureMaps):
        return model.out_indices
    # timm's wrappers of features_only carry a FeatureInfo, which knows its indices; other models a list.
    return tuple(getattr(getattr(model, "feature_info", None), "out_indices", ()))


def _stages(model: Any) -> list[dict[str, Any]]:
    return model.feature_info if isinstance(model, FeatureMaps) else model.feature_info.get_dicts()
