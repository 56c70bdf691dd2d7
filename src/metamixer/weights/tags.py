"""Names of all weights, and the timm configuration of each."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from metamixer.weights.embedded import embedded_weights
from metamixer.weights.published import PUBLISHED


def list_weights(pattern: str = "*") -> list[str]:
    """Names ``architecture.tag`` of shipped and published weights that match a pattern, with or without tag."""
    names = [*embedded_weights(), *PUBLISHED]
    return [name for name in names if fnmatch(name, pattern) or fnmatch(name.partition(".")[0], pattern)]


def with_weights(cfgs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One timm configuration per tag, from one per architecture; the first tag is the default one.

    An architecture without weights keeps a configuration without a tag.
    """
    changes: dict[str, dict[str, Any]] = {}
    for name, shipped in embedded_weights().items():
        changes[name] = {
            **shipped.metadata.pretrained_cfg(), "file": str(shipped.path), "license": "apache-2.0", "custom_load": True
        }  # fmt: skip
    for name, published in PUBLISHED.items():
        # Released files carry more than weights: our own loader (custom_load) picks them out.
        changes[name] = {**published.cfg, **({"url": published.url, "custom_load": True} if published.url else {})}
    tagged: dict[str, Any] = {}
    for architecture, cfg in cfgs.items():
        own = {name: {**cfg, **change} for name, change in changes.items() if name.partition(".")[0] == architecture}
        tagged |= own or {architecture: cfg}
    return tagged
