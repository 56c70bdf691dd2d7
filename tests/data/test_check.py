"""The look through a folder of pictures finds what is wrong with it, and only that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metamixer.cli import main
from metamixer.data.check import check_folder
from metamixer.errors import MetamixerError

NOT_FINDINGS = {"folder", "counts", "sizes", "shortest", "longest", "bytes"}


def save(path: Path, seed: int, size: tuple[int, int] = (24, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    seed = 0
    for split, count in {"train": 4, "val": 2}.items():
        for kind in ("cat", "dog"):
            for i in range(count):
                save(tmp_path / "set" / split / kind / f"{i}.png", seed := seed + 1)
    return tmp_path / "set"


def findings(folder: Path) -> dict[str, object]:
    """Everything but the figures that is not empty."""
    report = check_folder(folder)
    found = {name: value for name, value in vars(report).items() if name not in NOT_FINDINGS and value}
    assert report.ok == (not found.keys() & report.PROBLEMS.keys())
    assert found.keys() <= report.PROBLEMS.keys() | report.NOTES.keys()
    return found


def test_a_sound_folder(folder: Path) -> None:
    save(folder / "train" / "cat" / "deep" / "wide.png", 99, (40, 16))
    assert findings(folder) == {}
    report = check_folder(folder)
    assert report.counts == {"train": {"cat": 5, "dog": 4}, "val": {"cat": 2, "dog": 2}}
    assert report.sizes == {"24 × 20": 12, "40 × 16": 1}
    assert (report.shortest, report.longest) == (16, 40)
    assert report.bytes == sum(path.stat().st_size for path in folder.rglob("*.png"))


def test_a_folder_without_splits(folder: Path) -> None:
    report = check_folder(folder / "train")
    assert report.counts == {"": {"cat": 4, "dog": 4}}
    assert report.ok


def test_workers_see_the_same(folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").write_text("no picture")
    assert check_folder(folder, workers=2) == check_folder(folder)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_and_other_corrupt_pictures(folder: Path, suffix: str) -> None:
    cut = save(folder / "train" / "cat" / f"cut.{suffix}", 50, (64, 64))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "val" / "dog" / "text.jpg").write_text("no picture")
    (folder / "val" / "dog" / "empty.jpg").touch()
    found = findings(folder)
    assert found.keys() == {"corrupt"}
    assert [str(line).split()[0] for line in found["corrupt"]] == [
        f"train/cat/cut.{suffix}",
        "val/dog/empty.jpg",
        "val/dog/text.jpg",
    ]


def test_copies_within_a_class_are_noted(folder: Path) -> None:
    cats = folder / "train" / "cat"
    shutil.copy(cats / "0.png", cats / "copy.png")
    Image.open(cats / "1.png").save(cats / "again.bmp")
    assert findings(folder) == {
        "same_bytes": [("train/cat/0.png", "train/cat/copy.png")],
        "same_pixels": [("train/cat/1.png", "train/cat/again.bmp")],
    }


def test_the_same_picture_in_two_splits(folder: Path) -> None:
    Image.open(folder / "train" / "cat" / "0.png").save(folder / "val" / "cat" / "leak.bmp")
    assert findings(folder) == {"leaks": [("train/cat/0.png", "val/cat/leak.bmp")]}


def test_the_same_picture_in_two_classes(folder: Path) -> None:
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "train" / "dog" / "cat.png")
    assert findings(folder) == {"contradictions": [("train/cat/0.png", "train/dog/cat.png")]}


def test_classes_that_do_not_fit(folder: Path) -> None:
    (folder / "train" / "empty").mkdir()
    save(folder / "val" / "bird" / "0.png", 60)
    save(folder / "train" / "Dog" / "0.png", 61)
    assert findings(folder) == {
        "empty_classes": ["train/empty"],
        "unknown_classes": ["val/bird"],
        "similar_classes": [("Dog", "dog")],
    }


def test_a_single_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "dog")
    shutil.rmtree(folder / "val" / "dog")
    assert findings(folder) == {"too_few_classes": ["train"]}


def test_what_is_noted(folder: Path) -> None:
    for i in range(40):
        save(folder / "train" / "cat" / f"more{i}.png", 100 + i)
    save(folder / "val" / "cat" / "tiny.png", 62, (15, 200))
    (folder / "train" / "cat" / "notes.txt").touch()
    (folder / "train" / "cat" / ".hidden").touch()
    save(folder / "val" / "cat" / "TINY.png", 63)
    assert findings(folder) == {
        "imbalance": {"train": 11.0},
        "small": ["val/cat/tiny.png"],
        "not_pictures": ["train/cat/notes.txt"],
        "similar_files": [("val/cat/TINY.png", "val/cat/tiny.png")],
    }


def test_a_folder_with_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        save(tmp_path / "images" / split / "a.png", 0)
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    assert check_folder(tmp_path).ok
    assert check_folder(tmp_path).sizes == {"24 × 20": 2}
    (tmp_path / "labels" / "val" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n")
    (tmp_path / "images" / "train" / "b.png").write_text("no picture")
    found = findings(tmp_path)
    assert found.keys() == {"corrupt", "annotations"}
    [problem] = [line for line in check_folder(tmp_path).annotations if "a.txt" in line]
    assert "line 2" in problem
    assert main(["data", "check", str(tmp_path), "--workers", "0"]) == 1
    assert "problem: bad annotations: " in capsys.readouterr().out


def test_a_folder_with_annotations_in_two_formats(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save(tmp_path / "images" / split / "a.png", 0)
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
        listed = {"file_name": f"{split}/a.png", "id": 1, "width": 24, "height": 20}
        coco = {"images": [listed], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(coco))
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    assert findings(tmp_path).keys() == {"annotations"}  # and none of classes, which the folder has not got
    [problem] = check_folder(tmp_path).annotations
    assert "more than one format (coco and yolo)" in problem
    assert check_folder(tmp_path).sizes == {"24 × 20": 2}


def test_what_is_no_folder_of_classes(tmp_path: Path) -> None:
    with pytest.raises(MetamixerError, match="no such folder"):
        check_folder(tmp_path / "none")
    save(tmp_path / "a.png", 0)
    with pytest.raises(MetamixerError, match="holds no class folders"):
        check_folder(tmp_path)


def test_the_command_and_its_exit_code(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "check", str(folder), "--workers", "0", "--json", str(tmp_path / "report.json")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "2 classes" in shown
    assert "nothing would stop or spoil a training" in shown
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is True
    (folder / "train" / "cat" / "0.png").write_text("no picture")
    assert main(arguments) == 1
    assert "problem: corrupt pictures: 1\n  train/cat/0.png cannot be read" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"] is False
    assert report["counts"]["train"] == {"cat": 3, "dog": 4}
    assert main(["data", "check", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"metamixer: {tmp_path / 'none'}: no such folder\n"
