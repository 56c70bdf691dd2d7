"""Public data sets: from a server on this machine to class folders."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metamixer.cli import main
from metamixer.data import fetch as module
from metamixer.data.fetch import fetch
from metamixer.data.image_folder import ImageFolder
from metamixer.data.public_sets import PUBLIC_SETS, Archive
from metamixer.errors import MetamixerError


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def tgz(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


@pytest.fixture
def offer(server: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put archives on the server and point a data set's entry at them, with their own digests and these counts."""

    def offered(name: str, *contents: bytes, counts: tuple[int, int] | None) -> None:
        public, archives = PUBLIC_SETS[name], []
        for archive, data in zip(public.archives, contents, strict=True):
            server.files[archive.file_name] = data
            digest = hashlib.sha256(data).hexdigest()
            archives.append(Archive(server.url(archive.file_name), len(data), "this test", sha256=digest))
        entry = replace(public, archives=tuple(archives), counts=counts)
        monkeypatch.setitem(module.PUBLIC_SETS, name, entry)

    return offered


def listing(folder: Path) -> dict[str, list[str]]:
    return {
        f"{split.name}/{kind.name}": sorted(file.name for file in kind.iterdir())
        for split in sorted(folder.iterdir())
        if split.is_dir()
        for kind in sorted(split.iterdir())
    }


def test_every_entry_is_complete() -> None:
    for public in PUBLIC_SETS.values():
        assert public.page.startswith("http")
        for archive in public.archives:
            assert archive.url.startswith("http")
            assert archive.size > 10**7
            assert re.fullmatch("[0-9a-f]{64}", archive.sha256 or "") or re.fullmatch("[0-9a-f]{32}", archive.md5 or "")


def test_flowers_are_split_by_their_contents(offer: Any, tmp_path: Path, cache: Path) -> None:
    photographs = {f"flower_photos/{kind}/{i}.jpg": jpeg(i % 40) for kind in ("roses", "tulips") for i in range(60)}
    offer("flowers", tgz({"flower_photos/LICENSE.txt": b"CC-BY", **photographs}), counts=None)
    result = fetch("flowers", tmp_path / "flowers")
    assert (result.train, result.val) == (
        sum(len(files) for place, files in listing(result.folder).items() if place.startswith("train")),
        sum(len(files) for place, files in listing(result.folder).items() if place.startswith("val")),
    )
    assert result.train + result.val == 120
    assert 0.1 < result.val / 120 < 0.35
    # Pictures 40 to 59 are copies of 0 to 19: no picture is on both sides.
    sides = {
        split: {file.read_bytes() for file in (result.folder / split).rglob("*.jpg")} for split in ("train", "val")
    }
    assert not sides["train"] & sides["val"]
    assert not list(cache.rglob("*.tgz"))


@pytest.mark.parametrize(("name", "label_bytes"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_becomes_lossless_pictures(offer: Any, tmp_path: Path, name: str, label_bytes: int) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 3, 32, 32), np.uint8)
    labels = [1, 0, 1, 0, 1, 0]
    records = [bytes([9] * (label_bytes - 1) + [label]) + x.tobytes() for label, x in zip(labels, pixels, strict=True)]
    names_file = {1: "batches.meta.txt", 2: "fine_label_names.txt"}[label_bytes]
    training = {1: "data_batch_1.bin", 2: "train.bin"}[label_bytes]
    test = {1: "test_batch.bin", 2: "test.bin"}[label_bytes]
    members = {training: b"".join(records[:4]), test: b"".join(records[4:]), names_file: b"apple\naquarium_fish\n\n"}
    offer(name, tgz({f"cifar/{member}": data for member, data in members.items()}), counts=(4, 2))
    folder = fetch(name, tmp_path / name).folder
    assert listing(folder) == {
        "train/apple": ["00001.png", "00003.png"],
        "train/aquarium_fish": ["00000.png", "00002.png"],
        "val/apple": ["00001.png"],
        "val/aquarium_fish": ["00000.png"],
    }
    read = np.asarray(Image.open(folder / "val" / "apple" / "00001.png"))
    np.testing.assert_array_equal(read, pixels[5].transpose(1, 2, 0))


def test_tiny_imagenet_takes_val_from_its_table(offer: Any, tmp_path: Path) -> None:
    root = "tiny-imagenet-200"
    files = {
        f"{root}/train/n01/images/n01_0.JPEG": jpeg(0),
        f"{root}/train/n02/images/n02_0.JPEG": jpeg(1),
        f"{root}/train/n01/n01_boxes.txt": b"",
        f"{root}/val/images/val_0.JPEG": jpeg(2),
        f"{root}/val/images/val_1.JPEG": jpeg(3),
        f"{root}/val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n",
        f"{root}/test/images/test_0.JPEG": jpeg(4),
    }
    offer("tiny-imagenet", zipped(files), counts=(2, 2))
    folder = fetch("tiny-imagenet", tmp_path / "tiny").folder
    assert listing(folder) == {
        "train/n01": ["n01_0.JPEG"],
        "train/n02": ["n02_0.JPEG"],
        "val/n01": ["val_1.JPEG"],
        "val/n02": ["val_0.JPEG"],
    }
    assert (folder / "val" / "n02" / "val_0.JPEG").read_bytes() == jpeg(2)


def test_imagenette_gets_names(offer: Any, tmp_path: Path) -> None:
    files = {
        "imagenette2-160/train/n01440764/a.JPEG": jpeg(0),
        "imagenette2-160/train/n03425413/b.JPEG": jpeg(1),
        "imagenette2-160/val/n01440764/c.JPEG": jpeg(2),
        "imagenette2-160/noisy_imagenette.csv": b"",
    }
    offer("imagenette-160", tgz(files), counts=(2, 1))
    folder = fetch("imagenette-160", tmp_path / "nette").folder
    assert listing(folder) == {"train/gas_pump": ["b.JPEG"], "train/tench": ["a.JPEG"], "val/tench": ["c.JPEG"]}


def test_pets_follow_their_lists(offer: Any, tmp_path: Path) -> None:
    images = {f"images/{name}.jpg": jpeg(i) for i, name in enumerate(("Abyssinian_1", "great_pyrenees_2", "pug_3"))}
    lists = {
        "annotations/trainval.txt": b"Abyssinian_1 1 1 1\ngreat_pyrenees_2 2 2 1\n",
        "annotations/test.txt": b"pug_3 3 2 2\n",
        "annotations/list.txt": b"#comment\n",
    }
    offer("pets", tgz({**images, "images/Abyssinian_1.mat": b""}), tgz(lists), counts=(2, 1))
    folder = fetch("pets", tmp_path / "pets").folder
    assert listing(folder) == {
        "train/abyssinian": ["Abyssinian_1.jpg"],
        "train/great_pyrenees": ["great_pyrenees_2.jpg"],
        "val/pug": ["pug_3.jpg"],
    }


PETTY = {f"flower_photos/{kind}/{i}.jpg": jpeg(i) for kind in ("roses", "tulips") for i in range(30)}


def test_a_set_that_is_there_is_not_fetched_again(offer: Any, server: Any, tmp_path: Path, cache: Path) -> None:
    offer("flowers", tgz(PETTY), counts=None)
    first = fetch("flowers", tmp_path / "a", keep_archives=True)
    assert not first.was_there
    assert (cache / "archives" / "flower_photos.tgz").is_file()
    assert fetch("flowers", tmp_path / "a").was_there
    assert fetch("flowers", tmp_path / "b").train == first.train  # from the kept archive
    assert len(server.requests) == 1
    record = json.loads((tmp_path / "a" / "source.json").read_text())
    assert record["train"] == first.train
    assert record["archives"][0]["url"] == server.url("flower_photos.tgz")
    assert ImageFolder(tmp_path / "a" / "train").classes == ["roses", "tulips"]


def test_a_folder_of_something_else_is_left_alone(offer: Any, server: Any, tmp_path: Path) -> None:
    offer("flowers", tgz(PETTY), counts=None)
    (tmp_path / "flowers").mkdir()
    (tmp_path / "flowers" / "mine.txt").touch()
    with pytest.raises(MetamixerError, match="is there already, and not as"):
        fetch("flowers", tmp_path / "flowers")
    assert server.requests == []


def test_a_broken_download_is_gone_on_with(offer: Any, server: Any, tmp_path: Path) -> None:
    offer("flowers", tgz(PETTY), counts=None)
    server.breaks = 1
    assert fetch("flowers", tmp_path / "flowers").train
    assert server.requests[0] is None
    assert server.requests[1].startswith("bytes=")


@pytest.mark.parametrize("ranges", [True, False])
def test_another_file_than_the_published_one_is_refused(
    offer: Any, server: Any, tmp_path: Path, cache: Path, ranges: bool
) -> None:
    offer("flowers", tgz(PETTY), counts=None)
    server.ranges = ranges
    data = server.files["flower_photos.tgz"]
    server.files["flower_photos.tgz"] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(MetamixerError, match=r"has the SHA-256 .* and was deleted"):
        fetch("flowers", tmp_path / "flowers")
    server.files["flower_photos.tgz"] = data[:-10]
    with pytest.raises(MetamixerError, match=r"has \d+ bytes instead of \d+ and was deleted"):
        fetch("flowers", tmp_path / "flowers")
    assert not (tmp_path / "flowers").exists()
    assert {path.name for path in (cache / "archives").iterdir()} <= {"flower_photos.tgz.lock"}  # Unix keeps the lock


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({**PETTY, "flower_photos/roses/../../../evil.jpg": jpeg(0)}, "would be written elsewhere"),
        ({**PETTY, "./flower_photos/roses/0.jpg": jpeg(0)}, "File exists"),
        ({"flower_photos/roses/0.jpg": jpeg(0)}, "holds 1 . 0 pictures|holds 0 . 1 pictures"),
        ({"readme.txt": b"moved"}, "holds 0 . 0 pictures"),
    ],
)
def test_an_archive_that_does_not_fit_leaves_nothing(
    offer: Any, tmp_path: Path, files: dict[str, bytes], sentence: str
) -> None:
    offer("flowers", tgz(files), counts=None)
    with pytest.raises(MetamixerError, match=sentence):
        fetch("flowers", tmp_path / "sets" / "flowers")
    assert list((tmp_path / "sets").iterdir()) == []
    assert not list(tmp_path.rglob("evil*"))


def test_hostile_class_names_are_refused(offer: Any, tmp_path: Path) -> None:
    record = bytes([0]) + bytes(3072)
    files = {"c/data_batch_1.bin": record, "c/test_batch.bin": record, "c/batches.meta.txt": b"../../evil\n"}
    offer("cifar10", tgz(files), counts=(1, 1))
    with pytest.raises(MetamixerError, match="which no folder can be called"):
        fetch("cifar10", tmp_path / "cifar10")
    offer("cifar10", tgz({**files, "c/test_batch.bin": record[:-1]}), counts=(1, 1))
    with pytest.raises(MetamixerError):
        fetch("cifar10", tmp_path / "cifar10")
    assert not (tmp_path / "cifar10").exists()


def test_the_command(
    offer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("flowers", tgz(PETTY), counts=None)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "fetch", "flowers"]) == 0
    assert capsys.readouterr().out.startswith("data/flowers: ")
    assert (tmp_path / "data" / "flowers" / "train" / "roses").is_dir()
    assert main(["data", "fetch", "flowers"]) == 0
    assert capsys.readouterr().out == "data/flowers is there already\n"
    assert main(["data", "fetch"]) == 0
    assert all(name in capsys.readouterr().out for name in ("flowers",))
    assert main(["data", "fetch", "flower"]) == 1
    assert capsys.readouterr().err == "metamixer: unknown data set 'flower'; did you mean 'flowers'?\n"
