"""Every fault of a data set is found before training, named with its file, and left out where that is wished."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metamixer import MetamixerError
from metamixer.data.annotations import (
    find_problems,
    open_class_maps,
    open_class_maps_to_train,
    open_objects,
    open_objects_to_train,
)
from metamixer.data.annotations.class_maps import read_class_map
from metamixer.data.annotations.files import look_at, read_annotated
from metamixer.data.annotations.shapes import code_to_json, fault_of_mask, to_code, to_masks
from metamixer.data.pictures import read_picture

WIDTH, HEIGHT = 40, 30
SIZE = (HEIGHT, WIDTH)
GOOD = {"bbox": [4, 4, 10, 10], "segmentation": [[4, 4, 14, 4, 14, 14]]}
Entry = dict[str, Any]


def picture(file: Path, size: tuple[int, int] = (WIDTH, HEIGHT), turned: bool = False) -> Path:
    """Noise, so that half of the file is not all of it; ``turned``: shown turned by a quarter."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    exif = image.getexif()
    if turned:
        exif[0x0112] = 6
    image.save(file, exif=exif)
    return file


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def write_coco(root: Path, names: list[str], split: str = "train", **changes: list[Any]) -> None:
    """A good object in each picture; ``changes`` are added to the lists of images, categories and annotations."""
    content: dict[str, list[Any]] = {
        "images": [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, **GOOD} for i in range(len(names))],
        "categories": [{"id": 1, "name": "cell"}],
    }
    for key, more in changes.items():
        content[key] += more
    (root / f"{split}.json").write_text(json.dumps(content))


def coco_set(root: Path, **changes: list[Any]) -> Path:
    for name in ("a.jpg", "b.jpg"):
        picture(root / "images" / name)
    write_coco(root, ["a.jpg"], "val")
    write_coco(root, ["a.jpg", "b.jpg"], **changes)
    return root


def usable(root: Path, expected: str, kept: int = 2) -> None:
    """The fault is refused, or left out and listed; all that is left can be learnt from."""
    with pytest.raises(MetamixerError, match=re.escape(expected)):
        open_objects(root)
    for policy in ("drop", "clip"):
        found = open_objects(root, policy=policy)
        [problem] = found.problems
        assert expected in str(problem)
        assert sum(len(one.instances) for one in found.pictures) == kept
        for one in found.pictures:
            assert read_annotated(one.file, one.size).size == (one.size[1], one.size[0])
            masks = [instance.segmentation for instance in one.instances if instance.segmentation is not None]
            assert to_masks(masks, one.size).shape == (len(masks), *one.size)
    assert [one.what for one in find_problems(root)] == [problem.what]


ANNOTATIONS: dict[str, tuple[Any, str]] = {
    "box of text": ({"bbox": ["a", 1, 2, 3]}, "is no number"),
    "box of null": ({"bbox": [None, 1, 2, 3]}, "is no number"),
    "box of one number": ({"bbox": 5}, "no box of four numbers"),
    "box of a huge number": ({"bbox": [10**400, 1, 2, 3]}, "is no number"),
    "area of text": ({"area": "x"}, "is no number"),
    "area that is no number": ({"area": float("nan")}, "an area of nan"),
    "crowd of text": ({"iscrowd": "x"}, "is no number"),
    "no dict": ("x", "no annotation with a number"),
    "id that is a list": ({"id": [1]}, "no annotation with a number"),
    "list of pictures": ({"image_id": [1]}, "image [1] is unknown"),
    "list of categories": ({"category_id": [1]}, "category [1] is unknown"),
    "flat polygon": ({"segmentation": [5, 5, 25, 5, 25, 25]}, "a polygon that is no list of numbers"),
    "polygon of text": ({"segmentation": [["x"] * 6]}, "a polygon that is no list of numbers"),
    "polygon of NaN": ({"segmentation": [[5, 5, float("nan"), 5, 9, 9]]}, "a coordinate that is no number"),
    "polygon far outside": ({"segmentation": [[5, 5, 1e8, 5, 9, 9]]}, "far outside"),
    "polygon of huge numbers": ({"segmentation": [[5, 5, 10**400, 5, 9, 9]]}, "far outside"),
    "odd polygon": ({"segmentation": [[5, 5, 9, 5, 9, 9, 7]]}, "a polygon of 7 numbers"),
    "mask of text": ({"segmentation": "hello"}, "neither polygons nor a run-length code"),
    "code of text": ({"segmentation": {"size": SIZE, "counts": "zzz"}}, "cannot be decoded"),
    "code of the wrong letters": ({"segmentation": {"size": SIZE, "counts": "é!"}}, "cannot be decoded"),
    "code of a number": ({"segmentation": {"size": SIZE, "counts": 7}}, "cannot be decoded"),
    "negative run": ({"segmentation": {"size": SIZE, "counts": [1205, -5]}}, "cannot be decoded"),
    "runs of text": ({"segmentation": {"size": SIZE, "counts": ["x"]}}, "cannot be decoded"),
    "too few runs": ({"segmentation": {"size": SIZE, "counts": [5]}}, "does not fill its picture"),
    "code's size of one number": ({"segmentation": {"size": 5, "counts": [5]}}, "without counts or size"),
}


@pytest.mark.parametrize("case", list(ANNOTATIONS))
def test_annotations_of_coco(case: str, tmp_path: Path) -> None:
    entry, expected = ANNOTATIONS[case]
    whole = {"id": 7, "image_id": 0, "category_id": 1, **GOOD}
    usable(coco_set(tmp_path, annotations=[{**whole, **entry} if isinstance(entry, dict) else entry]), expected)


def test_what_coco_may_leave_out(tmp_path: Path) -> None:
    loose = [{"image_id": 0, "category_id": 1, **GOOD, "area": None, "iscrowd": None} for _ in range(2)]
    found = open_objects(coco_set(tmp_path, annotations=loose))
    assert [one.area for one in found.pictures[0].instances] == [100, 100, 100]  # no id is no id that occurs twice


IMAGES: dict[str, tuple[dict[str, list[Any]], str, int]] = {
    "no file name": ({"images": [{"id": 5, "file_name": None}]}, "image 5: None is no file name", 2),
    "no id": ({"images": [{"file_name": "a.jpg"}]}, "image at place 3: no id", 2),
    "file of another": ({"images": [{"id": 5, "file_name": "a.jpg"}]}, "is image 0 already", 2),
    "size of text": (
        {"images": [{"id": 5, "file_name": "c.jpg", "width": 40, "height": "30"}]},
        "40 × 30 pixels, not 40 × '30'",
        2,
    ),
    "transposed": (
        {"images": [{"id": 5, "file_name": "c.jpg", "width": 30, "height": 40}]},
        "40 × 30 pixels, not 30 × 40",
        2,
    ),
    "category without a name": ({"categories": [{"id": 2, "name": None}]}, "category 2: None is no name", 2),
    "categories of one name": ({"categories": [{"id": 2, "name": "cell"}]}, "a second category called 'cell'", 2),
}


@pytest.mark.parametrize("case", list(IMAGES))
def test_images_and_categories_of_coco(case: str, tmp_path: Path) -> None:
    changes, expected, kept = IMAGES[case]
    picture(tmp_path / "images" / "c.jpg")
    usable(coco_set(tmp_path, **changes), expected, kept)


def test_ids_of_text_and_numbers(tmp_path: Path) -> None:
    coco_set(tmp_path, categories=[{"id": "x", "name": "cat"}, {"id": 0, "name": "dog"}])
    assert open_objects(tmp_path).classes == ("dog", "cell", "cat")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('"images"', "holds str, not a dict"),
        ('{"images": null, "annotations": []}', "no list of images and no list of categories"),
    ],
)
def test_a_json_file_of_something_else(content: str, expected: str, tmp_path: Path) -> None:
    (coco_set(tmp_path) / "train.json").write_text(content)
    with pytest.raises(MetamixerError, match=expected):
        open_objects(tmp_path)
    assert expected in find_problems(tmp_path)[0].what


def test_the_validation_part_never_stands_in_for_the_training_part(tmp_path: Path) -> None:
    (coco_set(tmp_path) / "train.json").write_text("5")
    with pytest.raises(MetamixerError, match="no split 'train'"):
        open_objects(tmp_path)


def voc_object(name: str | None = "dog", box: tuple[int, ...] = (2, 2, 9, 9)) -> str:
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>{'' if name is None else f'<name>{name}</name>'}<bndbox>{sides}</bndbox></object>"


def voc_file(root: Path, split: str, name: str, more: str = "", size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    picture(root / split / f"{name}.jpg")
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    (root / split / f"{name}.xml").write_text(f"<annotation>{stated}{voc_object()}{more}</annotation>")


@pytest.mark.parametrize(
    ("more", "size", "expected", "kept"),
    [
        (voc_object(None, (3, 3, 8, 8)), (WIDTH, HEIGHT), "object 2: an object without a name", 2),
        (voc_object(), (WIDTH, HEIGHT), "object 2: the same as object 1", 2),
        (voc_object(" dog "), (WIDTH, HEIGHT), "object 2: the same as object 1", 2),
        ("", (HEIGHT, WIDTH), "40 × 30 pixels, not 30 × 40", 1),
    ],
)
def test_voc(more: str, size: tuple[int, int], expected: str, kept: int, tmp_path: Path) -> None:
    voc_file(tmp_path, "train", "a")
    voc_file(tmp_path, "val", "a")
    voc_file(tmp_path, "train", "b", more, size)
    usable(tmp_path, expected, kept)
    assert open_objects(tmp_path, policy="drop").classes == ("dog",)


def yolo_set(root: Path, yaml: str = "train: images/train\nval: images/val\nnames: [bolt, nut]\n") -> Path:
    for split in ("train", "val"):
        for name in ("a", "b"):
            picture(root / "images" / split / f"{name}.jpg")
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text(yaml)
    return root


def test_a_yolo_polygon_of_nan(tmp_path: Path) -> None:
    labels = yolo_set(tmp_path) / "labels" / "train" / "a.txt"
    labels.write_text("0 .1 .1 .5 nan .9 .9 .2 .8\n")
    usable(tmp_path, "line 1: a polygon with a coordinate that is no number", kept=1)


def test_a_yolo_label_file_without_its_picture(tmp_path: Path) -> None:
    folder = yolo_set(tmp_path) / "labels" / "train"
    (folder / "classes.txt").write_text("bolt\nnut\n")  # as labelling tools leave it there
    (folder / "ghost.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    usable(tmp_path, "ghost.txt: a label file without its picture")


def test_a_yolo_list_of_some_pictures_leaves_the_labels_of_others_alone(tmp_path: Path) -> None:
    yolo_set(tmp_path, "train: train.txt\nval: [images/val]\nnames: [bolt, nut]\n")
    (tmp_path / "train.txt").write_text("images/train/a.jpg\n")
    assert len(open_objects(tmp_path).pictures) == 1
    assert find_problems(tmp_path) == []


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("train: ../elsewhere/train\nnames: [bolt, nut]\n", "states train: ../elsewhere/train, where there are no"),
        ("train: 5\nnames: [bolt, nut]\n", "states train: 5, where there are no pictures"),
        ("names: [bolt, bolt]\n", "names the class 'bolt' twice"),
        ("names: {0: bolt, 2: nut}\n", "needs 'names'"),
    ],
)
def test_a_yolo_file_that_misleads(yaml: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match=expected):
        open_objects(yolo_set(tmp_path, yaml))


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_pictures_that_end_too_early_are_found_before_training(ending: str, tmp_path: Path) -> None:
    coco_set(tmp_path)
    cut(picture(tmp_path / "images" / f"c.{ending}"))
    write_coco(tmp_path, ["a.jpg", "b.jpg", f"c.{ending}"])
    usable(tmp_path, f"c.{ending}: cannot be read as a picture")


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif"])
def test_a_picture_is_usable_where_training_can_read_it(ending: str, tmp_path: Path) -> None:
    sound = picture(tmp_path / f"sound.{ending}").read_bytes()
    rng = np.random.default_rng(0)
    for i in range(20):
        data = bytearray(sound)
        if i % 2:
            data = data[: rng.integers(len(data))]
        else:
            data[rng.integers(len(data))] ^= 0xFF
        file = tmp_path / f"{i}.{ending}"
        file.write_bytes(data)
        try:
            read = read_picture(file).size
        except MetamixerError:
            read = None
        seen = look_at(file)
        assert (None if isinstance(seen, str) else seen.size[::-1]) == read


def test_an_unchanged_picture_is_read_once(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png")
    assert look_at(file) is look_at(file)
    cut(file)
    assert "cannot be read" in str(look_at(file))


def test_the_size_that_annotations_were_made_for(tmp_path: Path) -> None:
    """An orientation tag may have been read by who annotated, or not; another size is a fault."""
    seen = look_at(picture(tmp_path / "turned.jpg", turned=True))
    assert not isinstance(seen, str)
    assert seen.stated(WIDTH, HEIGHT) == (WIDTH, HEIGHT)
    assert seen.stated(HEIGHT, WIDTH) == (HEIGHT, WIDTH)
    assert seen.stated(None, None) == (WIDTH, HEIGHT)  # upright
    assert seen.stated(9, 9) is None
    voc_file(tmp_path, "val", "a")
    voc_file(tmp_path, "train", "a")
    picture(tmp_path / "train" / "a.jpg", turned=True)
    [found] = open_objects(tmp_path).pictures
    assert found.size == SIZE  # as the file of annotations says
    assert read_annotated(found.file, found.size).size == (WIDTH, HEIGHT)


def test_problems_are_counted_by_kind_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{i}.jpg" for i in range(10)]
    for name in names[:8]:
        picture(tmp_path / "images" / name)
    write_coco(tmp_path, names, "all", annotations=[{"id": 99, "image_id": 77}])
    expected = r"3 bad entries \(2 × missing or broken picture, 1 × unknown picture\)"
    with pytest.raises(MetamixerError, match=expected):
        open_objects_to_train(tmp_path)
    caplog.clear()
    train, val = open_objects_to_train(tmp_path, policy="drop")
    assert [one.file.name for one in val.pictures] == ["4.jpg"]
    assert len(train.pictures) == 7
    assert caplog.text.count("8.jpg: no such file") == 1
    assert open_objects(tmp_path, "train", policy="drop") == train
    assert open_objects(tmp_path, "val", policy="drop") == val
    assert len(find_problems(tmp_path)) == 3


def test_the_test_part_never_chooses_the_best_epoch(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(5)]
    for name in [*names, "t.jpg"]:
        picture(tmp_path / "images" / name)
    write_coco(tmp_path, names)
    write_coco(tmp_path, ["t.jpg"], "test")
    parts = [[one.file.name for one in open_objects(tmp_path, split).pictures] for split in ("train", "val", "test")]
    assert parts == [names[:4], names[4:], ["t.jpg"]]


def test_problems_outlive_a_hopeless_split(tmp_path: Path) -> None:
    coco_set(tmp_path, annotations=[{"id": 9, "image_id": 77}])
    (tmp_path / "val.json").write_text('{"images": [')
    (tmp_path / "test.json").write_text('{"images": [], "annotations": [], "categories": []}')
    said = [str(problem) for problem in find_problems(tmp_path)]
    assert len(said) == 3
    for text, expected in zip(
        said, ("image 77 is unknown", "cannot be read as JSON", "no usable picture"), strict=True
    ):
        assert expected in text


def test_compressed_codes_are_decoded_as_the_rasteriser_does() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 1.0):
        code = code_to_json(to_code(rng.random(SIZE) < share, SIZE))
        assert fault_of_mask(code, SIZE) is None
        for other in (code["counts"] + "1", code["counts"][:-1]):  # another sum, or an end in the middle
            assert fault_of_mask({**code, "counts": other}, SIZE) is not None
    large = np.zeros((700, 900), bool)
    large[100:650, 50:60] = large[3:4, 300:] = True
    assert fault_of_mask(code_to_json(to_code(large, large.shape)), large.shape) is None


# Class maps


def write_map(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file)


def labels(*values: int) -> np.ndarray:
    """Stripes of these labels."""
    return np.repeat(np.array(values, np.uint8), WIDTH // len(values))[None].repeat(HEIGHT, 0)


def map_set(root: Path, values: np.ndarray, count: int = 3, splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        for i in range(count):
            picture(root / split / "images" / f"{i}.jpg")
            write_map(root / split / "masks" / f"{i}.png", values)
    return root


def transposed(root: Path) -> None:
    write_map(root / "train" / "masks" / "1.png", np.ascontiguousarray(labels(0, 1).T))


def truncated(root: Path) -> None:
    cut(root / "train" / "images" / "1.jpg")


def negative(root: Path) -> None:
    file = root / "train" / "masks" / "1.png"
    file.unlink()
    write_map(file.with_suffix(".tif"), labels(0, 1).astype(np.int32) - 1)


def halved(root: Path) -> None:
    file = root / "train" / "masks" / "1.png"
    file.unlink()
    write_map(file.with_suffix(".tif"), labels(0, 1).astype(np.float32) / 2)


def transparent(root: Path) -> None:
    Image.fromarray(labels(0, 1)).convert("LA").save(root / "train" / "masks" / "1.png")


def twins(root: Path) -> None:
    picture(root / "train" / "images" / "1.png")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (transposed, "a mask of 30 × 40 pixels on a picture of 40 × 30"),
        (truncated, "cannot be read as a picture"),
        (negative, "the label -1"),
        (halved, "whole numbers"),
        (transparent, "is coloured"),
        (twins, "the same name as"),
    ],
)
def test_class_maps(spoil: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    spoil(map_set(tmp_path, labels(0, 1)))
    with pytest.raises(MetamixerError, match=expected):
        open_class_maps(tmp_path)
    found = open_class_maps(tmp_path, policy="drop")
    assert len(found.problems) == 1
    assert len(found.pairs) == (3 if spoil is twins else 2)
    for file, values in found.pairs:
        read_annotated(file, read_class_map(values, found).shape)
    [problem] = find_problems(tmp_path)
    assert expected in problem.what


def test_a_turned_picture_with_the_class_map_of_its_file(tmp_path: Path) -> None:
    map_set(tmp_path, labels(0, 1))
    picture(tmp_path / "train" / "images" / "1.jpg", turned=True)
    assert len(open_class_maps(tmp_path).pairs) == 3


def test_a_foreground_of_255_is_no_class(tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match="'0' is the only class, and two are needed; 255 is void"):
        open_class_maps(map_set(tmp_path, labels(0, 255)))


def test_classes_that_never_occur_are_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    map_set(tmp_path, labels(0, 1))
    write_map(tmp_path / "train" / "masks" / "1.png", labels(0, 200))
    assert len(open_class_maps(tmp_path).classes) == 201
    assert "198 of 201 classes never occur (2, 3, 4, 5, 6 …)" in caplog.text


def test_colours_that_are_in_no_table_are_named(tmp_path: Path) -> None:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    map_set(tmp_path, colours[labels(0, 1)])
    write_map(tmp_path / "train" / "masks" / "1.png", colours[labels(0, 2)])
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nground,0,0,0\nred,255,0,0\n")
    [problem] = find_problems(tmp_path)
    assert problem.what == "holds colours that are not in class_dict.csv: 0, 0, 255"
    assert len(open_class_maps(tmp_path, policy="drop").pairs) == 2
    transparent(tmp_path)
    assert find_problems(tmp_path)[0].what.startswith("is grey with transparency")


@pytest.mark.parametrize("count", [3, 4])
def test_too_few_pictures_to_set_some_aside(count: int, tmp_path: Path) -> None:
    map_set(tmp_path / "maps", labels(0, 1), count, ("train",))
    for name in map(str, range(count)):
        picture(tmp_path / "coco" / f"{name}.jpg")
    write_coco(tmp_path / "coco", [f"{i}.jpg" for i in range(count)])
    expected = f"{count} usable pictures, too few to set some aside"
    for open_both in (open_class_maps_to_train, open_objects_to_train):
        with pytest.raises(MetamixerError, match=expected):
            open_both(tmp_path / ("maps" if open_both is open_class_maps_to_train else "coco"))


def test_class_maps_are_divided_once(tmp_path: Path) -> None:
    map_set(tmp_path, labels(0, 1), 6, ("train", "test"))
    train, val = open_class_maps_to_train(tmp_path)
    assert (len(train.pairs), len(val.pairs)) == (5, 1)
    assert open_class_maps(tmp_path, "train") == train
    assert open_class_maps(tmp_path, "val") == val
    assert len(open_class_maps(tmp_path, "test").pairs) == 6


def test_voc_lists_name_pictures_of_any_ending(tmp_path: Path) -> None:
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, ending in (("train", "png"), ("val", "jpg")):
        picture(tmp_path / "JPEGImages" / f"{split}.{ending}")
        write_map(tmp_path / "SegmentationClass" / f"{split}.png", labels(0, 1))
        (lists / f"{split}.txt").write_text(f"{split}\n")
    train, val = open_class_maps_to_train(tmp_path)
    assert [pair[0].name for pair in (*train.pairs, *val.pairs)] == ["train.png", "val.jpg"]
