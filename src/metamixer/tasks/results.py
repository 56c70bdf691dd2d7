"""What a network found in a picture: one type for boxes, masks and class maps, and its forms in other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from metamixer.data.annotations.class_maps import VOID
from metamixer.data.annotations.shapes import code_to_json, fault_of_mask, to_code, to_masks
from metamixer.data.files import replace_when_done
from metamixer.errors import MetamixerError
from metamixer.printing import as_utf8

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False)
class Result:
    """Objects, or a class for every pixel, of one picture. Objects are put in the order of their scores.

    Args:
        size: height and width of the picture in pixels.
        labels: ``N``, whole numbers, from 0: classes of the objects.
        scores: ``N``, 0…1; falling once they are here.
        boxes: ``N × 4``, left, top, right and bottom in pixels.
        masks: ``N × H × W``, bool; None where there are none.
        class_map: ``H × W``, whole numbers: classes, and 255 for void; None for objects.
        classes: names of all classes in the order of their numbers; None where they are not known.
        picture: the picture itself, upright and RGB.
        source: its path, if it came from a file.

    Raises MetamixerError where shapes, labels, scores and boxes do not fit each other or the picture.
    """

    size: tuple[int, int]
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    masks: np.ndarray | None = None
    class_map: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    picture: Image.Image | None = field(default=None, repr=False)
    source: str | None = None

    def __post_init__(self) -> None:
        count, (height, width) = len(self.labels), self.size
        _require(self.boxes.shape == (count, 4), f"{count} labels need as many boxes of four sides")
        _require(self.scores.shape == (count,), f"{count} labels need as many scores")
        _require(bool(np.isfinite(self.boxes).all()), "the sides of boxes must be finite")
        _require(bool((self.boxes[:, 2:] >= self.boxes[:, :2]).all()), "boxes are left, top, right, bottom")
        edges = np.array([width, height, width, height])
        inside = (self.boxes >= -0.5).all() and (self.boxes <= edges + 0.5).all()
        _require(bool(inside), f"boxes must lie inside the picture of {width} × {height} pixels")
        _require(bool(((self.scores >= 0) & (self.scores <= 1)).all()), "scores must be 0 to 1")
        if self.masks is not None:
            _require(self.masks.shape == (count, height, width), f"masks must be {count} × {height} × {width}")
            _require(self.masks.dtype == bool, "masks must be bool")
        numbers = self.labels
        if self.class_map is not None:
            _require(self.class_map.shape == tuple(self.size), f"the class map must be {height} × {width}")
            _require(_whole(self.class_map), "the class map must hold whole numbers")
            numbers = np.concatenate([numbers, np.setdiff1d(self.class_map, [VOID])])
        if len(numbers):
            _require(_whole(self.labels), "labels must be whole numbers")
            _require(numbers.min() >= 0, "labels must be class numbers, from 0")
            _require(self.class_map is None or numbers.max() < VOID, f"classes of a class map must be below {VOID}")
        if self.classes is not None and len(numbers):
            _require(numbers.max() < len(self.classes), f"labels must be class numbers below {len(self.classes)}")
        if self.picture is not None:
            _require(self.picture.size == (width, height), "the picture must have the result's size")
        if (np.diff(self.scores) > 0).any():
            order = np.argsort(-self.scores, kind="stable")
            for name in ("labels", "scores", "boxes", "masks"):
                if getattr(self, name) is not None:
                    object.__setattr__(self, name, getattr(self, name)[order])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """The objects' classes in words, or as numbers where the names are not known."""
        return tuple(self.name_of(label) for label in self.labels.tolist())

    def name_of(self, label: int) -> str:
        return str(label) if self.classes is None else self.classes[label]

    def above(self, score: float) -> Result:
        """The objects with at least this score."""
        kept = self.scores >= score
        masks = None if self.masks is None else self.masks[kept]
        return replace(self, labels=self.labels[kept], scores=self.scores[kept], boxes=self.boxes[kept], masks=masks)

    def shares(self) -> dict[str, float]:
        """What share of the picture each class fills, the largest first; of a class map."""
        if self.class_map is None:
            raise MetamixerError("only a class map has shares of the picture")
        labels, counts = np.unique(self.class_map, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {
            "void" if labels[i] == VOID else self.name_of(int(labels[i])): float(counts[i] / self.class_map.size)
            for i in order
        }

    def draw(self, scores: bool = True) -> Image.Image:
        """The picture with boxes, masks or classes and their names on it, objects with or without their scores.

        Raises MetamixerError without a picture.
        """
        from metamixer.tasks.drawing import draw_result

        return draw_result(self, scores)

    # Other tools' forms

    def to_dict(self) -> dict[str, Any]:
        """All but the pixels, ready for JSON."""
        said: dict[str, Any] = {
            "source": self.source and as_utf8(self.source),
            "height": self.size[0],
            "width": self.size[1],
        }
        if self.class_map is not None:
            return said | {"shares": self.shares()}
        objects = zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        return said | {"objects": [{"label": n, "score": s, "box": b} for n, s, b in objects]}

    def to_supervision(self) -> supervision.Detections:
        """supervision's ``Detections``; of a class map, one with a mask for every class in it."""
        sv = import_supervision()
        result = self if self.class_map is None else self._classes_as_objects()
        return sv.Detections(
            xyxy=result.boxes.astype(np.float32).reshape(-1, 4),
            mask=result.masks,
            confidence=result.scores.astype(np.float32),
            class_id=result.labels.astype(int),
            data={"class_name": np.array(result.names, dtype=object).astype(str)},
        )

    @classmethod
    def from_supervision(
        cls, detections: supervision.Detections, size: tuple[int, int], classes: Sequence[str] | None = None
    ) -> Result:
        """Objects from supervision's ``Detections`` on a picture of ``size`` (height, width)."""
        count = len(detections)
        labels = np.zeros(count, np.int64) if detections.class_id is None else detections.class_id.astype(np.int64)
        scores = np.ones(count, np.float32) if detections.confidence is None else detections.confidence
        masks = None if detections.mask is None else np.asarray(detections.mask).astype(bool)
        return cls(size, labels, scores, detections.xyxy, masks, classes=None if classes is None else tuple(classes))

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO's result entries; ``category_ids`` are those of the classes in order, by default 1, 2, 3 …

        Raises MetamixerError for a class map, which has no objects.
        """
        self._require_objects("COCO's entries")
        entries = []
        for i, (label, score, box) in enumerate(
            zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        ):
            left, top, right, bottom = box
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else category_ids[label],
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            if self.masks is not None:
                entry["segmentation"] = code_to_json(to_code(self.masks[i], self.size))
            entries.append(entry)
        return entries

    @classmethod
    def from_coco(
        cls,
        entries: Sequence[Mapping[str, Any]],
        size: tuple[int, int],
        category_ids: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> Result:
        """Objects from the entries of one picture, results (with scores) or annotations (without).

        Raises MetamixerError for an entry of an unknown category, without a box of four numbers, or with a mask that
        is none.
        """
        known = None if category_ids is None else {number: i for i, number in enumerate(category_ids)}
        objects = [_object_of(entry, place, size, known) for place, entry in enumerate(entries, 1)]
        boxes = np.array([box for _, box, _ in objects], np.float32).reshape(-1, 4)
        masks = None
        if entries and all(entry.get("segmentation") for entry in entries):
            masks = to_masks([entry["segmentation"] for entry in entries], size).astype(bool)
        labels = np.array([label for label, _, _ in objects], np.int64)
        scores = np.array([score for _, _, score in objects], np.float32)
        return cls(size, labels, scores, boxes, masks, classes=None if classes is None else tuple(classes))

    def to_yolo(self) -> str:
        """YOLO's lines of boxes: class, centre and sides as shares of the picture, and the score.

        Masks stay out: a line is a box or a polygon, and a polygon can have neither holes nor several parts;
        ``to_coco`` and ``to_png`` keep them. Raises MetamixerError for a class map, which has no objects.
        """
        self._require_objects("YOLO's lines")
        height, width = self.size
        lines = []
        for label, score, (left, top, right, bottom) in zip(
            self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
        ):
            centre = f"{(left + right) / 2 / width:.6f} {(top + bottom) / 2 / height:.6f}"
            lines.append(f"{label} {centre} {(right - left) / width:.6f} {(bottom - top) / height:.6f} {score:.6f}\n")
        return "".join(lines)

    @classmethod
    def from_yolo(cls, lines: str, size: tuple[int, int], classes: Sequence[str] | None = None) -> Result:
        """Objects from YOLO's lines, with scores or without. Raises MetamixerError for a line of other numbers."""
        try:
            rows = [line.split() for line in lines.splitlines() if line.strip()]
            labels = np.array([int(row[0]) for row in rows], np.int64)
            numbers = [[float(value) for value in row[1:]] for row in rows]
        except (ValueError, OverflowError):
            raise MetamixerError("a YOLO line holds something else than a class number and numbers") from None
        if any(len(row) not in (4, 5) for row in numbers):
            raise MetamixerError("a YOLO line of a box holds class, x, y, width, height and at most a score")
        height, width = size
        values = np.array([row[:4] for row in numbers], np.float64).reshape(-1, 4)
        centre, half = values[:, :2], values[:, 2:] / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]
        scores = np.array([row[4] if len(row) == 5 else 1.0 for row in numbers], np.float32)
        names = None if classes is None else tuple(classes)
        return cls(size, labels, scores, boxes.astype(np.float32), classes=names)

    def to_png(self, path: str | Path) -> None:
        """Write the class map as a PNG with a palette, its values class numbers (255 void); or the masks as one whose
        values count the objects from 1, the surest on top, 0 where there is none (16 bits from 256 objects on)."""
        if self.class_map is not None:
            from metamixer.tasks.drawing import palette

            image = Image.fromarray(self.class_map.astype(np.uint8))
            image.putpalette(palette().astype(np.uint8).tobytes())
        elif self.masks is not None:
            numbers = np.zeros(self.size, np.uint16)
            for i in range(len(self) - 1, -1, -1):
                numbers[self.masks[i]] = i + 1
            image = Image.fromarray(numbers if len(self) > VOID else numbers.astype(np.uint8))
        else:
            raise MetamixerError("only masks and class maps can be written as a PNG")
        with replace_when_done(path) as temporary:
            image.save(temporary, "PNG")

    def _require_objects(self, form: str) -> None:
        if self.class_map is not None:
            raise MetamixerError(f"a class map has no objects for {form}; to_png writes it")

    def _classes_as_objects(self) -> Result:
        assert self.class_map is not None
        labels = np.setdiff1d(self.class_map, [VOID]).astype(np.int64)
        masks = self.class_map == labels[:, None, None]
        boxes = np.array([_box_of(mask) for mask in masks], np.float32).reshape(-1, 4)
        return replace(
            self, labels=labels, scores=np.ones(len(labels), np.float32), boxes=boxes, masks=masks, class_map=None
        )


def import_supervision() -> Any:
    """The package supervision. Raises MetamixerError where it is missing."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it remarks that it is slower without OpenCV
            import supervision
    except ImportError:
        raise MetamixerError("drawing boxes and masks needs supervision: pip install 'metamixer[dense]'") from None
    return supervision


def _object_of(
    entry: Mapping[str, Any], place: int, size: tuple[int, int], known: Mapping[Any, int] | None
) -> tuple[int, tuple[float, ...], float]:
    """Label, box and score of COCO's entry; raises MetamixerError where there are none."""
    try:
        number = entry["category_id"]
        label = known.get(number) if known is not None else number - 1
        left, top, width, height = map(float, entry["bbox"])
        score = float(entry.get("score", 1.0))
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise MetamixerError(f"entry {place} has no category, box of four numbers or score ({what})") from None
    if label is None or label != int(label):
        raise MetamixerError(f"category {number} is unknown")
    if entry.get("segmentation") and (fault := fault_of_mask(entry["segmentation"], size)):
        raise MetamixerError(f"entry {place} has {fault}")
    return int(label), (left, top, left + width, top + height), score


def _whole(numbers: np.ndarray) -> bool:
    return bool(np.issubdtype(numbers.dtype, np.integer))


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise MetamixerError(f"unfit result: {sentence}")
