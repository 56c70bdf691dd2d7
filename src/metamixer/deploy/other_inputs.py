"""The networks that classify no pictures, where they are exported, checked and timed: what goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from PIL import ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from metamixer.deploy.pictures import Picture, open_given
from metamixer.deploy.source import Source, uniform
from metamixer.errors import MetamixerError
from metamixer.heads.base import Size
from metamixer.networks import FFNetPoints, FFNetTSF

SIDE = 64  # of a picture to be enlarged, in pixels, where nothing else is asked for
_POINTS = 10_000  # of a cloud to be timed on
_NO_CLASSIFIER = {
    "features": "it has no stages of rising depth",
    "softmax": "its outputs are no classes",
    "int8": "what eight bits cost is judged by first classes, and it names none",
    "nms": "it gives no boxes",
}


class EnlargementSource(Source):
    """Pictures between 0 and 1 for a super-resolution network."""

    outputs = ("enlarged",)
    refuses: ClassVar[Mapping[str, str]] = {
        "normalise": "it takes values from 0 to 1 as they are",
        **_NO_CLASSIFIER,
    }

    def inputs(self, size: int | Size | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """``N × 3 × S × S``, scaled and cropped: the given pictures, else photographs."""
        assert not isinstance(size, tuple)
        size = size or SIDE
        opened = open_given(pictures, most)
        return torch.stack([V.to_image(ImageOps.fit(picture, (size, size))) for picture in opened]).float() / 255

    def example(self, batch: int, size: int | None) -> Tensor:
        return uniform(batch, 3, *2 * (size or SIDE,))

    def metadata(self, inputs: Tensor, sizes: tuple[int, int] | None) -> dict[str, str]:
        return super().metadata(inputs, sizes) | {
            "image_size": str(self.side(inputs)) if sizes is None else f"{sizes[0]}-{sizes[1]}",
            "scale": str(self.model.scale),
            "input": "RGB, 0 to 1",
            "output": f"RGB, 0 to 1, {self.model.scale} times as large; to be clipped",
        }


class SeriesSource(Source):
    """Windows of a series for a forecasting network; its size is the network's lookback."""

    input_name = "series"
    outputs = ("forecast",)
    refuses: ClassVar[Mapping[str, str]] = {
        "sizes": "its windows have one length",
        "normalise": "it takes standardised values",
        **_NO_CLASSIFIER,
    }

    def inputs(self, size: int | Size | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """``N × lookback × channels``; raises MetamixerError where pictures or another size are asked for."""
        if pictures:
            raise MetamixerError(f"{self.name} reads windows of {self.model.lookback} rows and no pictures")
        return self.example(most, size)

    def example(self, batch: int, size: int | Size | None) -> Tensor:
        if size not in (None, self.model.lookback):
            raise MetamixerError(f"{self.name} reads windows of {self.model.lookback} rows and of no other size")
        return windows(self.model, batch)

    def side(self, inputs: Tensor) -> int:
        """Rows of a window."""
        return inputs.shape[1]

    def metadata(self, inputs: Tensor, sizes: tuple[int, int] | None) -> dict[str, str]:
        return super().metadata(inputs, sizes) | {
            "input": f"batch x {self.model.lookback} time steps x {self.model.channels} variables, standardised",
            "output": f"batch x {self.model.horizon} time steps x {self.model.channels} variables, standardised",
        }


class CloudSource(Source):
    """Clouds of points, to be timed on; no runtime's graph holds the network."""

    input_name = "clouds"
    outputs = ("logits",)

    def graph(self, model: nn.Module) -> nn.Module:
        assert isinstance(model, FFNetPoints)
        return PackedClouds(model)

    def inputs(self, size: int | Size | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """Raises MetamixerError."""
        raise MetamixerError(
            f"{self.name} cannot be exported: which points are neighbours is found anew for every cloud, by sorting and"
            " searching, and no runtime's graph holds that; it runs with PyTorch alone"
        )

    def example(self, batch: int, size: int | None) -> Tensor:
        points = size or _POINTS
        feat = uniform(batch, points, self.model.in_channels)
        return torch.cat([feat, _surface(points).expand(batch, -1, -1)], -1)

    def side(self, inputs: Tensor) -> int:
        """Points of a cloud."""
        return inputs.shape[1]


def windows(model: FFNetTSF, count: int) -> Tensor:
    """``count × lookback × channels``: waves of a day's length and random walks, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, model.lookback, model.channels)
    phase = 2 * torch.pi * torch.rand(count, 1, model.channels, generator=generator)
    waves = torch.sin(2 * torch.pi * torch.arange(model.lookback)[:, None] / 24 + phase)
    return waves + torch.randn(shape, generator=generator).cumsum(1) / 10


class PackedClouds(nn.Module):
    """A network for point clouds with one input: clouds of equally many points, ``B × N × (features + 3)``.

    The last three numbers of a point are its cell. Gives ``B·N × classes``.
    """

    def __init__(self, network: FFNetPoints) -> None:
        super().__init__()
        self.network = network

    def forward(self, clouds: Tensor) -> Tensor:
        batch, points, _ = clouds.shape
        offset = points * torch.arange(1, batch + 1, device=clouds.device)
        return self.network(clouds[..., :-3].flatten(0, 1), clouds[..., -3:].long().flatten(0, 1), offset)


def _surface(points: int) -> Tensor:
    """``points × 3`` cells of a hilly ground, one above each square, as a scanner sees surfaces."""
    side = int((points - 1) ** 0.5) + 1
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    z = (10 * (torch.sin(x / 15) + torch.cos(y / 20))).long() + 20
    return torch.stack([x, y, z], -1).view(-1, 3)[:points]
