"""Decoded pictures kept in memory, for sets small enough: a tiny JPEG takes longer to decode than to augment."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from metamixer.data.reading import Reader
from metamixer.data.source import Pictures
from metamixer.data.transforms import pixels_of
from metamixer.errors import MetamixerError


def keep_in_memory(pictures: Pictures, limit: int = 1 << 30, workers: int = 0) -> Pictures:
    """The same pictures, decoded once and now; or ``pictures`` itself where they need more than ``limit`` bytes.

    The memory is shared with the worker processes that are started later. Unreadable pictures stay what they are in
    ``pictures``. Samples are the same, bit for bit, as transforms see the same pixels.

    Args:
        pictures: any source; its transform and its way with unreadable pictures are taken over.
        limit: bytes; a picture takes three times its width times its height.
        workers: processes that decode.
    """
    loader = Reader(_Pixels(pictures), batch_size=64, num_workers=workers, collate_fn=list)
    decoded: list[Tensor | None] = []
    for batch in loader:
        decoded += batch
        limit -= sum(pixels.numel() for pixels in batch if pixels is not None)
        if limit < 0:
            return pictures
    return _KeptPictures(pictures, decoded)


class _Pixels(Dataset[Tensor | None]):
    """uint8 ``H × W × 3``, or None for an unreadable picture."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Tensor | None:
        try:
            return pixels_of(self.pictures.read(index)).permute(1, 2, 0)
        except MetamixerError:
            return None


class _KeptPictures(Pictures):
    """One tensor for all pixels: that many tensors would each need a file handle in every worker."""

    def __init__(self, source: Pictures, decoded: list[Tensor | None]) -> None:
        self.source = source
        self.classes, self.labels, self.transform = source.classes, source.labels, source.transform
        self.test_part = source.test_part
        self.sizes = torch.tensor([(0, 0) if pixels is None else pixels.shape[:2] for pixels in decoded])
        self.starts = F.pad(3 * self.sizes.prod(1).cumsum(0), (1, 0))
        self.pixels = torch.empty(int(self.starts[-1]), dtype=torch.uint8).share_memory_()
        for index, pixels in enumerate(decoded):
            if pixels is not None:
                self.pixels[self.starts[index] : self.starts[index + 1]] = pixels.flatten()
        if source.skips:
            self.skip_unreadable()

    def read(self, index: int) -> Image.Image:
        height, width = self.sizes[index].tolist()
        if not height:
            return self.source.read(index)
        kept = self.pixels[self.starts[index] : self.starts[index + 1]]
        return Image.frombytes("RGB", (width, height), kept.numpy().tobytes())

    def name(self, index: int) -> str:
        return self.source.name(index)
