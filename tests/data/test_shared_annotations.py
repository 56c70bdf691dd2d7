"""The real data sets beside the checkout, as counted when they were made."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import pytest

from metamixer.data.annotations import open_class_maps, open_objects
from metamixer.data.annotations.class_maps import read_class_map
from metamixer.data.annotations.shapes import to_masks

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def unpacked(name: str, folder: Path) -> Path:
    file = DATA / f"{name}.tar"
    if not file.is_file():
        pytest.skip(f"{name}.tar is not beside the checkout")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder / name


@pytest.mark.shared
def test_bccd(tmp_path: Path) -> None:
    root = unpacked("bccd", tmp_path)
    for split, pictures, counts in (
        ("train", 205, {"RBC": 2381, "WBC": 214, "Platelets": 209}),
        ("val", 87, {"RBC": 967, "WBC": 87, "Platelets": 83}),
        ("test", 72, {"RBC": 805, "WBC": 71, "Platelets": 69}),
    ):
        found = open_objects(root, split)
        assert len(found.pictures) == pictures
        assert Counter(found.classes[one.label] for p in found.pictures for one in p.instances) == counts
        assert not found.has_masks


@pytest.mark.shared
def test_pennfudan(tmp_path: Path) -> None:
    root = unpacked("pennfudan", tmp_path)
    train, val = open_objects(root), open_objects(root, "val")
    assert (len(train.pictures), len(val.pictures)) == (120, 50)
    assert sum(len(p.instances) for p in train.pictures) == 307
    first = val.pictures[0]
    masks = to_masks([one.segmentation for one in first.instances], first.size)
    for mask, one in zip(masks, first.instances, strict=True):
        assert mask.sum() == one.area


@pytest.mark.shared
def test_camvid(tmp_path: Path) -> None:
    found = open_class_maps(unpacked("camvid", tmp_path), "val", void=11)
    assert len(found.pairs) == 101
    assert len(found.classes) == 11
    assert read_class_map(found.pairs[0][1], found).shape == (360, 480)
