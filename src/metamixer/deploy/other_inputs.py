"""What goes into the networks that classify no pictures, where they are exported, checked and timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from metamixer.deploy.pictures import Picture, open_all, photographs, pictures_in
from metamixer.errors import MetamixerError
from metamixer.networks import FFNetPoints, FFNetSR, FFNetTSF

SIDE = 64  # of a picture to be enlarged, in pixels, where nothing else is asked for
_MOST = 16  # pictures or windows that an export is compared on: the outputs are large
_POINTS = 10_000  # of a cloud to be timed on


class EnlargementSource:
    """Pictures between 0 and 1 for a super-resolution network to be exported."""

    cfg = None
    classifies = False
    output = "enlarged"

    def __init__(self, model: FFNetSR, name: str) -> None:
        self.model = model
        self.name = name

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def inputs(self, size: int | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """``N × 3 × S × S``, scaled and cropped: the given pictures, else photographs."""
        if isinstance(pictures, (str, Path)):
            pictures = pictures_in(pictures, most)
        size = size or SIDE
        opened = open_all(pictures) if pictures else photographs(min(most, _MOST))
        return torch.stack([V.to_image(ImageOps.fit(picture, (size, size))) for picture in opened]).float() / 255

    def size(self, inputs: Tensor) -> int:
        return inputs.shape[-1]

    def metadata(self, size: int, sizes: tuple[int, int] | None) -> dict[str, str]:
        return {
            "producer": "metamixer",
            "architecture": self.name,
            "image_size": str(size) if sizes is None else f"{sizes[0]}-{sizes[1]}",
            "scale": str(self.model.scale),
            "input": "RGB, 0 to 1",
            "output": f"RGB, 0 to 1, {self.model.scale} times as large; to be clipped",
        }


class SeriesSource:
    """Windows of a series for a forecasting network to be exported; its size is the network's lookback."""

    cfg = None
    classifies = False
    output = "forecast"

    def __init__(self, model: FFNetTSF, name: str) -> None:
        self.model = model
        self.name = name

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def inputs(self, size: int | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """``N × lookback × channels``; raises MetamixerError where pictures or another size are asked for."""
        if pictures or size not in (None, self.model.lookback):
            raise MetamixerError(f"{self.name} reads windows of {self.model.lookback} rows: no pictures, no other size")
        return windows(self.model, min(most, _MOST))

    def size(self, inputs: Tensor) -> int:
        return inputs.shape[1]

    def metadata(self, size: int, sizes: tuple[int, int] | None) -> dict[str, str]:
        return {
            "producer": "metamixer",
            "architecture": self.name,
            "input": f"batch x {self.model.lookback} time steps x {self.model.channels} variables, standardised",
            "output": f"batch x {self.model.horizon} time steps x {self.model.channels} variables, standardised",
        }


def other_source(
    model: nn.Module, name: str, classifier_options: bool, int8: bool
) -> EnlargementSource | SeriesSource | None:
    """The source of inputs for one of the other networks; None for any other model.

    Args:
        model: the network to be exported.
        name: what messages call it.
        classifier_options: whether normalisation or probabilities are asked for.
        int8: whether eight-bit weights are.

    Raises MetamixerError for those, and for point clouds.
    """
    if isinstance(model, FFNetPoints):
        raise MetamixerError(
            f"{name} cannot be exported: which points are neighbours is found anew for every cloud, by sorting and"
            " searching, and no runtime's graph holds that; it runs with PyTorch alone"
        )
    if not isinstance(model, (FFNetSR, FFNetTSF)):
        return None
    if classifier_options or int8:
        raise MetamixerError(
            f"{name} is no picture classifier: it is exported in fp32 or fp16, without normalisation, softmax and int8"
        )
    return EnlargementSource(model, name) if isinstance(model, FFNetSR) else SeriesSource(model, name)


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


def example_input(model: FFNetSR | FFNetTSF | PackedClouds, batch: int, size: int | None) -> Tensor:
    """What one call is timed on; its size, a picture's side, a window's rows or a cloud's points, is ``shape[-2]``.

    Args:
        model: the network.
        batch: pictures, windows or clouds.
        size: another size than the usual one; windows have none.

    Raises MetamixerError for windows of another size.
    """
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, FFNetSR):
        side = size or SIDE
        return torch.rand(batch, 3, side, side, generator=generator)
    if isinstance(model, FFNetTSF):
        if size not in (None, model.lookback):
            raise MetamixerError(f"the network reads windows of {model.lookback} rows, not of {size}")
        return windows(model, batch)
    points = size or _POINTS
    feat = torch.rand(batch, points, model.network.in_channels, generator=generator)
    return torch.cat([feat, _surface(points).expand(batch, -1, -1)], -1)


def _surface(points: int) -> Tensor:
    """``points × 3`` cells of a hilly ground, one above each square, as a scanner sees surfaces."""
    side = int((points - 1) ** 0.5) + 1
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    z = (10 * (torch.sin(x / 15) + torch.cos(y / 20))).long() + 20
    return torch.stack([x, y, z], -1).view(-1, 3)[:points]
