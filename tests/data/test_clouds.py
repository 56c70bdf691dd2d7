"""Scenes in every layout, grid cells, augmentations, and clouds that are refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metamixer import MetamixerError
from metamixer.data.clouds import (
    Cloud,
    CloudAugmentation,
    Scenes,
    centred,
    elastic_distortion,
    nearest_to_a_point,
    voxelise,
)


@pytest.fixture(autouse=True)
def numpy_seed() -> None:
    np.random.seed(0)


def scene(points: int = 30) -> dict[str, np.ndarray]:
    random = np.random.default_rng(points)
    return {
        "coord": random.uniform(0, 2, (points, 3)).astype(np.float32),
        "color": random.integers(0, 256, (points, 3)).astype(np.uint8),
        "normal": random.normal(size=(points, 3)).astype(np.float32),
        "segment": random.integers(-1, 4, points),
    }


def write_folder(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    return folder


def cloud(points: int = 30) -> Cloud:
    made = scene(points)
    attributes = {name: made[name].astype(np.float32) for name in ("color", "normal")}
    return Cloud(made["coord"], attributes, made["segment"], "a scene")


# --- Layouts ---------------------------------------------------------------------------------------------------------


def assert_equal(read: Cloud, made: dict[str, np.ndarray]) -> None:
    assert np.array_equal(read.coord, made["coord"])
    assert np.array_equal(read.attributes["color"], made["color"])
    assert np.array_equal(read.attributes["normal"], made["normal"])
    assert read.segment is not None
    assert np.array_equal(read.segment, made["segment"])
    assert read.segment.dtype == np.int64


def test_numpy_folders_and_archives(tmp_path: Path) -> None:
    made = [scene(20), scene(21)]
    write_folder(tmp_path / "data" / "a", made[0])
    np.savez(tmp_path / "data" / "b.npz", **made[1], other=np.zeros(3))
    scenes = Scenes(tmp_path / "data", classes=4)
    assert len(scenes) == 2
    assert scenes.name(0).endswith("a")
    for read, expected in zip(scenes, made, strict=True):
        assert_equal(read, expected)
    assert_equal(Scenes(tmp_path / "data" / "b.npz")[0], made[1])


def test_pointcept_dictionaries(tmp_path: Path) -> None:
    """As the preprocessing of S3DIS writes them, labels N × 1 and numbers in float64."""
    made = scene(20)
    stored = {"coord": made["coord"].astype(np.float64), "color": made["color"], "normal": made["normal"]}
    stored |= {"semantic_gt": made["segment"].reshape(-1, 1), "instance_gt": np.zeros((20, 1)), "scene_id": "x"}
    (tmp_path / "Area_1").mkdir()
    torch.save(stored, tmp_path / "Area_1" / "office.pth")
    assert_equal(Scenes(tmp_path / "Area_1", classes=4)[0], made)
    # ScanNet's have both; the 20 classes are meant.
    torch.save(stored | {"semantic_gt20": made["segment"], "semantic_gt200": made["segment"] + 100}, tmp_path / "s.pth")
    assert_equal(Scenes(tmp_path / "s.pth", classes=4)[0], made)


def test_range_images(tmp_path: Path) -> None:
    """Empty cells are left out, label 0 means none."""
    xyz = np.zeros((2, 3, 2, 3), np.float32)
    xyz[1, :, 0, 1], xyz[1, :, 1, 2] = (1, 2, 3), (4, 0, 0)
    xyz[0, 0] = 1
    remission = np.arange(12, dtype=np.float16).reshape(2, 2, 3)
    label = np.array([[[1] * 3] * 2, [[0, 3, 0], [0, 0, 0]]], np.uint8)
    np.savez(tmp_path / "scans.npz", xyz=xyz, remission=remission, label=label, class_names=np.array(["a", "b"]))
    scenes = Scenes(tmp_path / "scans.npz", classes=3)
    assert len(scenes) == 2
    assert scenes.name(1).endswith("scans.npz, scan 1")
    read = scenes[1]
    assert read.coord.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert read.attributes["strength"].tolist() == [[7], [11]]
    assert read.segment is not None
    assert read.segment.tolist() == [2, -1]


def test_features_by_name() -> None:
    made = cloud(5)
    features = made.features(("color", "coord"))
    assert np.array_equal(features[:, 3:], made.coord)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features[:, :3], made.attributes["color"] / 127.5 - 1, rtol=1e-6)
    with pytest.raises(MetamixerError, match=r"a scene has no 'strength' \(it has coord, color, normal\)"):
        made.features(("strength",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coord": np.zeros((0, 3))}, "holds no points"),
        ({"coord": np.zeros((30, 2))}, r"coord must be points × 3, got \(30, 2\)"),
        ({"coord": np.where(np.arange(90).reshape(30, 3) == 50, np.nan, 1.0)}, "coord is NaN or infinite at point 16"),
        ({"color": np.full((30, 3), np.inf)}, "color is NaN or infinite at point 0"),
        ({"normal": np.zeros((29, 3))}, r"normal must be 30 points × 3, got \(29, 3\)"),
        ({"segment": np.arange(30) % 5}, r"the label 4 of point 4 is out of range \(-1 for none, 0 to 3\)"),
        ({"segment": np.full(30, -2)}, "the label -2 of point 0"),
        ({"segment": np.full(30, 0.5)}, "the label 0.5 of point 0"),
        ({"segment": np.zeros(7, int)}, "segment holds 7 labels for 30 points"),
        ({"segment": np.where(np.arange(30) == 3, np.nan, 1)}, "the label nan of point 3 is out of range"),
        ({"segment": np.where(np.arange(30) == 3, np.inf, 1)}, "the label inf of point 3 is out of range"),
        ({"segment": np.full(30, 1e30)}, r"the label 1e\+30 of point 0 is out of range"),
        ({"segment": np.full(30, "wall")}, "segment must hold numbers, not <U4"),
        ({"coord": np.full((30, 3), "a")}, "coord must hold numbers, not <U1"),
        ({"coord": np.zeros((30, 3), complex)}, "coord must hold numbers, not complex128"),
        ({"coord": np.full((30, 3), 1e300)}, "coord is NaN or infinite at point 0"),
        ({"color": np.float32(3)}, r"color must be 30 points × 3, got \(\)"),
        ({"color": np.zeros((0, 3))}, r"color must be 30 points × 3, got \(0, 3\)"),
        ({"normal": np.zeros((30, 3), "M8[s]")}, "normal must hold numbers, not datetime64"),
    ],
)
def test_scenes_that_are_wrong(change: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "room", scene() | change)
    with pytest.raises(MetamixerError, match=f"room:? {message}"):
        Scenes(tmp_path, classes=4)[0]


@pytest.mark.parametrize("kind", ["u1", "u2", "u8", "i1", "f2", "f8", "?"])
def test_labels_of_any_kind_of_number(kind: str, tmp_path: Path) -> None:
    made = scene() | {"segment": (np.arange(30) % 2).astype(kind)}
    for classes in (2, None):
        assert_equal(Scenes(write_folder(tmp_path / f"{classes}", made), classes)[0], made)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("label", 4, r"the label 4 of row 2, column 5 is out of range \(0 for none, 1 to 3\)"),
        ("label", -1, r"the label -1 of row 2, column 5 is out of range"),
        ("label", 1.7, r"the label 1.7 of row 2, column 5 is out of range"),
        ("label", np.nan, r"the label nan of row 2, column 5 is out of range"),
        ("xyz", np.nan, "xyz is NaN or infinite at row 2, column 5"),
        ("remission", np.inf, "remission is NaN or infinite at row 2, column 5"),
        ("label", "car", "label must hold numbers, not <U32"),
        ("xyz", "far", "xyz must hold numbers, not <U32"),
    ],
)
def test_range_images_that_are_wrong(key: str, value: float | str, message: str, tmp_path: Path) -> None:
    """Places and labels are those of the file, not of the list of points without empty cells."""
    random = np.random.default_rng(0)
    xyz = random.uniform(1, 2, (2, 3, 4, 8)).astype(np.float32)
    xyz[:, :, 0, :3] = 0
    arrays = {"xyz": xyz, "remission": xyz[:, 0], "label": random.integers(0, 4, (2, 4, 8)).astype(float)}
    np.savez(tmp_path / "a.npz", **arrays)
    assert len(Scenes(tmp_path / "a.npz", classes=3)[1]) == 29
    arrays[key] = arrays[key].astype(type(value))
    arrays[key][1, ..., 2, 5] = value
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(MetamixerError, match=rf"a.npz, scan 1: {message}"):
        Scenes(tmp_path / "a.npz", classes=3)[1]


def test_damaged_archives(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", coord=np.random.rand(500, 3))
    whole = (tmp_path / "a.npz").read_bytes()
    for start in range(0, len(whole) - 40, 100):
        (tmp_path / "a.npz").write_bytes(whole[:start] + bytes(40) + whole[start + 40 :])
        with pytest.raises(MetamixerError, match=r"a.npz"):
            Scenes(tmp_path / "a.npz")[0]
    np.save(tmp_path / "coord.npy", np.zeros((3, 3)))
    whole = (tmp_path / "coord.npy").read_bytes()
    for start in range(8, 70, 3):
        (tmp_path / "coord.npy").write_bytes(whole[:start] + b"({[" + whole[start + 3 :])
        with pytest.raises(MetamixerError, match=rf"{tmp_path.name}"):
            Scenes(tmp_path, layout="numpy")[0]


def test_files_that_are_no_scenes(tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match="nowhere: no such file or folder"):
        Scenes(tmp_path / "nowhere")
    with pytest.raises(MetamixerError, match="holds no scenes"):
        Scenes(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(MetamixerError, match=r"a.npz cannot be read as"):
        Scenes(tmp_path / "a.npz")
    (tmp_path / "a.npz").unlink()
    np.savez(tmp_path / "b.npz", color=np.zeros((3, 3)))
    with pytest.raises(MetamixerError, match=r"b.npz has no array 'coord' \(it has color\)"):
        Scenes(tmp_path / "b.npz")[0]
    (tmp_path / "c.pth").write_bytes(b"nothing")
    torch.save([1, 2], tmp_path / "d.pth")
    scenes = Scenes(tmp_path)
    with pytest.raises(MetamixerError, match=r"c.pth is no file of torch.save"):
        scenes[0]
    with pytest.raises(MetamixerError, match=r"d.pth holds a list"):
        scenes[1]
    np.savez(tmp_path / "e.npz", xyz=np.zeros((2, 3, 4)))
    with pytest.raises(MetamixerError, match=r"xyz must be scans × 3 × rows × columns, got \(2, 3, 4\)"):
        Scenes(tmp_path / "e.npz")


# --- Cells -----------------------------------------------------------------------------------------------------------


def test_cells_are_floors_counted_from_the_lowest() -> None:
    coord = np.random.default_rng(0).uniform(-3, 3, (400, 3))
    cells = voxelise(coord, 0.7)
    expected = np.floor(coord / 0.7).astype(int)
    expected -= expected.min(0)
    assert np.array_equal(cells.grid_coord[cells.cell_of], expected)
    assert len(np.unique(cells.grid_coord, axis=0)) == len(cells.grid_coord) == len(cells.counts)
    assert np.array_equal(cells.counts, np.bincount(cells.cell_of))


def test_one_point_of_every_cell_at_random() -> None:
    coord = np.random.default_rng(0).uniform(0, 2, (300, 3))
    cells = voxelise(coord, 0.5)
    draws = [cells.one_of_each() for _ in range(60)]
    for rows in draws:
        assert np.array_equal(cells.cell_of[rows], np.arange(len(cells.counts)))
    assert len(np.unique(draws)) == 300  # every point has its turn


def test_fragments_show_every_point() -> None:
    cells = voxelise(np.random.default_rng(0).uniform(0, 2, (100, 3)), 0.6)
    fragments = list(cells.fragments())
    assert len(fragments) == cells.counts.max()
    for rows in fragments:
        assert np.array_equal(cells.cell_of[rows], np.arange(len(cells.counts)))
    assert set(np.concatenate(fragments)) == set(range(100))


def test_grids_at_the_edge() -> None:
    same = voxelise(np.full((5, 3), 1.5), 0.02)
    assert same.grid_coord.tolist() == [[0, 0, 0]]
    assert same.counts.tolist() == [5]
    assert voxelise(np.zeros((1, 3)), 1).cell_of.tolist() == [0]
    with pytest.raises(MetamixerError, match="larger than 0"):
        voxelise(np.zeros((1, 3)), 0)
    with pytest.raises(MetamixerError, match=r"a scene spans 1e\+09 × 2 × 1e\+09: a grid of 1e-09 has too many cells"):
        voxelise(np.array([[0, 0, 0], [1e9, 2, 1e9]]), 1e-9, "a scene")


# --- Augmentations ---------------------------------------------------------------------------------------------------

STILL: dict[str, Any] = dict(
    drop=0.0, rotate=0.0, tilt=0.0, scale=(1.0, 1.0), flip=0.0, jitter=0.0, elastic=(), color=False
)


def test_without_settings_nothing_changes() -> None:
    made = cloud()
    same = CloudAugmentation(**STILL)(made)
    assert np.array_equal(same.coord, made.coord)
    assert np.array_equal(same.attributes["color"], made.attributes["color"])


@pytest.mark.parametrize("setting", [{"rotate": 1.0}, {"tilt": 1 / 4}, {"flip": 0.5}])
def test_turns_keep_distances_and_turn_normals_too(setting: dict[str, float]) -> None:
    made, changed = cloud(), 0
    for _ in range(10):
        turned = CloudAugmentation(**(STILL | setting))(made)
        distances = [np.linalg.norm(c.coord[:, None] - c.coord[None], axis=-1) for c in (turned, made)]
        np.testing.assert_allclose(*distances, atol=1e-5)
        # The same linear map for coordinates and normals.
        stacked = np.concatenate([made.coord, made.attributes["normal"]])
        moved = np.concatenate([turned.coord, turned.attributes["normal"]])
        matrix = np.linalg.lstsq(stacked, moved, rcond=None)[0]
        np.testing.assert_allclose(stacked @ matrix, moved, atol=1e-5)
        if "tilt" not in setting:
            np.testing.assert_allclose(turned.coord[:, 2], made.coord[:, 2], atol=1e-6)
        changed += not np.allclose(turned.coord, made.coord)
    assert 2 <= changed <= 10


def test_scale_jitter_and_drop() -> None:
    made = cloud(1000)
    scaled = CloudAugmentation(**(STILL | {"scale": (2.0, 2.0)}))(made)
    np.testing.assert_allclose(scaled.coord, 2 * made.coord, rtol=1e-6)
    noise = CloudAugmentation(**(STILL | {"jitter": 0.01}))(made).coord - made.coord
    assert noise.std() == pytest.approx(0.01, rel=0.1)
    assert np.abs(noise).max() <= 0.0401
    counts = [len(CloudAugmentation(**(STILL | {"drop": 0.2}))(made)) for _ in range(60)]
    assert set(counts) == {800, 1000}
    assert 3 <= counts.count(800) <= 24
    dropped = next(c for c in iter(lambda: CloudAugmentation(**(STILL | {"drop": 0.2}))(made), None) if len(c) == 800)
    assert dropped.segment is not None
    assert len(dropped.segment) == len(dropped.attributes["color"]) == 800


def test_elastic_distortion_is_the_interpolated_blurred_noise() -> None:
    """By scipy: normal noise, blurred twice along each axis, interpolated linearly."""
    from scipy.interpolate import RegularGridInterpolator
    from scipy.ndimage import convolve1d

    coord = np.random.default_rng(0).uniform(-1, 2, (50, 3))
    np.random.seed(3)
    found = elastic_distortion(coord, 0.4, 1.6)
    low, shape = coord.min(0), (np.ptp(coord, axis=0) // 0.4).astype(int) + 3
    np.random.seed(3)
    noise = np.random.randn(1, 3, *shape)[0]
    for _ in range(2):
        for axis in (1, 2, 3):
            noise = convolve1d(noise, np.ones(3) / 3, axis=axis, mode="constant")
    axes = [low[i] + 0.4 * (np.arange(shape[i]) - 1) for i in range(3)]
    expected = coord + 1.6 * RegularGridInterpolator(axes, noise.transpose(1, 2, 3, 0))(coord)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_colours_change_within_their_range() -> None:
    made, different = cloud(500), 0
    for _ in range(20):
        color = CloudAugmentation(**(STILL | {"color": True}))(made).attributes["color"]
        assert color.min() >= 0
        assert color.max() <= 255
        assert color.dtype == np.float32
        different += not np.array_equal(color, made.attributes["color"])
    assert different >= 18


def test_augmentation_follows_numpys_seed() -> None:
    made = cloud()
    np.random.seed(1)
    first = CloudAugmentation()(made)
    np.random.seed(1)
    assert np.array_equal(CloudAugmentation()(made).coord, first.coord)
    assert not np.array_equal(CloudAugmentation()(made).coord, first.coord)


def test_centring_and_neighbourhoods() -> None:
    middle = centred(cloud()).coord
    assert (middle.min(0) + middle.max(0))[:2] == pytest.approx([0, 0], abs=1e-6)
    assert middle[:, 2].min() == 0
    coord = np.random.default_rng(0).normal(size=(50, 3))
    rows = nearest_to_a_point(coord, 10)
    assert len(set(rows)) == 10
    inside = [
        np.sort(((coord - coord[i]) ** 2).sum(1))[9] >= ((coord[rows] - coord[i]) ** 2).sum(1).max() for i in rows
    ]
    assert any(inside)  # one of them is the middle of all
    assert np.array_equal(nearest_to_a_point(coord, 50), np.arange(50))
