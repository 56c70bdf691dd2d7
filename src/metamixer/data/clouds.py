"""Point clouds: reading scenes in the usual layouts, grid cells, and the augmentations of the released settings."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metamixer.data.formats import names_in_npz, read_npy, read_npz
from metamixer.data.pickles import load_pickle
from metamixer.data.tensors import plain_tensors
from metamixer.errors import MetamixerError
from metamixer.limits import CLOUD_BYTES, NotNegative, Positive, Share, ShareBelowOne, check_settings, require_memory

IGNORED = -1
Layout = Literal["auto", "numpy", "pointcept", "range"]
#: Attributes that a scene may have beside coordinates, and how many numbers each has.
ATTRIBUTES = {"color": 3, "normal": 3, "strength": 1}
_LABELS = ("segment", "semantic_gt20", "semantic_gt", "semantic_gt200", "label", "labels")


@dataclass(frozen=True)
class Cloud:
    """The points of one scene.

    Args:
        coord: ``N × 3`` in metres, float32.
        attributes: by name: ``color`` (``N × 3``, 0 to 255), ``normal`` (``N × 3``), ``strength`` (``N × 1``).
        segment: ``N`` class indices, -1 where a point counts for nothing; None for a scene without labels.
        name: what a person calls the scene.
    """

    coord: NDArray[np.float32]
    attributes: dict[str, NDArray[np.float32]]
    segment: NDArray[np.int64] | None
    name: str

    def __len__(self) -> int:
        return len(self.coord)

    def take(self, rows: NDArray) -> Cloud:
        """Some of the points."""
        attributes = {name: values[rows] for name, values in self.attributes.items()}
        return replace(
            self,
            coord=self.coord[rows],
            attributes=attributes,
            segment=None if self.segment is None else self.segment[rows],
        )

    def features(self, names: Sequence[str]) -> NDArray[np.float32]:
        """``N × sum of widths``: the named attributes, colours from -1 to 1; ``coord`` is one too.

        Raises MetamixerError, naming the scene, where it has not got one of them.
        """
        columns = []
        for name in names:
            if name == "coord":
                columns.append(self.coord)
            elif name not in self.attributes:
                has = ", ".join(["coord", *self.attributes])
                raise MetamixerError(f"{self.name} has no {name!r} (it has {has}), which the network reads")
            else:
                values = self.attributes[name]
                columns.append(values / 127.5 - 1 if name == "color" else values)
        return np.concatenate(columns, axis=1, dtype=np.float32)


def feature_width(names: Sequence[str]) -> int:
    """Columns of :meth:`Cloud.features`."""
    return sum(3 if name == "coord" else ATTRIBUTES[name] for name in names)


class Scenes:
    """The scenes of a folder or a file, read when they are asked for.

    Args:
        root: one of

            - a folder of scenes as sub-folders with ``coord.npy`` and beside it ``color.npy``, ``normal.npy``,
              ``strength.npy``, ``segment.npy``, or of ``.npz`` files with these arrays (layout "numpy");
            - a folder of ``.pth`` dictionaries as Pointcept's preprocessing of S3DIS and ScanNet writes them:
              ``coord``, ``color``, ``normal`` and ``semantic_gt`` or ``semantic_gt20`` ("pointcept");
            - an ``.npz`` file of range images, ``xyz`` (``N × 3 × H × W``), ``remission`` and ``label``
              (``N × H × W``), of which class 0 is unlabelled and the others count from 1 ("range").
        classes: number of classes, to check labels against.
        layout: which of these; "auto" looks.

    Raises MetamixerError for a folder without scenes, and when a scene is read, naming the file and the point, of a
    range image by row and column: for files that cannot be read, arrays of other shapes, lengths or kinds, no points,
    coordinates or attributes that are NaN or infinite, and labels out of range.
    """

    def __init__(self, root: str | Path, classes: int | None = None, layout: Layout = "auto") -> None:
        self.root, self.classes = Path(root), classes
        if not os.path.lexists(self.root):
            raise MetamixerError(f"{root}: no such file or folder")
        self.layout = _layout_of(self.root) if layout == "auto" else layout
        self._range: dict[str, NDArray] = {}
        if self.layout == "range":
            self._range = _arrays(self.root)
            images = _wanted(self._range, "xyz", self.root)
            if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
                raise MetamixerError(f"{self.root}: xyz must be scans × 3 × rows × columns, got {images.shape}")
            self.files = [self.root] * len(images)
        elif self.layout == "pointcept":
            self.files = sorted(self.root.rglob("*.pth")) if os.path.isdir(self.root) else [self.root]
        else:
            folders = [path.parent for path in self.root.rglob("coord.npy")] if os.path.isdir(self.root) else []
            archives = list(self.root.rglob("*.npz")) if os.path.isdir(self.root) else [self.root]
            self.files = sorted([*folders, *archives])
        if not self.files:
            raise MetamixerError(f"{self.root} holds no scenes (sub-folders with coord.npy, .npz or .pth files)")

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        file = self.files[index]
        return f"{file}, scan {index}" if self.layout == "range" else str(file)

    def __getitem__(self, index: int) -> Cloud:
        """The scene as the file has it. Range images lose their empty cells; their points keep the image's order."""
        file = self.files[index]
        if self.layout == "range":
            return self._checked(*_range_scan(self._range, index, file), self.name(index))
        arrays = _dictionary(file) if self.layout == "pointcept" else _arrays(file)
        return self._checked(arrays, _OURS, self.name(index))

    def __iter__(self) -> Iterator[Cloud]:
        return (self[i] for i in range(len(self)))

    def _checked(self, arrays: dict[str, NDArray], layout: _Names, name: str) -> Cloud:
        coord = _wanted(arrays, "coord", name)
        if coord.ndim != 2 or coord.shape[1] != 3:
            raise MetamixerError(f"{name}: coord must be points × 3, got {coord.shape}")
        if len(coord) == 0:
            raise MetamixerError(f"{name} holds no points")
        require_memory(coord.size * 8, f"{name}, {len(coord)} points")  # views may state more than they hold
        attributes = {}
        for key, width in {"coord": 3, **ATTRIBUTES}.items():
            if key not in arrays:
                continue
            stored, said = arrays[key], layout.of(key)
            _check_numbers(stored, f"{name}: {said}")
            if stored.ndim == 0 or len(stored) != len(coord) or stored.size != len(coord) * width:
                raise MetamixerError(f"{name}: {said} must be {len(coord)} points × {width}, got {stored.shape}")
            with np.errstate(over="ignore"):  # too large a number becomes infinite, and is told of
                values = stored.reshape(-1, width).astype(np.float32)
            bad = ~np.isfinite(values).all(1)
            if bad.any():
                raise MetamixerError(f"{name}: {said} is NaN or infinite at {layout.place(int(bad.argmax()))}")
            attributes[key] = values
        return Cloud(attributes.pop("coord"), attributes, self._labels(arrays, len(coord), layout, name), name)

    def _labels(self, arrays: dict[str, NDArray], points: int, layout: _Names, name: str) -> NDArray[np.int64] | None:
        key = next((key for key in _LABELS if key in arrays), None)
        if key is None:
            return None
        labels, none = arrays[key].reshape(-1), layout.unlabelled
        _check_numbers(labels, f"{name}: {layout.of(key)}")
        if len(labels) != points:
            raise MetamixerError(f"{name}: {key} holds {len(labels)} labels for {points} points")
        last = _MANY if self.classes is None else none + self.classes
        numbers = labels.astype(np.float64) if labels.dtype.kind == "f" else labels
        bad = ~((numbers >= none) & (numbers <= last) & (numbers == np.floor(numbers)))  # NaN is none of these
        if bad.any():
            at = int(bad.argmax())
            raise MetamixerError(
                f"{name}: the label {labels[at]} of {layout.place(at)} is out of range ({none} for none, {none + 1} to"
                f" {'…' if self.classes is None else last})"
            )
        return labels.astype(np.int64) - none + IGNORED


@dataclass(frozen=True)
class _Names:
    """What a file calls things, for messages: its arrays, its points, and the label that means none.

    Args:
        arrays: its names for ours, where they differ.
        cells: row and column of every point; None where points are counted.
        unlabelled: the label that means none; classes count from the next one.
    """

    arrays: Mapping[str, str] = field(default_factory=dict)
    cells: NDArray[np.int64] | None = None
    unlabelled: int = IGNORED

    def of(self, key: str) -> str:
        return self.arrays.get(key, key)

    def place(self, point: int) -> str:
        if self.cells is None:
            return f"point {point}"
        row, column = self.cells[point]
        return f"row {row}, column {column}"


_OURS = _Names()
_MANY = 2**53  # classes, where their number is not known


def _check_numbers(values: NDArray, what: str) -> None:
    if values.dtype.kind not in "biuf":
        raise MetamixerError(f"{what} must hold numbers, not {values.dtype}")


def _layout_of(root: Path) -> Layout:
    if os.path.isfile(root):
        if root.suffix == ".pth":
            return "pointcept"
        return "range" if root.suffix == ".npz" and "xyz" in names_in_npz(root) else "numpy"
    return "pointcept" if next(root.rglob("*.pth"), None) is not None else "numpy"


def _arrays(path: Path) -> dict[str, NDArray]:
    """Arrays of an ``.npz`` file, or of a folder of ``.npy`` files, by name."""
    wanted = {"coord", "xyz", "remission", *ATTRIBUTES, *_LABELS}
    if os.path.isdir(path):
        return {file.stem: read_npy(file) for file in path.glob("*.npy") if file.stem in wanted}
    return read_npz(path, wanted.__contains__)


def _dictionary(path: Path) -> dict[str, NDArray]:
    """A dictionary of arrays that ``torch.save`` wrote; nothing in it is run."""
    read = load_pickle(path, CLOUD_BYTES, "a dictionary of arrays")
    if isinstance(read, dict):
        arrays = {key: value for key, value in read.items() if isinstance(value, np.ndarray)}
        tensors = {key: value for key, value in read.items() if isinstance(value, torch.Tensor)}
        return arrays | {key: _as_array(tensor) for key, tensor in plain_tensors(tensors, path).items()}
    raise MetamixerError(f"{path} holds a {type(read).__name__}, not a dictionary of arrays")


def _as_array(tensor: torch.Tensor) -> NDArray:
    known = not tensor.is_floating_point() or tensor.dtype in (torch.float16, torch.float32, torch.float64)
    return (tensor if known else tensor.float()).detach().numpy()


def _range_scan(arrays: dict[str, NDArray], index: int, file: Path) -> tuple[dict[str, NDArray], _Names]:
    """The points of a range image, their labels as the file has them, and how messages name all that."""
    xyz = arrays["xyz"][index]
    _check_numbers(xyz, f"{file}, scan {index}: xyz")
    valid = (xyz != 0).any(0)  # an empty cell is all zeros; NaN is no zero and is found later
    scan, names = {"coord": xyz[:, valid].T}, {"coord": "xyz"}
    for key, name in {"remission": "strength", "label": "segment"}.items():
        if key in arrays:
            if arrays[key].shape[1:] != xyz.shape[1:] or len(arrays[key]) != len(arrays["xyz"]):
                raise MetamixerError(f"{file}: {key} must be scans × {xyz.shape[1]} × {xyz.shape[2]} as xyz is")
            scan[name], names[name] = arrays[key][index][valid], key
    return scan, _Names(names, np.argwhere(valid), unlabelled=0)


def _wanted(arrays: dict[str, NDArray], key: str, where: object) -> NDArray:
    if key not in arrays:
        raise MetamixerError(f"{where} has no array {key!r} (it has {', '.join(arrays) or 'none'})")
    return arrays[key]


# --- Grid cells ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Points by the cell of a regular grid that they lie in.

    Args:
        grid_coord: ``cells × 3`` integers, from 0.
        cell_of: for each point the row of its cell.
        order: the points, sorted by cell.
        starts: for each cell where its points begin in ``order``, and at the end the number of points.
    """

    grid_coord: NDArray[np.int64]
    cell_of: NDArray[np.int64]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Points in every cell."""
        return np.diff(self.starts)

    def one_of_each(self) -> NDArray[np.int64]:
        """A random point of every cell, drawn from NumPy's generator."""
        return self.order[self.starts[:-1] + np.random.randint(0, self.counts)]

    def fragments(self) -> Iterator[NDArray[np.int64]]:
        """One point of every cell at a time, until each has come once at least: as often as the fullest cell asks."""
        for i in range(int(self.counts.max())):
            yield self.order[self.starts[:-1] + i % self.counts]


def voxelise(coord: NDArray, size: float, name: str = "the cloud") -> Cells:
    """Sort points into cubic cells of side ``size`` (in the unit of the coordinates); the lowest cell is 0, 0, 0.

    Raises MetamixerError, with the cloud's name, for a size that is not positive, or so small that the cells cannot be
    numbered.
    """
    if not size > 0:
        raise MetamixerError(f"{name}: the grid's cells must be larger than 0, not {size}")
    cells = np.floor(coord.astype(np.float64) / size)
    cells -= cells.min(0)
    sides = cells.max(0) + 1
    if sides.prod() >= 2**62:
        extent = " × ".join(f"{side:g}" for side in np.ptp(coord, axis=0))
        raise MetamixerError(f"{name} spans {extent}: a grid of {size:g} has too many cells there")
    x, y, z = cells.astype(np.int64).T
    _, depth, height = sides.astype(np.int64)
    keys, cell_of, counts = np.unique((x * depth + y) * height + z, return_inverse=True, return_counts=True)
    grid = np.stack([keys // (depth * height), keys // height % depth, keys % height], axis=1)
    starts = np.concatenate([[0], counts.cumsum()])
    return Cells(grid, cell_of.reshape(-1), np.argsort(cell_of.reshape(-1), kind="stable"), starts)


# --- Augmentations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CloudAugmentation:
    """Random changes of a training scene; the defaults are the released ones for S3DIS and ScanNet.

    Args:
        drop: share of the points that one scene in five loses.
        rotate: largest turn about the vertical axis, as a multiple of π, for half of the scenes.
        tilt: the same about each horizontal axis.
        scale: factors on the coordinates, from and to.
        flip: probability of mirroring x, and of mirroring y.
        jitter: deviation of the noise on coordinates in metres, cut at four times that.
        elastic: (granularity, magnitude) of smooth distortions in metres, for 95 % of the scenes.
        color: change the colours: contrast, tint and noise.

    Random numbers come from NumPy's generator.
    """

    drop: ShareBelowOne = 0.2
    rotate: NotNegative = 1.0
    tilt: NotNegative = 1 / 64
    scale: tuple[Positive, Positive] = (0.9, 1.1)
    flip: Share = 0.5
    jitter: NotNegative = 0.005
    elastic: tuple[tuple[Positive, NotNegative], ...] = ((0.2, 0.4), (0.8, 1.6))
    color: bool = True

    def __post_init__(self) -> None:
        check_settings(self)

    def __call__(self, cloud: Cloud) -> Cloud:
        if self.drop and np.random.rand() < 0.2:
            keep = max(1, int(len(cloud) * (1 - self.drop)))
            cloud = cloud.take(np.random.choice(len(cloud), keep, replace=False))
        coord, turn = cloud.coord.astype(np.float64), np.eye(3)
        for axis, largest in ((2, self.rotate), (0, self.tilt), (1, self.tilt)):
            if largest and np.random.rand() < 0.5:
                turn = _rotation(axis, np.random.uniform(-largest, largest) * np.pi) @ turn
        signs = np.where(np.random.rand(2) < self.flip, -1.0, 1.0)
        turn = np.diag([*signs, 1.0]) @ turn
        coord = coord @ turn.T * np.random.uniform(*self.scale)
        if self.jitter:
            coord += (self.jitter * np.random.randn(*coord.shape)).clip(-4 * self.jitter, 4 * self.jitter)
        if self.elastic and np.random.rand() < 0.95:
            for granularity, magnitude in self.elastic:
                coord = elastic_distortion(coord, granularity, magnitude)
        attributes = dict(cloud.attributes)
        if "normal" in attributes:
            attributes["normal"] = (attributes["normal"] @ turn.T).astype(np.float32)
        if self.color and "color" in attributes:
            attributes["color"] = _change_colours(attributes["color"])
        return replace(cloud, coord=coord.astype(np.float32), attributes=attributes)


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    matrix = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[second, first], matrix[first, second] = np.sin(angle), -np.sin(angle)
    return matrix


def elastic_distortion(coord: NDArray[np.float64], granularity: float, magnitude: float) -> NDArray[np.float64]:
    """Points moved by smooth noise: normal numbers on a grid of that width, blurred twice, interpolated linearly.

    Args:
        coord: ``N × 3``.
        granularity: width of the noise's cells.
        magnitude: factor on the noise.
    """
    low = coord.min(0)
    sides = np.ptp(coord, axis=0) // granularity + 3
    require_memory(int(min(sides.prod(), 1e18)) * 12, f"noise on cells of {granularity:g}, {sides.prod():.3g} of them")
    cells = sides.astype(int)
    noise = torch.from_numpy(np.random.randn(1, 3, *cells).astype(np.float32))
    for _ in range(2):
        noise = torch.nn.functional.avg_pool3d(noise, 3, 1, 1)
    # Cell i of the noise lies at low + (i - 1) · granularity; grid_sample counts the last axis first, from -1 to 1.
    places = 2 * ((coord - low) / granularity + 1) / (cells - 1) - 1
    grid = torch.from_numpy(places[:, ::-1].astype(np.float32)).view(1, 1, 1, -1, 3)
    moved = torch.nn.functional.grid_sample(noise, grid, align_corners=True)[0, :, 0, 0].T.numpy()
    return coord + magnitude * moved


def _change_colours(color: NDArray[np.float32]) -> NDArray[np.float32]:
    """Contrast stretched in one scene of five, then a common tint and single noise in 95 % of them; 0 to 255."""
    if np.random.rand() < 0.2:
        low, high = color.min(0), color.max(0)
        stretched = (color - low) * (255 / np.maximum(high - low, 1.0))
        share = np.random.rand()
        color = (1 - share) * color + share * stretched
    if np.random.rand() < 0.95:
        color = (color + np.random.uniform(-1, 1, (1, 3)) * 255 * 0.05).clip(0, 255)
    if np.random.rand() < 0.95:
        color = (color + np.random.randn(*color.shape) * 255 * 0.05).clip(0, 255)
    return color.astype(np.float32)


def centred(cloud: Cloud) -> Cloud:
    """Moved so that the middle of its extent along x and y is 0, and its lowest point along z."""
    low, high = cloud.coord.min(0), cloud.coord.max(0)
    shift = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], np.float32)
    return replace(cloud, coord=cloud.coord - shift)


def nearest_to_a_point(coord: NDArray, count: int) -> NDArray[np.int64]:
    """Rows of the ``count`` points nearest to one of them, drawn at random; all of them where there are no more."""
    if len(coord) <= count:
        return np.arange(len(coord))
    centre = coord[np.random.randint(len(coord))]
    return np.argpartition(((coord - centre) ** 2).sum(1), count - 1)[:count]
