"""Boxes, masks and class maps from every format, and bad entries found before training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metamixer import MetamixerError
from metamixer.data.annotations import find_problems, open_class_maps, open_objects
from metamixer.data.annotations.class_maps import read_class_map
from metamixer.data.annotations.files import read_annotated
from metamixer.data.annotations.shapes import to_masks

WIDTH, HEIGHT = 40, 30


def picture(file: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(file)
    return file


def coco(file: Path, annotations: list[dict[str, Any]], names: list[str], **more: Any) -> None:
    """Two categories, 7 (cell) and 3 (cat), and a picture of each name; annotations get ids from 1."""
    content = {
        "images": [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names, 1)],
        "annotations": [{"id": i, "image_id": 1, "category_id": 7, **one} for i, one in enumerate(annotations, 1)],
        "categories": [{"id": 7, "name": "cell"}, {"id": 3, "name": "cat"}],
        **more,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture
def coco_set(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        picture(tmp_path / f"{split}2017" / "a.jpg")
        picture(tmp_path / f"{split}2017" / "b.jpg")
        annotations = [
            {"bbox": [4, 5, 10, 8], "segmentation": [[4, 5, 14, 5, 14, 13, 4, 13]], "area": 80},
            {"bbox": [0, 0, 40, 3], "segmentation": {"size": [30, 40], "counts": [0, 3] + [27, 3] * 39 + [27]}},
            {"bbox": [20, 10, 20.7, 10], "category_id": 3, "iscrowd": 1, "segmentation": [[20, 10, 40, 10, 40, 20]]},
        ]
        coco(tmp_path / "annotations" / f"instances_{split}2017.json", annotations, ["a.jpg", "b.jpg"])
        (tmp_path / "annotations" / f"captions_{split}2017.json").write_text('{"images": []}')
    return tmp_path


def test_coco(coco_set: Path) -> None:
    found = open_objects(coco_set)
    assert found.classes == ("cat", "cell")  # by id
    first, second = found.pictures
    assert first.file == coco_set / "train2017" / "a.jpg"
    assert second.instances == ()
    polygon, code, crowd = first.instances
    assert (polygon.label, polygon.box, polygon.area) == (1, (4, 5, 14, 13), 80)
    assert crowd.crowd
    assert crowd.box == (20, 10, 40, 20)  # less than a pixel outside is rounding
    masks = to_masks([polygon.segmentation, code.segmentation], first.size)
    assert masks[0].sum() == 80
    assert masks[0][5:13, 4:14].all()
    assert masks[1].sum() == 3 * WIDTH
    assert masks[1][:3].all()
    assert found.has_masks
    assert open_objects(coco_set, "val").pictures[0].file.parent.name == "val2017"


def voc_entry(name: str, box: tuple[float, float, float, float], difficult: int = 0) -> str:
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def voc(root: Path, name: str, entries: list[str], size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    picture(root / "JPEGImages" / f"{name}.jpg")
    file = root / "Annotations" / f"{name}.xml"
    file.parent.mkdir(exist_ok=True)
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    file.write_text(f"<annotation><filename>{name}.jpg</filename>{stated}{''.join(entries)}</annotation>")


def voc_set(root: Path, lists: dict[str, list[str]]) -> Path:
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for split, names in lists.items():
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def test_voc(tmp_path: Path) -> None:
    voc(tmp_path, "one", [voc_entry("dog", (1, 1, 40, 30)), voc_entry("cat", (5, 6, 10, 12), difficult=1)])
    voc(tmp_path, "two", [voc_entry("cat", (2, 2, 8, 8))])
    voc_set(tmp_path, {"train": ["one"], "val": ["two"]})
    found = open_objects(tmp_path)
    assert found.classes == ("cat", "dog")
    dog, cat = found.pictures[0].instances
    assert (dog.label, dog.box) == (1, (0, 0, 40, 30))  # the last pixel belongs to the box
    assert cat.crowd
    [only] = open_objects(tmp_path, "val", classes=found.classes).pictures
    assert only.instances[0].box == (1, 1, 8, 8)
    assert not found.has_masks


@pytest.fixture
def yolo_set(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "a.png")
        picture(tmp_path / "images" / split / "empty.png")
        (tmp_path / "labels" / split).mkdir(parents=True)
        lines = "1 0.5 0.5 0.5 0.2\n0 0.25 0.1 0.5 0.1 0.5 0.5\n"
        (tmp_path / "labels" / split / "a.txt").write_text(lines)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: {0: bolt, 1: nut}\n")
    return tmp_path


def test_yolo(yolo_set: Path) -> None:
    found = open_objects(yolo_set)
    assert found.classes == ("bolt", "nut")
    box, polygon = found.pictures[0].instances
    assert (box.label, box.box) == (1, (10, 12, 30, 18))
    assert polygon.box == (10, 3, 20, 15)
    assert polygon.area == pytest.approx(60)
    assert to_masks([polygon.segmentation], (HEIGHT, WIDTH)).sum() == pytest.approx(60, abs=12)
    assert found.pictures[1].instances == ()


def test_every_fifth_picture_validates_where_nothing_else_does(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(10)]
    for name in names:
        picture(tmp_path / "images" / name)
    annotations = [{"image_id": i, "bbox": [1, 1, 5, 5]} for i in range(1, 11)]
    coco(tmp_path / "annotations.json", annotations, names)
    train, val = open_objects(tmp_path, "train"), open_objects(tmp_path, "val")
    assert [p.file.name for p in val.pictures] == ["4.jpg", "9.jpg"]
    assert {p.file.name for p in train.pictures} == set(names) - {"4.jpg", "9.jpg"}
    with pytest.raises(MetamixerError, match="no split 'test'"):
        open_objects(tmp_path, "test")


BAD_COCO = {
    "negative width": ({"bbox": [4, 4, -3, 5]}, "negative width or height"),
    "zero height": ({"bbox": [4, 4, 5, 0]}, "zero width or height"),
    "far outside": ({"bbox": [50, 4, 5, 5]}, "lies outside the picture"),
    "no number": ({"bbox": [4, 4, float("nan"), 5]}, "a side of the box is no number"),
    "three numbers": ({"bbox": [4, 4, 5]}, "no box of four numbers"),
    "category": ({"bbox": [4, 4, 5, 5], "category_id": 99}, "category 99 is unknown"),
    "picture": ({"bbox": [4, 4, 5, 5], "image_id": 99}, "image 99 is unknown"),
    "two points": ({"bbox": [4, 4, 5, 5], "segmentation": [[4, 4, 9, 9]]}, "a polygon of 2 points"),
    "mask's size": ({"bbox": [4, 4, 5, 5], "segmentation": {"size": [9, 9], "counts": [81]}}, "another size"),
    "id": ({"id": 1, "bbox": [4, 4, 5, 5]}, "an id that occurs twice"),
}


@pytest.mark.parametrize("kind", list(BAD_COCO))
def test_bad_coco_entries_are_named(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry, expected = BAD_COCO[kind]
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "images" / "b.jpg")
    good = {"bbox": [4, 4, 5, 5]}
    coco(tmp_path / "train.json", [good, entry], ["a.jpg"])
    coco(tmp_path / "val.json", [good], ["b.jpg"])
    with pytest.raises(MetamixerError, match=rf"has 1 bad entry .*train\.json, annotation \d+.*{expected}"):
        open_objects(tmp_path)
    for policy in ("drop", "clip"):
        found = open_objects(tmp_path, policy=policy)
        assert [one.box for one in found.pictures[0].instances] == [(4, 4, 9, 9)]
        assert len(found.problems) == 1
    assert "1 bad entries left out" in caplog.text
    [problem] = find_problems(tmp_path)
    assert expected in problem.what


def test_boxes_over_the_edge_are_cut(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    entries = [{"bbox": [30, 4, 20, 5]}, {"bbox": [1, 1, 2, 2], "segmentation": [[1, 1, 3, 1, 3, 3], [1, 1]]}]
    coco(tmp_path / "train.json", entries, ["a.jpg"])
    coco(tmp_path / "val.json", [{"bbox": [1, 1, 2, 2]}], ["a.jpg"])
    with pytest.raises(MetamixerError, match=r"2 bad entries .*reaches outside"):
        open_objects(tmp_path)
    cut = open_objects(tmp_path, policy="clip").pictures[0].instances
    assert cut[0].box == (30, 4, 40, 9)
    assert cut[1].segmentation == [[1, 1, 3, 1, 3, 3]]  # the sound polygon stays
    with pytest.raises(MetamixerError, match="no usable object"):
        open_objects(tmp_path, policy="drop")


def test_bad_pictures_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "other.jpg", (11, 12))
    (tmp_path / "text.jpg").write_text("no picture")
    names = ["a.jpg", "gone.jpg", "other.jpg", "text.jpg"]
    coco(tmp_path / "train.json", [{"bbox": [1, 1, 5, 5]}], names)
    coco(tmp_path / "val.json", [{"bbox": [1, 1, 5, 5]}], ["a.jpg"])
    found = open_objects(tmp_path, policy="drop")
    assert len(found.pictures) == 1
    said = " | ".join(str(problem) for problem in found.problems)
    for expected in ("gone.jpg: no such file", "11 × 12 pixels, not 40 × 30", "text.jpg: cannot be read as a picture"):
        assert expected in said


def test_bad_voc_and_yolo_entries_are_named(tmp_path_factory: pytest.TempPathFactory, yolo_set: Path) -> None:
    root = tmp_path_factory.mktemp("voc")
    voc(root, "good", [voc_entry("dog", (1, 1, 9, 9))])
    voc(root, "bad", [voc_entry("dog", (9, 1, 3, 9)), voc_entry("dog", (1, 1, 90, 9))])
    voc(root, "size", [voc_entry("dog", (1, 1, 9, 9))], size=(99, 99))
    (root / "Annotations" / "text.xml").write_text("no XML")
    voc_set(root, {"train": ["good", "bad", "size", "text", "missing"], "val": ["good"]})
    said = " | ".join(map(str, open_objects(root, policy="drop").problems))
    for expected in ("object 1: the box has negative", "object 2: the box reaches", "not 99 × 99", "as XML", "no such"):
        assert expected in said

    lines = "2 .5 .5 .1 .1\n0 .5 .5 .1\nx .5 .5 .1 .1\n0 .1 .1 .2 .2\n0 .5 .5 0 .1\n0 .9 .5 .6 .1\n0 .1 .1 .2 .2\n"
    (yolo_set / "labels" / "train" / "a.txt").write_text(lines)
    problems = {problem.entry: problem.what for problem in open_objects(yolo_set, policy="drop").problems}
    expected = (
        "category 2 is unknown",
        "a polygon of 1 points",
        "else than numbers",
        "zero width",
        "outside",
        "line 4",
    )
    for entry, part in zip(("line 1", "line 2", "line 3", "line 5", "line 6", "line 7"), expected, strict=True):
        assert part in problems.pop(entry)
    assert problems == {}


def test_what_cannot_be_used_at_all_is_one_sentence(tmp_path: Path, yolo_set: Path, coco_set: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    picture(broken / "a.jpg")
    (broken / "train.json").write_text('{"images": [')
    nothing = tmp_path / "nothing"
    picture(nothing / "a.jpg")
    coco(nothing / "train.json", [], ["a.jpg"])
    assert coco_set == yolo_set  # both formats in one folder
    for root, expected in (
        (tmp_path / "gone", "no such folder"),
        (empty, "no boxes in a known layout"),
        (broken, "cannot be read as JSON"),
        (nothing, "no usable object in any of its 1 pictures"),
        (yolo_set, r"more than one format \(coco and yolo\)"),
    ):
        with pytest.raises(MetamixerError, match=expected):
            open_objects(root)
    assert open_objects(yolo_set, format="yolo").classes == ("bolt", "nut")


def test_each_of_several_formats_is_looked_through(yolo_set: Path, coco_set: Path) -> None:
    assert coco_set == yolo_set
    [both] = find_problems(yolo_set)
    assert both.file == yolo_set
    assert "more than one format (coco and yolo)" in both.what
    (yolo_set / "labels" / "train" / "a.txt").write_text("9 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n")
    problems = find_problems(yolo_set)
    assert problems[0] == both
    assert [problem.entry for problem in problems[1:]] == ["line 1"]


# Class maps


def class_map(file: Path, values: np.ndarray, palette: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image.putpalette(list(range(256)) * 3)
    image.save(file)


def halves(left: int, right: int) -> np.ndarray:
    values = np.full((HEIGHT, WIDTH), left)
    values[:, WIDTH // 2 :] = right
    return values


def camvid_like(root: Path) -> None:
    values = halves(0, 2)
    values[:5] = 1
    for split in ("train", "val"):
        picture(root / split / "images" / "a.jpg")
        class_map(root / split / "labels" / "a.png", values, palette=True)


def ade_like(root: Path) -> None:
    for split in ("training", "validation"):
        picture(root / "images" / split / "a.jpg")
        class_map(root / "annotations" / split / "a.png", halves(0, 2))


def cityscapes_like(root: Path) -> None:
    for split in ("train", "val"):
        picture(root / "leftImg8bit" / split / "bonn" / "bonn_1_leftImg8bit.png")
        for kind, values in (("labelTrainIds", halves(1, 255)), ("labelIds", halves(7, 0)), ("color", halves(9, 9))):
            class_map(root / "gtFine" / split / "bonn" / f"bonn_1_gtFine_{kind}.png", values)


def voc_like(root: Path) -> None:
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        picture(root / "JPEGImages" / f"{split}_1.jpg")
        class_map(root / "SegmentationClass" / f"{split}_1.png", halves(1, 255), palette=True)
        (folder / f"{split}.txt").write_text(f"{split}_1\n")


def flat(root: Path) -> None:
    for i in range(5):
        picture(root / "images" / f"{i}.jpg")
        class_map(root / "masks" / f"{i}_mask.png", halves(0, 1))


@pytest.mark.parametrize(
    ("make", "options", "classes", "labels"),
    [
        (camvid_like, {}, 3, {0, 1, 2}),
        (camvid_like, {"void": 2}, 2, {0, 1, 255}),
        (ade_like, {"zero_is_void": True}, 2, {1, 255}),
        (cityscapes_like, {}, 2, {1, 255}),
        (voc_like, {}, 2, {1, 255}),
        (flat, {}, 2, {0, 1}),
    ],
)
def test_class_maps(
    make: Callable[[Path], None], options: dict[str, Any], classes: int, labels: set[int], tmp_path: Path
) -> None:
    make(tmp_path)
    for split in ("train", "val"):
        found = open_class_maps(tmp_path, split, **options)
        assert len(found.classes) == classes
        values = read_class_map(found.pairs[0][1], found)
        assert values.shape == (HEIGHT, WIDTH)
        assert set(np.unique(values)) == labels
    assert find_problems(tmp_path, "class maps") == []


def test_coloured_class_maps_need_their_table(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / split / "images" / "a.jpg")
        values = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        values[:, 10:] = (64, 128, 0)
        values[:, 30:] = (1, 2, 3)
        class_map(tmp_path / split / "masks" / "a.png", values)
    with pytest.raises(MetamixerError, match=r"is coloured; its folder needs a class_dict.csv"):
        open_class_maps(tmp_path)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,0,0,0\ntree,64,128,0\n")
    with pytest.raises(MetamixerError, match=r"colours that are not in class_dict\.csv: 1, 2, 3"):
        open_class_maps(tmp_path)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,0,0,0\ntree,64,128,0\nvoid,1,2,3\n")
    found = open_class_maps(tmp_path, void=2)
    assert found.classes == ("road", "tree", "void")
    assert np.unique(read_class_map(found.pairs[0][1], found)).tolist() == [0, 1, 255]


def test_bad_class_maps_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    camvid_like(tmp_path)
    folder = tmp_path / "train"
    for name in ("small", "above", "alone", "text"):
        picture(folder / "images" / f"{name}.jpg")
    class_map(folder / "labels" / "small.png", np.zeros((4, 5)))
    class_map(folder / "labels" / "above.png", halves(0, 7))
    class_map(folder / "labels" / "orphan.png", halves(0, 1))
    (folder / "labels" / "text.png").write_text("no picture")
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    with pytest.raises(MetamixerError, match="has 5 bad entries"):
        open_class_maps(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = open_class_maps(tmp_path, policy="drop")
    assert [pair[0].name for pair in found.pairs] == ["a.jpg"]
    assert found.classes == ("sky", "road", "tree")
    for expected in (
        "small.png: a mask of 5 × 4 pixels on a picture of 40 × 30",
        "above.png: label 7 above the class count (with 3 classes)",
        "alone.jpg: no class map",
        "orphan.png: a class map without its picture",
        "text.png: cannot be read as a class map",
    ):
        assert expected in caplog.text
    assert len(find_problems(tmp_path)) == 5


def test_class_maps_without_classes_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "images" / "a.jpg")
    class_map(tmp_path / "train" / "labels" / "a.png", np.full((HEIGHT, WIDTH), 255))
    with pytest.raises(MetamixerError, match="every pixel is void"):
        open_class_maps(tmp_path)
    with pytest.raises(MetamixerError, match="no class maps for 'train'"):
        open_class_maps(tmp_path / "train" / "images")


def test_pictures_are_turned_as_their_annotations_saw_them(tmp_path: Path) -> None:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_annotated(tmp_path / "a.jpg", (WIDTH, HEIGHT)).size == (HEIGHT, WIDTH)
    assert read_annotated(tmp_path / "a.jpg", (HEIGHT, WIDTH)).size == (WIDTH, HEIGHT)
    with pytest.raises(MetamixerError, match="not 8 × 9"):
        read_annotated(tmp_path / "a.jpg", (9, 8))
