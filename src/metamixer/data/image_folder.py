"""Pictures in one sub-folder per class: the usual layout ``ROOT/CLASS/NAME.jpg``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from metamixer.data.pictures import EXTENSIONS, read_picture
from metamixer.errors import MetamixerError


class ImageFolder(Dataset[tuple[Any, int]]):
    """Samples ``(transform(picture), class index)``; classes and files in sorted order.

    Raises MetamixerError where the folder is missing, has no class folders, or a class is empty.
    """

    def __init__(self, root: str | Path, transform: Callable[[Any], Any] | None = None) -> None:
        root = Path(root)
        if not root.is_dir():
            raise MetamixerError(f"{root}: no such folder")
        self.classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if not self.classes:
            raise MetamixerError(f"{root} holds no class folders; pictures are expected as {root}/CLASS/NAME.jpg")
        self.samples: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            files = sorted(_pictures_below(root / name))
            if not files:
                raise MetamixerError(f"class folder {root / name} holds no pictures")
            self.samples.extend((file, label) for file in files)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        picture = read_picture(path)
        return (self.transform(picture) if self.transform else picture), label


def _pictures_below(folder: Path) -> list[Path]:
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found.extend(Path(parent, name) for name in names if name.lower().endswith(EXTENSIONS))
    return found


def split_of(root: str | Path, names: tuple[str, ...]) -> Path | None:
    """The first existing sub-folder of ``root`` among ``names``, such as ``("val", "validation", "test")``."""
    return next((Path(root, name) for name in names if Path(root, name).is_dir()), None)
