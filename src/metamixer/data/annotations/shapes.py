"""Instance masks from polygons and run-length codes, and back, by COCO's own rasteriser."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from metamixer.errors import MetamixerError


def coco_mask() -> ModuleType:
    """faster-coco-eval's mask functions. Raises MetamixerError where the package is missing."""
    try:
        from faster_coco_eval.core import mask
    except ImportError:
        raise MetamixerError("masks and COCO's metric need faster-coco-eval: pip install 'metamixer[dense]'") from None
    return mask


def to_code(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run-length code of polygons, a run-length code of any kind, or a bool ``H × W`` array."""
    mask, (height, width) = coco_mask(), size
    if isinstance(segmentation, np.ndarray):
        return mask.encode(np.asfortranarray(segmentation.astype(np.uint8)))
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            return mask.frPyObjects(segmentation, height, width)
        return segmentation
    return mask.merge(mask.frPyObjects([list(map(float, polygon)) for polygon in segmentation], height, width))


def to_masks(segmentations: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """``N × H × W``, uint8, 0 or 1."""
    if not segmentations:
        return np.zeros((0, *size), np.uint8)
    decoded = coco_mask().decode([to_code(one, size) for one in segmentations])
    return np.ascontiguousarray(np.moveaxis(decoded, -1, 0))


def code_to_json(code: dict[str, Any]) -> dict[str, Any]:
    """The code with its counts as text, as JSON files hold it."""
    counts = code["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in code["size"]], "counts": text}
