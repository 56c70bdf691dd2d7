"""What published weights reach on ImageNet: the papers' numbers for our networks, timm's for its own."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources

import timm


def published_top1(model: str, image_size: int | None = None) -> float | None:
    """Top-1 in percent on ImageNet-1k's validation pictures, as published; None where nothing is.

    Args:
        model: an architecture, which means its default weights, or ``architecture.tag``.
        image_size: side of the pictures; the weights' own by default. At another size than was published there is none.

    The numbers lie in ``published_top1.csv``: of our networks those that the papers report for the released weights
    (not measured here), of some common small networks those of ``results/results-imagenet.csv`` in timm's repository.
    DSM has none, since our network is a reconstruction.
    """
    cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if cfg is None:
        return None
    weights = f"{cfg.architecture}.{cfg.tag}"
    return _table().get((weights, image_size or cfg.input_size[-1]))


@cache
def _table() -> dict[tuple[str, int], float]:
    text = (resources.files("metamixer.bench") / "published_top1.csv").read_text(encoding="utf-8")
    return {(row["weights"], int(row["image_size"])): float(row["top1"]) for row in csv.DictReader(text.splitlines())}
