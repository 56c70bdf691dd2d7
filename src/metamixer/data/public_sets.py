"""The public data sets that ``metamixer data fetch`` knows: addresses, digests, and how each becomes class folders."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from metamixer.data.archives import read_archive
from metamixer.data.pictures import EXTENSIONS
from metamixer.data.source import Split
from metamixer.errors import MetamixerError


class Picture(NamedTuple):
    """A picture's place, ``split/class_name/file_name``, and its file's contents."""

    split: Split
    class_name: str
    file_name: str
    data: bytes


@dataclass(frozen=True)
class Archive:
    """One file to download: address, bytes, SHA-256 or MD5, and where these figures are published."""

    url: str
    size: int
    source: str
    sha256: str | None = None
    md5: str | None = None

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class PublicSet:
    """One public data set.

    Attributes:
        title: what it shows.
        page: its home page.
        archives: what is downloaded.
        pictures: the pictures in the downloaded archives.
        counts: pictures in train and in val, which are checked; None where the split is ours.
        val_is_test: val is the set's test part, as it has no other.
    """

    title: str
    page: str
    archives: tuple[Archive, ...]
    pictures: Callable[[list[Path]], Iterator[Picture]]
    counts: tuple[int, int] | None
    val_is_test: bool = False


def _is_picture(name: PurePosixPath) -> bool:
    return name.name.lower().endswith(EXTENSIONS) and not name.name.startswith(".")


def _flowers(archives: list[Path]) -> Iterator[Picture]:
    """``flower_photos/CLASS/NAME.jpg``, which has no split.

    The contents decide: a fifth of all digests goes to val, so that the split depends on nothing else, and that copies
    of a picture never lie on both sides.
    """
    for name, data in read_archive(archives[0], _is_picture):
        split: Split = "val" if hashlib.sha256(data).digest()[0] < 51 else "train"
        yield Picture(split, name.parts[-2], name.name, data)


def _cifar(names_file: str, label_bytes: int) -> Callable[[list[Path]], Iterator[Picture]]:
    """The binary version: records of one or two label bytes (the last is the class) and 3 × 32 × 32 pixels."""

    def pictures(archives: list[Path]) -> Iterator[Picture]:
        is_names = lambda name: name.name == names_file  # noqa: E731
        lines = next((data for _, data in read_archive(archives[0], is_names)), b"").decode().split("\n")
        names = [line.strip() for line in lines if line.strip()]
        length = label_bytes + 3 * 32 * 32
        numbers: dict[Split, int] = {"train": 0, "val": 0}
        for name, data in read_archive(archives[0], lambda name: name.suffix == ".bin"):
            split: Split = "val" if name.stem.startswith("test") else "train"
            if not data or len(data) % length:
                raise MetamixerError(f"{archives[0]}: {name} is no table of CIFAR records")
            for record in np.frombuffer(data, np.uint8).reshape(-1, length):
                label = int(record[label_bytes - 1])
                if label >= len(names):
                    raise MetamixerError(f"{archives[0]}: {name} holds class {label} of {len(names)}")
                pixels = record[label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0)
                file = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
                yield Picture(split, names[label], f"{numbers[split]:05d}.png", file.getvalue())
                numbers[split] += 1

    return pictures


def _tiny_imagenet(archives: list[Path]) -> Iterator[Picture]:
    """``train/WNID/images/*.JPEG``; val's classes are in a table. The test pictures have no labels and are left out."""
    tables = read_archive(archives[0], lambda name: name.name == "val_annotations.txt")
    table = next((data for _, data in tables), b"").decode()
    classes = dict(line.split("\t")[:2] for line in table.split("\n") if line.strip())
    for name, data in read_archive(archives[0], lambda name: _is_picture(name) and "test" not in name.parts):
        if "val" not in name.parts:
            yield Picture("train", name.parts[-3], name.name, data)
        elif name.name in classes:
            yield Picture("val", classes[name.name], name.name, data)
        else:
            raise MetamixerError(f"{archives[0]}: {name} is not in val_annotations.txt")


_IMAGENETTE = {  # WordNet's identifiers, and torchvision's names for them
    "n01440764": "tench",
    "n02102040": "english_springer",
    "n02979186": "cassette_player",
    "n03000684": "chain_saw",
    "n03028079": "church",
    "n03394916": "french_horn",
    "n03417042": "garbage_truck",
    "n03425413": "gas_pump",
    "n03445777": "golf_ball",
    "n03888257": "parachute",
}


def _imagenette(archives: list[Path]) -> Iterator[Picture]:
    """``imagenette2/{train,val}/WNID/*.JPEG``."""
    for name, data in read_archive(archives[0], _is_picture):
        split, wnid = name.parts[-3], name.parts[-2]
        if wnid not in _IMAGENETTE or split not in ("train", "val"):
            raise MetamixerError(f"{archives[0]}: {name} is in none of the known classes")
        yield Picture("train" if split == "train" else "val", _IMAGENETTE[wnid], name.name, data)


def _pets(archives: list[Path]) -> Iterator[Picture]:
    """``images/CLASS_NUMBER.jpg``; ``trainval.txt`` and ``test.txt`` of the annotations name those of each split."""
    images, annotations = archives
    splits: dict[str, Split] = {}
    for name, data in read_archive(annotations, lambda name: name.name in ("trainval.txt", "test.txt")):
        split: Split = "train" if name.name == "trainval.txt" else "val"
        splits.update((line.split()[0], split) for line in data.decode().split("\n") if line.strip())
    for name, data in read_archive(images, _is_picture):
        if name.stem in splits:
            yield Picture(splits[name.stem], name.stem.rpartition("_")[0].lower(), name.name, data)


_TFDS = "TensorFlow Datasets, url_checksums"
_S3 = "https://s3.amazonaws.com/fast-ai-imageclas"


def _imagenette_set(side: str, file: str, size: int, md5: str) -> PublicSet:
    # TensorFlow Datasets records files of other lengths, which were replaced since.
    return PublicSet(
        f"ten easy classes of ImageNet, {side}",
        "https://github.com/fastai/imagenette",
        (Archive(f"{_S3}/{file}", size, "bytes: fastai, data/checks.txt; MD5: torchvision", md5=md5),),
        _imagenette,
        (9469, 3925),
    )


PUBLIC_SETS = {
    "flowers": PublicSet(
        "five kinds of flowers, photographs",
        "https://www.tensorflow.org/datasets/catalog/tf_flowers",
        (
            Archive(
                "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
                228813984,
                _TFDS,
                "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
            ),
        ),
        _flowers,
        None,
    ),
    "cifar10": PublicSet(
        "ten classes of objects, 32 × 32",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                170052171,
                _TFDS,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        _cifar("batches.meta.txt", 1),
        (50000, 10000),
        val_is_test=True,
    ),
    "cifar100": PublicSet(
        "a hundred classes of objects, 32 × 32",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        (
            Archive(
                "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                168513733,
                _TFDS,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        _cifar("fine_label_names.txt", 2),
        (50000, 10000),
        val_is_test=True,
    ),
    "tiny-imagenet": PublicSet(
        "200 classes of ImageNet, 64 × 64",
        "http://cs231n.stanford.edu",
        (
            Archive(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                248100043,
                "several public repositories; none by its authors",
                "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
            ),
        ),
        _tiny_imagenet,
        (100000, 10000),
    ),
    "imagenette": _imagenette_set("full size", "imagenette2.tgz", 1557161267, "fe2fc210e6bb7c5664d602c3cd71e612"),
    "imagenette-320": _imagenette_set(
        "shorter side 320", "imagenette2-320.tgz", 341663724, "3df6f0d01a2c9592104656642f5e78a3"
    ),
    "imagenette-160": _imagenette_set(
        "shorter side 160", "imagenette2-160.tgz", 99003388, "e793b78cc4c9e9a4ccc0c1155377a412"
    ),
    "pets": PublicSet(
        "37 breeds of cats and dogs (Oxford-IIIT)",
        "https://www.robots.ox.ac.uk/~vgg/data/pets",
        (
            Archive(
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                791918971,
                _TFDS,
                "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            ),
            Archive(
                "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                19173078,
                _TFDS,
                "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            ),
        ),
        _pets,
        (3680, 3669),
        val_is_test=True,
    ),
}
