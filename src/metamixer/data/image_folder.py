"""Pictures in one sub-folder per class: the usual layout ``ROOT/CLASS/NAME.jpg``."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from metamixer.data.packed import PackedNames
from metamixer.data.pictures import pictures_below, read_picture
from metamixer.data.source import SPLIT_NAMES, PictureLoader, Pictures, Split, require_text
from metamixer.errors import MetamixerError

__all__ = ["ImageFolder", "PictureLoader", "class_folders", "split_folder", "split_of"]


class ImageFolder(Pictures):
    """Samples ``(transform(picture), class index)``; files in sorted order.

    Args:
        root: folder with one sub-folder per class; pictures may lie deeper.
        transform: from a PIL picture to what a sample should hold.
        classes: names in the order of their indices, of which the folder may hold some; by default the sub-folders'
            names, sorted.

    Raises MetamixerError where the folder is missing, has no class folders or one that ``classes`` does not name, or
    where a class is empty.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        root = Path(root)
        found = class_folders(root)
        if not found:
            raise MetamixerError(f"{root} holds no class folders; pictures are expected as {root}/CLASS/NAME.jpg")
        self.root = root
        self.classes = found if classes is None else list(classes)
        index = {name: i for i, name in enumerate(self.classes)}
        unknown = [name for name in found if name not in index]
        if unknown:
            raise MetamixerError(
                f"{root / unknown[0]}: {unknown[0]!r} is none of the {len(self.classes)} known classes"
            )
        self.files = PackedNames()
        """Below ``root``."""
        self.labels = array("i")
        above = os.path.join(root, "")
        for name in found:
            files = pictures_below(root / name)
            if not files:
                raise MetamixerError(f"class folder {root / name} holds no pictures")
            for file in files:
                self.files.append(str(file).removeprefix(above))
                self.labels.append(index[name])
        self.transform = transform

    def read(self, index: int) -> Image.Image:
        return read_picture(self.root / self.files[index])

    def name(self, index: int) -> str:
        return str(self.root / self.files[index])


def class_folders(root: str | Path) -> list[str]:
    """Sorted names of the sub-folders of ``root``, without hidden ones.

    Raises MetamixerError where it is no folder, and for a name that is no UTF-8 text.
    """
    try:
        return require_text(
            sorted(
                entry.name for entry in Path(root).iterdir() if os.path.isdir(entry) and not entry.name.startswith(".")
            ),
            str(root),
        )
    except FileNotFoundError:
        raise MetamixerError(f"{root}: no such folder") from None
    except NotADirectoryError:
        raise MetamixerError(f"{root} is a file where a folder is needed") from None
    except OSError as error:
        raise MetamixerError(f"{root} cannot be read ({error.strerror or error})") from None
    except ValueError:  # zeros, and what the file system's encoding has not got
        raise MetamixerError(f"{root} cannot be read (no folder can have such a name)") from None


def split_of(root: str | Path, names: tuple[str, ...]) -> Path | None:
    """The first sub-folder of ``root`` among ``names`` that holds class folders, such as one of ``("val", "test")``."""
    folders = (Path(root, name) for name in names)
    return next((folder for folder in folders if os.path.isdir(folder) and class_folders(folder)), None)


def split_folder(root: str | Path, split: Split) -> Path:
    """The folder of that split's classes. Raises MetamixerError where there is none."""
    class_folders(root)  # raises where it is missing or no folder
    names = SPLIT_NAMES[split]
    found = split_of(root, names)
    if found is None:
        wanted = repr(names[0]) if len(names) == 1 else f"named one of {', '.join(names)}"
        raise MetamixerError(f"{root} needs a folder {wanted} with one sub-folder of pictures per class")
    return found
