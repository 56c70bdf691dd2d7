"""Pictures of a Hugging Face data set: from the hub, or from a folder that ``save_to_disk`` wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from metamixer.data.files import require_regular, walk
from metamixer.data.hub import with_hub
from metamixer.data.pictures import decode_picture, read_picture
from metamixer.data.shards import number_classes, require_every_class
from metamixer.data.source import SPLIT_NAMES, Pictures, Split, is_test_name
from metamixer.errors import MetamixerError


def is_saved_data_set(where: str) -> bool:
    """Whether ``where`` is a folder that ``save_to_disk`` wrote."""
    return any(os.path.isfile(os.path.join(where, name)) for name in ("dataset_dict.json", "state.json"))


class HuggingFacePictures(Pictures):
    """One split of a data set with a column of pictures and one of classes.

    Args:
        where: ``hf://OWNER/NAME``, ``hf://OWNER/NAME:CONFIGURATION``, or a folder that ``save_to_disk`` wrote.
        split: "train" or "val"; None for a folder that holds one split.
        classes: names in the order of their indices; by default the data set's own.

    The pictures are the first column of the type ``Image``, the classes the first of the type ``ClassLabel`` or else
    the column ``label``.

    Raises MetamixerError without the package datasets, for an unknown data set or split, and where a column is missing
    or a class empty or unknown.
    """

    def __init__(self, where: str, split: Split | None = None, classes: Sequence[str] | None = None) -> None:
        datasets = _datasets()
        self.where = where
        rows, part = _split_of(_load(datasets, where), split, where)
        if split == "val" and is_test_name(part):
            self.test_part = f"the split {part!r} of {where}"
        picture = next((name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)), None)
        named = [name for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)]
        label = next(iter(named), "label" if "label" in rows.features else None)
        if picture is None or label is None:
            missing = "Image" if picture is None else "ClassLabel"
            raise MetamixerError(
                f"{where} has no column of the type {missing}; its columns: {', '.join(rows.features)}"
            )
        labels = rows[label][:]
        own = list(rows.features[label].names) if named else None
        if not labels:
            raise MetamixerError(f"{where} holds no pictures")
        wrong = next((i for i in labels if not isinstance(i, int if named else int | str)), None)
        if wrong is not None or None in labels:
            raise MetamixerError(f"{where}, column {label}: {wrong!r} is no class")
        if own is not None and classes is not None:  # by name: another data set may number them otherwise
            labels = number_classes(labels, own, where)[1]  # which looks whether there are names for them
            labels = [own[i] for i in labels]
        given = classes if classes is not None else own
        self.classes, self.labels = number_classes(labels, given, where)
        if classes is None:
            require_every_class(self.classes, self.labels, where)
        # The files as they are: our own reading turns and converts them like those of any source.
        self._rows = rows.select_columns([picture]).cast_column(picture, datasets.Image(decode=False))
        self._column = picture

    def read(self, index: int) -> Image.Image:
        entry = self._rows[index][self._column]
        if entry["bytes"] is None:
            return read_picture(entry["path"])
        return decode_picture(entry["bytes"], self.name(index))

    def name(self, index: int) -> str:
        return f"{self.where}[{index}]"


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MetamixerError(
            "Hugging Face data sets need the package datasets; install it with: pip install 'metamixer[data]'"
        ) from None
    return datasets


def _load(datasets: Any, where: str) -> Any:
    try:
        if not where.startswith("hf://"):
            for folder, names in walk(where):  # the package opens them by itself
                for name in names:
                    require_regular(folder / name, what="a file of a data set")
            return datasets.load_from_disk(where)
        name, _, configuration = where.removeprefix("hf://").partition(":")
        return with_hub(name, lambda: datasets.load_dataset(name, configuration or None))
    except MetamixerError:
        raise
    except Exception as error:  # from network faults to unknown names, each of the package's many layers has its own
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise MetamixerError(f"{where} cannot be opened ({reason or type(error).__name__})") from None


def _split_of(loaded: Any, split: Split | None, where: str) -> tuple[Any, str]:
    """The rows of a split and what it is called there."""
    if not isinstance(loaded, dict):  # a single split
        if split is not None:
            raise MetamixerError(f"{where} holds a single split, where one named {split!r} is wanted")
        return loaded, ""
    wanted = list(loaded) if split is None and len(loaded) == 1 else SPLIT_NAMES[split] if split else ()
    found = next((name for name in wanted if name in loaded), None)
    if found is None:
        raise MetamixerError(f"{where} has no split for {split or 'a single use'}; its splits: {', '.join(loaded)}")
    return loaded[found], found
