"""One result type: what it refuses, its forms in other tools and back, and its drawing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamixer import MetamixerError
from metamixer.tasks.gallery import Case, write_gallery
from metamixer.tasks.results import Result

SIZE = (60, 80)
CLASSES = ("cat", "dog", "naïve bird")


def some_objects() -> Result:
    boxes = np.array([[5, 6, 40, 50], [30, 10, 79, 58]], np.float32)
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 6:50, 5:40] = True
    masks[1, 10:58, 30:79] = True
    picture = Image.new("RGB", (SIZE[1], SIZE[0]), (120, 130, 140))
    scores = np.array([0.9, 0.4], np.float32)
    return Result(SIZE, np.array([2, 0]), scores, boxes, masks, classes=CLASSES, picture=picture, source="a.jpg")


def some_classes() -> Result:
    labels = np.zeros(SIZE, np.uint8)
    labels[:, 40:] = 2
    labels[:6] = 255
    picture = Image.new("RGB", (SIZE[1], SIZE[0]), "grey")
    return Result(SIZE, class_map=labels, classes=CLASSES, picture=picture)


def same(one: Result, other: Result) -> None:
    assert one.size == other.size
    assert np.array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)


def test_words_and_numbers() -> None:
    result = some_objects()
    assert result.names == ("naïve bird", "cat")
    assert len(result.above(0.5)) == 1
    assert result.above(0.5).masks.shape == (1, *SIZE)
    said = json.loads(json.dumps(result.to_dict()))
    assert said["objects"][0]["label"] == "naïve bird"
    shares = some_classes().shares()
    assert shares == pytest.approx({"cat": 0.45, "naïve bird": 0.45, "void": 0.1})


def test_supervision_and_back() -> None:
    result = some_objects()
    detections = result.to_supervision()
    assert list(detections["class_name"]) == list(result.names)
    back = Result.from_supervision(detections, SIZE, CLASSES)
    same(result, back)
    assert np.array_equal(result.masks, back.masks)
    areas = some_classes().to_supervision()
    assert areas.class_id.tolist() == [0, 2]
    assert areas.xyxy.tolist() == [[0, 6, 40, 60], [40, 6, 80, 60]]


def test_coco_and_back() -> None:
    result = some_objects()
    ids = (18, 5, 7)
    entries = json.loads(json.dumps(result.to_coco(42, ids)))
    assert entries[0]["category_id"] == 7
    assert entries[0]["bbox"] == [5, 6, 35, 44]
    back = Result.from_coco(entries, SIZE, ids, CLASSES)
    same(result, back)
    assert np.array_equal(result.masks, back.masks)
    with pytest.raises(MetamixerError, match="category 7 is unknown"):
        Result.from_coco(entries, SIZE, (18, 5))


def test_yolo_and_back() -> None:
    result = some_objects()
    lines = result.to_yolo()
    assert lines.splitlines()[0].startswith("2 0.281250 0.466667")
    same(result, Result.from_yolo(lines, SIZE, CLASSES))
    for bad in ("0 0.5 0.5 0.1\n", "0 a 0.5 0.1 0.1\n", "0.5 0.5 0.5 0.1 0.1\n", "nan 0.5 0.5 0.1 0.1\n"):
        with pytest.raises(MetamixerError, match="YOLO line"):
            Result.from_yolo(bad, SIZE)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"bbox": [1, 1, 5, 5]}, "entry 2 has no category"),
        ({"category_id": "x", "bbox": [1, 1, 5, 5]}, "entry 2 has no category"),
        ({"category_id": 1}, "box of four numbers"),
        ({"category_id": 1, "bbox": [1, 1]}, "box of four numbers"),
        ({"category_id": 1, "bbox": [1, 1, "x", 5]}, "box of four numbers"),
        ({"category_id": 0, "bbox": [1, 1, 5, 5]}, "class numbers, from 0"),
        ({"category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": [[1, 2]]}, "entry 2 has a polygon of 1 points"),
        ({"category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": "x"}, "entry 2 has a mask that is neither"),
    ],
)
def test_bad_coco_entries_are_named(entry: dict[str, object], expected: str) -> None:
    good = {"category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 6, 1, 6, 6]]}
    with pytest.raises(MetamixerError, match=expected):
        Result.from_coco([good, entry], SIZE)


def test_objects_are_put_in_the_order_of_their_scores() -> None:
    result = some_objects()
    turned = Result(SIZE, result.labels[::-1], result.scores[::-1], result.boxes[::-1], result.masks[::-1])
    same(result, turned)
    assert np.array_equal(result.masks, turned.masks)
    ties = Result(SIZE, np.array([2, 1, 0]), np.array([0.5, 0.5, 0.7]), np.repeat(result.boxes[:1], 3, axis=0))
    assert ties.labels.tolist() == [0, 2, 1]


def test_a_class_map_has_no_objects_to_write() -> None:
    for write in (some_classes().to_yolo, lambda: some_classes().to_coco(1)):
        with pytest.raises(MetamixerError, match="a class map has no objects"):
            write()


def test_png(tmp_path: Path) -> None:
    some_classes().to_png(tmp_path / "classes.png")
    with Image.open(tmp_path / "classes.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), some_classes().class_map)
    some_objects().to_png(tmp_path / "objects.png")
    with Image.open(tmp_path / "objects.png") as image:
        values = np.asarray(image)
    assert values[0, 0] == 0
    assert values[30, 35] == 1  # the surest is on top
    assert values[55, 70] == 2
    with pytest.raises(MetamixerError, match="only masks and class maps"):
        Result(SIZE).to_png(tmp_path / "no.png")


def test_unfit_results_are_refused() -> None:
    box = np.array([[1, 1, 9, 9]], np.float32)
    one, sure = np.array([0]), np.array([0.5])
    for expected, arguments in (
        ("as many boxes", {"labels": one, "scores": sure}),
        ("as many scores", {"labels": one, "boxes": box}),
        ("left, top, right, bottom", {"labels": one, "scores": sure, "boxes": box[:, ::-1]}),
        ("inside the picture", {"labels": one, "scores": sure, "boxes": box * 20}),
        ("finite", {"labels": one, "scores": sure, "boxes": box * np.nan}),
        ("0 to 1", {"labels": one, "scores": sure * 3, "boxes": box}),
        (
            "masks must be 1 × 60 × 80",
            {"labels": one, "scores": sure, "boxes": box, "masks": np.zeros((1, 5, 5), bool)},
        ),
        ("class numbers", {"labels": one + 3, "scores": sure, "boxes": box, "classes": CLASSES}),
        ("the class map must be 60 × 80", {"class_map": np.zeros((5, 5), np.uint8)}),
        ("class numbers", {"class_map": np.full(SIZE, 9, np.uint8), "classes": CLASSES}),
        ("the result's size", {"picture": Image.new("RGB", (5, 5))}),
        ("whole numbers", {"labels": one + 0.5, "scores": sure, "boxes": box}),
        ("from 0", {"labels": one - 1, "scores": sure, "boxes": box}),
        ("0 to 1", {"labels": one, "scores": sure * np.nan, "boxes": box}),
        ("whole numbers", {"class_map": np.zeros(SIZE, np.float32)}),
        ("from 0", {"class_map": np.full(SIZE, -1)}),
        ("below 255", {"class_map": np.full(SIZE, 300)}),
    ):
        with pytest.raises(MetamixerError, match=f"unfit result: .*{expected}"):
            Result(SIZE, **arguments)


def test_drawings_show_what_was_found() -> None:
    result = some_objects()
    drawn = result.draw()
    assert min(drawn.size) >= 320  # small pictures are enlarged, or text would cover them
    plain = np.asarray(result.picture.resize(drawn.size)).astype(int)
    changed = np.abs(np.asarray(drawn).astype(int) - plain).sum(2) > 30
    scale = drawn.width // SIZE[1]
    assert changed[30 * scale, 20 * scale]  # inside a mask
    assert not changed[-2:, : 5 * scale].any()  # outside everything
    names_alone = np.abs(np.asarray(result.draw(scores=False)).astype(int) - plain).sum(2) > 30
    assert names_alone[30 * scale, 20 * scale]
    assert names_alone.sum() < changed.sum()  # shorter labels
    assert np.array_equal(
        np.asarray(Result(SIZE, picture=result.picture).draw().resize((80, 60)))[0, 0], (120, 130, 140)
    )
    areas = some_classes().draw()
    assert areas.width > areas.height * 80 / 60  # the legend is beside the picture
    pixels = np.asarray(areas)
    assert not np.array_equal(pixels[200, 100], pixels[200, 300])
    with pytest.raises(MetamixerError, match="no picture to draw on"):
        Result(SIZE).draw()


def test_the_gallery_needs_nothing_beside_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 20))
    cases = [Case("good.jpg", 0.9, picture, picture), Case("<bad>.jpg", 0.1, picture, picture)]
    write_gallery(tmp_path / "page.html", cases, "set & split", "mIoU", 7, best=1)
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http" not in page
    assert page.index("Best") < page.index("0.900") < page.index("Worst") < page.index("0.100")
    assert "&lt;bad&gt;.jpg" in page
    assert "set &amp; split" in page
