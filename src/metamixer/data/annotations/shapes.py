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
        return {"size": [height, width], "counts": segmentation["counts"]}
    return mask.merge(mask.frPyObjects([list(map(float, polygon)) for polygon in segmentation], height, width))


def to_masks(segmentations: Sequence[Any], size: tuple[int, int]) -> np.ndarray:
    """``N × H × W``, uint8, 0 or 1."""
    if not segmentations:
        return np.zeros((0, *size), np.uint8)
    decoded = coco_mask().decode([to_code(one, size) for one in segmentations])
    return np.ascontiguousarray(np.moveaxis(decoded, -1, 0))


def fault_of_mask(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Why polygons or a run-length code cannot be the mask of a picture of ``size`` (height, width); None if they can.

    The rasteriser itself must not be asked: NaN and huge coordinates make it run for ever.
    """
    if isinstance(segmentation, dict):
        return _fault_of_code(segmentation, size)
    if not isinstance(segmentation, list):
        return "a mask that is neither polygons nor a run-length code"
    if not segmentation:
        return "no polygon"
    return next((fault for polygon in segmentation if (fault := fault_of_polygon(polygon, size))), None)


def fault_of_polygon(polygon: Any, size: tuple[int, int]) -> str | None:
    """Why something is no polygon ``[x, y, x, y …]`` that reaches at most a side's length beyond its picture."""
    if not isinstance(polygon, list) or not all(isinstance(number, (int, float)) for number in polygon):
        return "a polygon that is no list of numbers"
    if len(polygon) < 6:
        return f"a polygon of {len(polygon) // 2} points"
    if len(polygon) % 2:
        return f"a polygon of {len(polygon)} numbers, which make no points"
    if any(number != number for number in polygon):
        return "a polygon with a coordinate that is no number"
    longest = max(size)
    if min(polygon) < -longest or max(polygon) > 2 * longest:
        return "a polygon that reaches far outside the picture"
    return None


def _fault_of_code(code: dict[str, Any], size: tuple[int, int]) -> str | None:
    counts, stated = code.get("counts"), code.get("size")
    if counts is None or not isinstance(stated, (list, tuple)) or len(stated) != 2:
        return "a run-length code without counts or size"
    if tuple(stated) != size:
        return f"a mask of {stated[1]} × {stated[0]} pixels on a picture of another size"
    runs = counts if isinstance(counts, list) else _runs(counts)
    if runs is None or not all(isinstance(run, int) and run >= 0 for run in runs):
        return "a run-length code that cannot be decoded"
    if sum(runs) != size[0] * size[1]:
        return "a run-length code that does not fill its picture"
    return None


_LONGEST = 60  # bits of a run's length; more are no picture, and would be added to for ever


def _runs(code: Any) -> list[int] | None:
    """The lengths in COCO's compressed code, which faster-coco-eval decodes without a look at their sum; None where it
    is none. Six bits a character, the lowest first, the last of them a sign; from the fourth on, differences to the
    number before the last."""
    if not isinstance(code, (str, bytes)):
        return None
    runs: list[int] = []
    value = shift = 0
    for character in code.encode(errors="replace") if isinstance(code, str) else code:
        bits = character - 48
        if not 0 <= bits < 64 or shift > _LONGEST:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return None if shift else runs


def code_to_json(code: dict[str, Any]) -> dict[str, Any]:
    """The code with its counts as text, as JSON files hold it."""
    counts = code["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in code["size"]], "counts": text}
