"""Where pictures come from: one interface for folders, tar shards and Hugging Face data sets."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from metamixer.data.reading import Reader
from metamixer.errors import MetamixerError
from metamixer.printing import as_utf8

Split = Literal["train", "val"]
BadPictures = Literal["raise", "skip", "check"]
SOURCE_FILE = "source.json"  # what `metamixer data fetch` says of a set in its folder
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "validation", "test")}


class Pictures(Dataset[tuple[Any, int]]):
    """Pictures with a class each, by index: ``pictures[i]`` is ``(transform(picture), class index)``.

    Every source gives any picture at any time and in any process, so that a run can go on where it stopped.

    Attributes:
        classes: names in the order of their indices.
        labels: the class index of every picture.
        transform: from an upright RGB PIL picture to what a sample holds; None for the picture itself.
        test_part: what they are called, where they are the test part of a set.
    """

    classes: list[str]
    labels: Sequence[int]
    transform: Callable[[Any], Any] | None = None
    test_part: str | None = None
    _unreadable: torch.Tensor | None = None

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The upright 8-bit RGB picture. Raises MetamixerError where it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where the picture lies, for people."""

    def sample(self, index: int) -> tuple[Any, int]:
        """This very picture, transformed, and its class. Raises MetamixerError where it cannot be read."""
        picture = self.read(index)
        return (self.transform(picture) if self.transform else picture), int(self.labels[index])

    def skip_unreadable(self) -> None:
        """From now on an unreadable picture is replaced by the next readable one, and noted (``unreadable``).

        Which one depends on nothing but the index and the files: resumed runs see the same pictures.
        """
        self._unreadable = torch.zeros(len(self), dtype=torch.bool).share_memory_()  # workers write into it too

    @property
    def skips(self) -> bool:
        return self._unreadable is not None

    def note_unreadable(self, index: int) -> None:
        if self._unreadable is not None:
            self._unreadable[index] = True

    @property
    def unreadable(self) -> list[str]:
        """Names of the pictures that were skipped so far, those that worker processes skipped included."""
        return [] if self._unreadable is None else [self.name(int(i)) for i in self._unreadable.nonzero()]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not self.skips:
            return self.sample(index)
        for step in range(len(self)):
            at = (index + step) % len(self)
            try:
                return self.sample(at)
            except MetamixerError:
                self.note_unreadable(at)
        raise MetamixerError(f"none of the {len(self)} pictures can be read, {self.name(index)} among them")


class PictureLoader(Reader):
    """Batches of Pictures in order; an unreadable one raises its one sentence, from worker processes too.

    Where the pictures skip unreadable ones they are left out here, so that none counts twice.
    """

    def __init__(self, pictures: Pictures, batch_size: int, **options: Any) -> None:
        super().__init__(_ErrorsAsSamples(pictures), batch_size, collate_fn=_collate, **options)

    def __iter__(self) -> Any:
        return (batch for batch in super().__iter__() if batch is not None)


class _ErrorsAsSamples(Dataset[Any]):
    """A plain DataLoader would wrap a worker's exception in the worker's traceback; here it travels as data."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.pictures.sample(index)
        except MetamixerError as error:
            self.pictures.note_unreadable(index)
            return None if self.pictures.skips else error


def _collate(samples: list[Any]) -> Any:
    errors = [sample for sample in samples if isinstance(sample, MetamixerError)]
    kept = [sample for sample in samples if sample is not None]
    return errors[0] if errors else default_collate(kept) if kept else None


def check_readable(pictures: Pictures, workers: int = 0) -> None:
    """Read every picture. Raises MetamixerError that counts those that cannot be read and names the first."""
    loader = Reader(_Faults(pictures), batch_size=64, num_workers=workers, collate_fn=list)
    faults = [fault for batch in loader for fault in batch if fault is not None]
    if faults:
        raise MetamixerError(f"{len(faults)} of {len(pictures)} pictures cannot be read; the first: {faults[0]}")


class _Faults(_ErrorsAsSamples):
    """None for a sound picture, else what is wrong."""

    def __getitem__(self, index: int) -> str | None:
        try:
            self.pictures.read(index)
        except MetamixerError as error:
            return str(error)
        return None


def open_pictures(
    where: str | Path,
    split: Split | None = None,
    classes: Sequence[str] | None = None,
    bad: BadPictures = "raise",
    workers: int = 0,
) -> Pictures:
    """The pictures at ``where``, whatever holds them.

    Args:
        where: one of

            - a folder ``CLASS/*.jpg``, or one that holds such folders as ``train`` and ``val`` (``validation``,
              ``test``);
            - a folder of WebDataset tar shards, ``train-000.tar`` … or ``train/000.tar`` …;
            - addresses of shards with a range, ``https://host/{split}-{000..146}.tar``; any protocol of fsspec;
            - a data set of the Hugging Face hub, ``hf://OWNER/NAME`` or ``hf://OWNER/NAME:CONFIGURATION``, or a folder
              that ``save_to_disk`` wrote.
        split: "train" or "val"; None where ``where`` holds but one.
        classes: names in the order of their indices; by default those found there.
        bad: what an unreadable picture does: "raise" when it is reached, "skip" it (listed in ``unreadable``), or
            "check": read all of them now and raise.
        workers: processes for "check".

    Raises MetamixerError where nothing of the kind is there, a class is empty or unknown, or a package is missing.
    """
    pictures = _opened(str(where), split, classes)
    if bad == "check":
        check_readable(pictures, workers)
    elif bad == "skip":
        pictures.skip_unreadable()
    return pictures


def _opened(where: str, split: Split | None, classes: Sequence[str] | None) -> Pictures:
    # Imported here because each of them builds on this file.
    from metamixer.data.hugging_face import HuggingFacePictures, is_saved_data_set
    from metamixer.data.image_folder import ImageFolder, split_folder
    from metamixer.data.shards import ShardPictures, find_shards

    if where.startswith("hf://") or is_saved_data_set(where):
        return HuggingFacePictures(where, split, classes)
    shards = find_shards(where, split)
    pictures: Pictures
    names: tuple[str, ...] = ()
    if shards:
        pictures = ShardPictures(shards, classes)
        if os.path.isdir(where):
            names = Path(shards[0]).name, Path(shards[0]).parent.name
    else:
        folder = Path(where) if split is None else split_folder(where, split)
        pictures = ImageFolder(folder, classes=classes)
        names = (folder.name,)
    if split == "val" and any(is_test_name(name) for name in names):
        pictures.test_part = f"{where}/test"
    elif split == "val" and _fetched_with_test_part_as_val(where):
        pictures.test_part = f"{where}/val"
    return pictures


def is_test_name(name: str) -> bool:
    """Whether a folder, a shard or a split is called a test part."""
    return re.fullmatch(r"test(ing)?([^a-z].*)?", name, re.IGNORECASE) is not None


def _fetched_with_test_part_as_val(where: str) -> bool:
    """Whether ``metamixer data fetch`` made the folder, of a set whose only other part is its test part."""
    from metamixer.data.formats import read_json

    try:
        said = read_json(Path(where, SOURCE_FILE))
    except MetamixerError:
        return False
    return isinstance(said, dict) and said.get("val_is_test") is True


def require_text(classes: list[str], where: str) -> list[str]:
    """The names of classes. Raises MetamixerError for one that no file of text could hold."""
    for name in classes:
        if as_utf8(name) != name:
            raise MetamixerError(f"{where}: the name of the class {as_utf8(name)!r} is no UTF-8 text; rename it")
    return classes


def default_workers() -> int:
    """Reading processes: one per core that this process may use, at most 16, less one for whoever reads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, cores - 1))
