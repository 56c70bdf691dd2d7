"""One interface for folders, tar shards and Hugging Face data sets."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metamixer.data import download
from metamixer.data.image_folder import ImageFolder
from metamixer.data.memory import keep_in_memory
from metamixer.data.shards import ShardPictures, expand_ranges
from metamixer.data.source import PictureLoader, Pictures, is_test_name, open_pictures
from metamixer.data.transforms import pixels_of
from metamixer.errors import MetamixerError

CLASSES = ("blue", "red")


def encoded(kind: str, i: int, size: tuple[int, int] = (6, 5), form: str = "PNG") -> bytes:
    """A picture of one colour, told apart by its green."""
    file = io.BytesIO()
    Image.new("RGB", size, {"red": (200, i, 0), "blue": (0, i, 200)}[kind]).save(file, form)
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(number: int, label: str, form: str = "png") -> dict[str, bytes]:
    kind = CLASSES[number % 2]
    return {f"{number:04d}.{form}": encoded(kind, number), f"{number:04d}.cls": label.encode()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in {"train": 3, "validation": 1}.items():
        for kind in CLASSES:
            (tmp_path / "folder" / split / kind).mkdir(parents=True)
            for i in range(count):
                (tmp_path / "folder" / split / kind / f"{i}.png").write_bytes(encoded(kind, i))
    return tmp_path / "folder"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of three training pictures each and one of two validation pictures."""
    root = tmp_path / "shards"
    for shard in (0, 1):
        members = [sample(number, str(number % 2)) for number in range(3 * shard, 3 * shard + 3)]
        write_tar(root / f"train-{shard:03d}.tar", {name: data for member in members for name, data in member.items()})
    write_tar(root / "val-000.tar", {**sample(6, "0"), **sample(7, "1")})
    return root


def greens(pictures: Pictures) -> list[tuple[int, str]]:
    """The picture's number, and its class's name."""
    return [
        (picture.getpixel((0, 0))[1], pictures.classes[label])
        for picture, label in map(pictures.sample, range(len(pictures)))
    ]


# ---------------------------------------------------------------- folders


def test_folders_and_their_splits(folder: Path) -> None:
    train = open_pictures(folder, "train")
    assert isinstance(train, ImageFolder)
    assert greens(train) == [(i, kind) for kind in CLASSES for i in range(3)]
    assert list(train.labels) == [0, 0, 0, 1, 1, 1]
    assert train.name(4) == str(folder / "train" / "red" / "1.png")
    assert greens(open_pictures(folder, "val", classes=train.classes)) == [(0, "blue"), (0, "red")]
    assert greens(open_pictures(folder / "train")) == greens(train)


def test_a_missing_split_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    (folder / "validation").rename(folder / "other")
    with pytest.raises(MetamixerError, match="needs a folder named one of val, validation, test with"):
        open_pictures(folder, "val")
    with pytest.raises(MetamixerError, match="no such folder"):
        open_pictures(tmp_path / "none", "train")
    (tmp_path / "file.zip").touch()
    with pytest.raises(MetamixerError, match="is a file where a folder is needed"):
        open_pictures(tmp_path / "file.zip", "train")


# ---------------------------------------------------------------- unreadable pictures


@pytest.fixture
def damaged(folder: Path) -> Path:
    """The second picture of blue and the last of red cannot be read."""
    (folder / "train" / "blue" / "1.png").write_bytes(encoded("blue", 1)[:30])
    (folder / "train" / "red" / "2.png").write_text("no picture")
    return folder


def test_raise(damaged: Path) -> None:
    pictures = open_pictures(damaged, "train")
    assert pictures[0][1] == 0
    with pytest.raises(MetamixerError, match=r"blue/1\.png cannot be read"):
        pictures[1]


def test_skip_takes_the_next_and_notes_it(damaged: Path) -> None:
    pictures = open_pictures(damaged, "train", bad="skip")
    assert pictures.unreadable == []
    seen = [(picture.getpixel((0, 0))[1], label) for picture, label in map(pictures.__getitem__, range(6))]
    assert seen == [(0, 0), (2, 0), (2, 0), (0, 1), (1, 1), (0, 0)]
    names = [pictures.name(1), pictures.name(5)]
    assert pictures.unreadable == names


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_leaves_the_skipped_out(damaged: Path, workers: int) -> None:
    pictures = open_pictures(damaged, "train", bad="skip")
    pictures.transform = pixels_of
    batches: list[tuple[Tensor, Tensor]] = list(PictureLoader(pictures, 2, num_workers=workers))
    assert [len(labels) for _, labels in batches] == [1, 2, 1]
    assert torch.cat([pixels[:, 1, 0, 0] for pixels, _ in batches]).tolist() == [0, 2, 0, 1]
    assert pictures.unreadable == [pictures.name(1), pictures.name(5)]  # noted by the workers


def test_a_batch_of_skipped_pictures_alone_is_left_out(damaged: Path) -> None:
    pictures = open_pictures(damaged, "train", bad="skip")
    pictures.transform = pixels_of
    assert [len(labels) for _, labels in PictureLoader(pictures, 1)] == [1, 1, 1, 1]


def test_nothing_readable_to_skip_to(damaged: Path) -> None:
    for path in (damaged / "train").rglob("*.png"):
        path.write_text("no picture")
    with pytest.raises(MetamixerError, match="none of the 6 pictures can be read"):
        open_pictures(damaged, "train", bad="skip")[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_check_reads_all_before(damaged: Path, workers: int) -> None:
    with pytest.raises(MetamixerError, match=r"2 of 6 pictures cannot be read; the first: .*blue/1\.png"):
        open_pictures(damaged, "train", bad="check", workers=workers)
    assert len(open_pictures(damaged, "val", bad="check")) == 2


# ---------------------------------------------------------------- tar shards


def test_shards_of_a_folder(shards: Path) -> None:
    train = open_pictures(shards, "train")
    assert greens(train) == [(number, str(number % 2)) for number in range(6)]
    assert list(train.labels) == [0, 1, 0, 1, 0, 1]
    assert train.name(4) == f"{shards}/train-001.tar:0004.png"
    assert greens(open_pictures(shards, "val", classes=train.classes)) == [(6, "0"), (7, "1")]
    assert greens(open_pictures(f"{shards}/{{split}}-{{000..001}}.tar", "train")) == greens(train)
    assert greens(open_pictures(shards / "val-000.tar")) == [(6, "0"), (7, "1")]


def test_splits_may_be_folders_of_shards(shards: Path) -> None:
    for split in ("train", "val"):
        (shards / split).mkdir()
        for path in list(shards.glob(f"{split}-*.tar")):
            path.rename(shards / split / path.name.removeprefix(f"{split}-"))
    assert [number for number, _ in greens(open_pictures(shards, "train"))] == list(range(6))
    assert len(open_pictures(shards, "val")) == 2


def test_any_order_reads_the_same(shards: Path) -> None:
    train = open_pictures(shards, "train")
    for index in (5, 0, 3, 3, 1):
        assert train[index][0].getpixel((0, 0))[1] == index


def test_shards_in_worker_processes(shards: Path) -> None:
    train = open_pictures(shards, "train")
    train.transform = pixels_of
    loader = PictureLoader(train, 4, num_workers=2)
    assert torch.cat([pixels[:, 1, 0, 0] for pixels, _ in loader]).tolist() == list(range(6))


def test_class_names_beside_the_shards(shards: Path) -> None:
    (shards / "classes.txt").write_text("sea\nrose\n")
    assert open_pictures(shards, "train").classes == ["sea", "rose"]
    (shards / "classes.txt").write_text("sea\nrose\ngrass\n")
    with pytest.raises(MetamixerError, match="the class 'grass' has no pictures"):
        open_pictures(shards, "train")
    assert list(open_pictures(shards, "val", classes=["sea", "rose", "grass"]).labels) == [0, 1]
    (shards / "classes.txt").write_text("sea\n")
    with pytest.raises(MetamixerError, match="holds class 1, where 1 classes from 0 are known"):
        open_pictures(shards, "train")


def test_names_as_labels(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        {**sample(0, "cat"), **sample(1, "ant"), "2.png": encoded("red", 2), "2.json": b'{"label": "cat"}'},
    )
    pictures = open_pictures(path)
    assert greens(pictures) == [(0, "cat"), (1, "ant"), (2, "cat")]
    assert pictures.classes == ["ant", "cat"]
    assert list(open_pictures(path, classes=["cat", "dog", "ant"]).labels) == [0, 2, 0]
    with pytest.raises(MetamixerError, match="'ant' is none of the 2 known classes"):
        open_pictures(path, classes=["cat", "dog"])


def test_folders_in_the_tar_as_labels(tmp_path: Path) -> None:
    members = {
        "train/red/a.0.png": encoded("red", 1),
        "train/red/readme.md": b"",
        "train/blue/b.JPG": encoded("blue", 2, form="JPEG"),
    }
    pictures = open_pictures(write_tar(tmp_path / "a.tar", members))
    assert pictures.classes == ["blue", "red"]
    assert list(pictures.labels) == [1, 0]
    with pytest.raises(MetamixerError, match=r"a\.tar:0000 has neither a \.cls file"):
        open_pictures(write_tar(tmp_path / "a.tar", {"0000.png": encoded("red", 1)}))


def test_shards_that_webdataset_wrote(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            picture = np.full((5, 6, 3), number, np.uint8)
            writer.write({"__key__": f"sample{number}", "png": picture, "cls": number, "json": {"width": 6}})
    pictures = open_pictures(tmp_path / "a.tar")
    assert greens(pictures) == [(0, "0"), (1, "1"), (2, "2")]


def test_shards_that_cannot_be_used(tmp_path: Path, shards: Path) -> None:
    compressed = write_tar(tmp_path / "b.tar", sample(0, "0"), mode="w:gz")
    with pytest.raises(MetamixerError, match="cannot be read as an uncompressed tar file"):
        open_pictures(compressed)
    data = (shards / "train-000.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(data[:600])
    with pytest.raises(MetamixerError, match="cannot be read as an uncompressed tar file"):
        open_pictures(tmp_path / "c.tar")
    with pytest.raises(MetamixerError, match="no such file"):
        open_pictures(tmp_path / "none.tar")
    with pytest.raises(MetamixerError, match="holds no pictures"):
        open_pictures(write_tar(tmp_path / "d.tar", {"a.txt": b""}))
    with pytest.raises(MetamixerError, match="cannot be read as JSON"):
        open_pictures(write_tar(tmp_path / "e.tar", {"a.png": encoded("red", 0), "a.json": b"{"}))
    (shards / "val-000.tar").unlink()
    with pytest.raises(MetamixerError, match="none whose name begins with 'val'"):
        open_pictures(shards, "val")
    with pytest.raises(MetamixerError, match=r"must have \{split\}"):
        open_pictures(f"{shards}/train-{{000..001}}.tar", "train")


def test_a_damaged_picture_in_a_shard_is_named(tmp_path: Path) -> None:
    members = {**sample(0, "0"), "0001.jpg": encoded("red", 1, (64, 64), "JPEG")[:200], "0001.cls": b"1"}
    pictures = open_pictures(write_tar(tmp_path / "a.tar", members), bad="skip")
    with pytest.raises(MetamixerError, match=r"a\.tar:0001\.jpg cannot be read as a picture"):
        pictures.sample(1)
    assert pictures[1][1] == 0


def test_ranges() -> None:
    assert expand_ranges("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_ranges("{0..1}/{2..3}") == ["0/2", "0/3", "1/2", "1/3"]
    assert expand_ranges("a{1,2}.tar") == ["a{1,2}.tar"]


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_from_a_server_are_fetched_once(server: Any, cache: Path, shards: Path, ranges: bool) -> None:
    server.files = {f"set/{path.name}": path.read_bytes() for path in shards.iterdir()}
    server.ranges, server.breaks = ranges, 1 if ranges else 0
    address = server.url("set/{split}-{000..001}.tar")
    train = open_pictures(address, "train")
    assert [number for number, _ in greens(train)] == list(range(6))
    asked = len(server.requests)
    assert greens(open_pictures(address, "train")) == greens(train)
    assert len(server.requests) == asked
    with pytest.raises(MetamixerError, match=r"val-001\.tar answered 404"):
        open_pictures(address, "val")


def test_shards_through_fsspec(cache: Path, shards: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for path in shards.glob("train-*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    pictures = ShardPictures(["memory://bucket/train-000.tar"])
    assert [number for number, _ in greens(pictures)] == [0, 1, 2]
    (copy,) = cache.rglob("*.tar")
    # A copy that broke off is gone on with: what is there is kept, a changed byte of a picture included.
    data = bytearray(copy.read_bytes())
    data[550] ^= 1
    copy.with_name(f"{copy.name}.part").write_bytes(data[:700])
    copy.unlink()
    ShardPictures(["memory://bucket/train-000.tar"])
    assert copy.read_bytes() == data
    with pytest.raises(MetamixerError, match=r"memory://bucket/none\.tar: no such file"):
        ShardPictures(["memory://bucket/none.tar"])
    with pytest.raises(MetamixerError, match=r"nonsense://a/b\.tar could not be read"):
        ShardPictures(["nonsense://a/b.tar"])


def test_a_disk_that_fills_while_a_shard_is_copied(small_disk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("METAMIXER_CACHE", str(small_disk.path / "cache"))
    fsspec.filesystem("memory").pipe("/full/train-000.tar", bytes(2**22))
    small_disk.leave(300_000)
    with pytest.raises(MetamixerError, match=r"-000\.tar cannot be written \((No space left|File too large)"):
        ShardPictures(["memory://full/train-000.tar"])
    small_disk.free()
    assert not list((small_disk.path / "cache").rglob("*.part*"))


def test_a_copied_shard_is_on_the_disk_before_its_name(
    cache: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe("/synced/train-000.tar", (shards / "train-000.tar").read_bytes())
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(download, "sync", lambda path: synced.append((path.suffix, bool(list(cache.rglob("*.tar"))))))
    ShardPictures(["memory://synced/train-000.tar"])
    assert synced == [(".part", False)]


class _OwnError(Exception):
    """As the packages of services have them: of no kind that Python knows."""


def test_services_with_errors_of_their_own(
    cache: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/own/train-000.tar", (shards / "train-000.tar").read_bytes())
    info = type(memory).info
    monkeypatch.setattr(type(memory), "info", lambda self, path: info(self, path) | {"size": None})
    assert len(ShardPictures(["memory://own/train-000.tar"])) == 3  # a service that does not tell sizes
    assert caplog.messages == ["fetching memory://own/train-000.tar"]

    def refuse(self: Any, path: str) -> None:
        raise _OwnError("no credentials\nat all")

    monkeypatch.setattr(type(memory), "info", refuse)
    with pytest.raises(MetamixerError, match=r"memory://own/a\.tar could not be read \(no credentials\)$"):
        ShardPictures(["memory://own/a.tar"])


# ---------------------------------------------------------------- Hugging Face


@pytest.fixture(scope="module")
def rows() -> Any:
    """Builds a data set of encoded pictures and named classes."""
    datasets = pytest.importorskip("datasets")

    def build(names: list[str], labels: list[int], **columns: Any) -> Any:
        pictures = [{"bytes": encoded("red", number), "path": None} for number in range(len(labels))]
        features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
        return datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=datasets.Features(features))

    return build


def test_a_saved_data_set(rows: Any, tmp_path: Path) -> None:
    import datasets

    parts = {"train": rows(["cat", "dog"], [1, 0, 1]), "validation": rows(["dog", "cat"], [1, 0])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    train = open_pictures(tmp_path / "set", "train")
    assert greens(train) == [(0, "dog"), (1, "cat"), (2, "dog")]
    # The validation part numbers its classes otherwise: they are matched by name.
    assert greens(open_pictures(tmp_path / "set", "val", classes=train.classes)) == [(0, "cat"), (1, "dog")]
    assert train.name(2) == f"{tmp_path / 'set'}[2]"
    train.transform = pixels_of
    loader = PictureLoader(train, 2, num_workers=1)
    assert torch.cat([pixels[:, 1, 0, 0] for pixels, _ in loader]).tolist() == [0, 1, 2]
    with pytest.raises(MetamixerError, match="its splits: train, validation"):
        open_pictures(tmp_path / "set")


@pytest.mark.promise(
    "faults", "a test part in the place of a validation part is known, in folders, shards and data sets"
)
def test_test_parts_are_known(rows: Any, tmp_path: Path) -> None:
    import datasets

    for part in ("train", "test"):
        write_tar(tmp_path / "shards" / f"{part}-000.tar", {**sample(0, "0"), **sample(1, "1")})
        for name in ("cat", "dog"):
            (tmp_path / "folder" / part / name).mkdir(parents=True)
            (tmp_path / "folder" / part / name / "0.png").write_bytes(encoded("red", 0))
    datasets.DatasetDict({part: rows(["cat", "dog"], [1, 0]) for part in ("train", "test")}).save_to_disk(
        tmp_path / "set"
    )
    for name in ("folder", "shards", "set"):
        assert open_pictures(tmp_path / name, "train").test_part is None
        assert str(tmp_path / name) in str(open_pictures(tmp_path / name, "val").test_part)
    for name in ("test", "Testing", "test-000.tar", "test_2", "TEST1"):
        assert is_test_name(name)
    for name in ("val", "tests_of_val", "testimony", "contest", "train"):
        assert not is_test_name(name)


def test_a_saved_split_and_its_faults(rows: Any, tmp_path: Path) -> None:
    rows(["cat", "dog"], [1, 0]).save_to_disk(tmp_path / "one")
    assert list(open_pictures(tmp_path / "one").labels) == [1, 0]
    with pytest.raises(MetamixerError, match="holds a single split"):
        open_pictures(tmp_path / "one", "train")
    rows(["cat", "dog", "eel"], [1, 0]).save_to_disk(tmp_path / "two")
    with pytest.raises(MetamixerError, match="the class 'eel' has no pictures"):
        open_pictures(tmp_path / "two")
    rows(["cat", "dog"], [1, 0]).remove_columns("label").save_to_disk(tmp_path / "three")
    with pytest.raises(MetamixerError, match="no column of the type ClassLabel; its columns: image"):
        open_pictures(tmp_path / "three")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0, -1], "holds class -1, where 2 classes from 0 are known"),
        ([0, None], "None is no class"),
    ],
)
@pytest.mark.parametrize("classes", [None, ["dog", "cat"]])
def test_a_saved_data_set_without_labels(
    labels: list[Any], reason: str, classes: list[str] | None, rows: Any, tmp_path: Path
) -> None:
    """Such as the test splits of challenges: -1 is no last class."""
    rows(["cat", "dog"], labels).save_to_disk(tmp_path / "set")
    with pytest.raises(MetamixerError, match=reason):
        open_pictures(tmp_path / "set", classes=classes)


def test_a_data_set_of_the_hub(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load_dataset(name: str, configuration: str | None) -> Any:
        asked.append((name, configuration))
        if name == "nobody/nothing":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'nobody/nothing' doesn't exist on the Hub.\nMore.")
        return datasets.DatasetDict(train=rows(["cat", "dog"], [0, 1]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # or the hub is asked first
    assert list(open_pictures("hf://someone/pets:small", "train").labels) == [0, 1]
    assert list(open_pictures("hf://mnist").labels) == [0, 1]  # its only split
    assert asked == [("someone/pets", "small"), ("mnist", None)]
    with pytest.raises(MetamixerError, match=r"hf://nobody/nothing cannot be opened \(Dataset .* on the Hub\)$"):
        open_pictures("hf://nobody/nothing", "train")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MetamixerError, match=r"pip install 'metamixer\[data\]'"):
        open_pictures("hf://mnist", "train")


# ---------------------------------------------------------------- in memory


@pytest.mark.parametrize("workers", [0, 1])
def test_kept_pictures_are_the_same(damaged: Path, workers: int) -> None:
    (damaged / "train" / "red" / "wide.png").write_bytes(encoded("red", 7, (9, 3)))
    source = open_pictures(damaged, "train", bad="skip")
    source.transform = pixels_of
    kept = keep_in_memory(source, workers=workers)
    assert kept is not source
    for path in (damaged / "train").rglob("*.png"):
        path.write_text("gone")
    seen = [kept[i] for i in range(len(kept))]
    assert [(int(pixels[1, 0, 0]), label) for pixels, label in seen] == [
        *((0, 0), (2, 0), (2, 0)),
        *((0, 1), (1, 1), (7, 1), (7, 1)),
    ]
    assert seen[6][0].shape == (3, 3, 9)
    assert kept.unreadable == [source.name(1), source.name(5)]
    assert kept.classes == source.classes


def test_what_is_too_large_is_not_kept(folder: Path) -> None:
    source = open_pictures(folder, "train")
    assert keep_in_memory(source, limit=6 * 90 - 1) is source
    assert keep_in_memory(source, limit=6 * 90) is not source
