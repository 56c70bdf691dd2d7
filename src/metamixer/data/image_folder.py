"""Pictures in one sub-folder per class: the usual layout ``ROOT/CLASS/NAME.jpg``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from metamixer.data.pictures import pictures_below, read_picture
from metamixer.errors import MetamixerError


class ImageFolder(Dataset[tuple[Any, int]]):
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
        self.samples: list[tuple[Path, int]] = []
        for name in found:
            files = pictures_below(root / name)
            if not files:
                raise MetamixerError(f"class folder {root / name} holds no pictures")
            self.samples.extend((file, index[name]) for file in files)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        picture = read_picture(path)
        return (self.transform(picture) if self.transform else picture), label


class PictureLoader(DataLoader[Any]):
    """A DataLoader of an ImageFolder whose unreadable pictures raise their one sentence, from worker processes too.

    A plain DataLoader would wrap a worker's exception in the worker's traceback; here the exception travels as data.
    """

    def __init__(self, folder: ImageFolder, batch_size: int, **options: Any) -> None:
        super().__init__(_ErrorsAsSamples(folder), batch_size, collate_fn=_collate, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, MetamixerError):
                raise batch
            yield batch


class _ErrorsAsSamples(Dataset[Any]):
    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.folder[index]
        except MetamixerError as error:
            return error


def _collate(samples: list[Any]) -> Any:
    errors = [sample for sample in samples if isinstance(sample, MetamixerError)]
    return errors[0] if errors else default_collate(samples)


def class_folders(root: str | Path) -> list[str]:
    """Sorted names of the sub-folders of ``root``, without hidden ones. Raises MetamixerError where it is no folder."""
    try:
        return sorted(entry.name for entry in Path(root).iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except FileNotFoundError:
        raise MetamixerError(f"{root}: no such folder") from None
    except NotADirectoryError:
        raise MetamixerError(f"{root} is a file where a folder is needed") from None
    except OSError as error:
        raise MetamixerError(f"{root} cannot be read ({error.strerror or error})") from None


def split_of(root: str | Path, names: tuple[str, ...]) -> Path | None:
    """The first sub-folder of ``root`` among ``names`` that holds class folders, such as one of ``("val", "test")``."""
    folders = (Path(root, name) for name in names)
    return next((folder for folder in folders if folder.is_dir() and class_folders(folder)), None)
