"""FFNetSR: super-resolution with MetaMixer blocks (arXiv 2406.02021), exact to the release."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.fx
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.data.pictures import to_rgb
from metamixer.errors import MetamixerError
from metamixer.mixers.framework import MetaMixer
from metamixer.ops.placement import placed

SCALES = (2, 3, 4)


def _depthwise(dim: int) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


@placed
class SuperResolutionBlock(nn.Module):
    """FFNified attention, then an FFN behind a depthwise convolution, each with a residual.

    Unlike in the recognition networks there is no norm anywhere, and every convolution has a bias.
    """

    def __init__(self, dim: int, expansion: float) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.token_mixer = MetaMixer(
            query=nn.Conv2d(dim, dim, 1), interact=_depthwise(dim), activate=nn.GELU(), aggregate=_depthwise(dim)
        )
        self.channel_mixer = MetaMixer(
            query=_depthwise(dim),
            interact=nn.Conv2d(dim, hidden, 1),
            activate=nn.GELU(),
            aggregate=nn.Conv2d(hidden, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mixer(x)
        return x + self.channel_mixer(x)


@placed
class FFNetSR(nn.Module):
    """``B × 3 × H × W`` to ``B × 3 × scale·H × scale·W``; RGB from 0 to 1, any H and W.

    Args:
        scale: 2, 3 or 4.
        dim: channels.
        depth: number of blocks: 36 in the light network of the paper, 48 in the full one.
        expansion: hidden channels of the channel mixers, as a multiple.
        large_init: begin with larger weights, for short trainings. With PyTorch's own, details are so small where they
            reach a GELU that it halves them and no more, and for hundreds of steps the network stays at what a linear
            filter can do.

    The network adds detail to the picture enlarged by repeating pixels.
    Raises MetamixerError for another scale, for sizes that make no network, and for pictures without pixels or of other
    than three channels.
    """

    def __init__(
        self, scale: int = 2, dim: int = 96, depth: int = 36, expansion: float = 2.0, large_init: bool = False
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise MetamixerError(f"pictures are enlarged by a scale of 2, 3 or 4, not {scale}")
        if dim < 1 or depth < 0 or int(dim * expansion) < 1:
            raise MetamixerError(
                "dim and dim · expansion must be at least 1, depth at least 0, got"
                f" dim={dim}, depth={depth}, expansion={expansion}"
            )
        self.scale = scale
        self.first = nn.Conv2d(3, dim, 3, padding=1)
        self.body = nn.Sequential(*[SuperResolutionBlock(dim, expansion) for _ in range(depth)])
        self.last = nn.Conv2d(dim, 3 * scale**2, 3, padding=1)
        if large_init:
            self._enlarge_weights()

    @torch.no_grad()
    def _enlarge_weights(self) -> None:
        """Variance kept from layer to layer (PyTorch's own is a third of that), on features six times as large."""
        self.first.weight.mul_(6)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(3**0.5)

    @property
    def reach(self) -> int:
        """How many input pixels away a pixel can still matter: one per 3×3 convolution, three of them a block."""
        return 3 * len(self.body) + 2

    def forward(self, x: Tensor) -> Tensor:
        _check_picture(x)
        details = F.pixel_shuffle(self.last(self.body(self.first(x))), self.scale)
        return details + F.interpolate(x, scale_factor=float(self.scale), mode="nearest")


@torch.fx.wrap
def _check_picture(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 3:
        raise MetamixerError(f"super-resolution takes pictures as B × 3 × H × W, got {tuple(x.shape)}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise MetamixerError(f"a picture of {x.shape[2]} × {x.shape[3]} pixels has nothing to enlarge")


@torch.no_grad()
def tiled(model: FFNetSR, picture: Tensor, tile: int = 192, overlap: int | None = 32) -> Tensor:
    """The network's output for pictures of any size, computed tile by tile in bounded memory.

    Args:
        model: the network; tiles are moved to its device and type, the output stays with the picture.
        picture: ``B × 3 × H × W``.
        tile: side of the part of the picture that one tile adds to the output, in input pixels.
        overlap: input pixels that a tile sees beyond that part on every side, as far as the picture goes. From
            ``model.reach`` on the result is that of the whole picture; below, pixels near a seam miss something
            far away, the less the larger it is. None means ``model.reach``, and more than that is never used.

    Returns ``B × 3 × scale·H × scale·W``. Memory beside it: that of one ``tile + 2·overlap`` square's activations.
    Raises MetamixerError for a tile without pixels, a negative overlap, and pictures that the network does not take.
    """
    _check_picture(picture)
    batch, _, height, width = picture.shape
    out = picture.new_empty(batch, 3, model.scale * height, model.scale * width)
    for rows, columns, part in _tiles(model, picture, tile, overlap):
        out[:, :, rows, columns] = part
    return out


def _tiles(model: FFNetSR, picture: Tensor, tile: int, overlap: int | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows and columns of the output, and what the network gives there; uint8 pictures are divided by 255."""
    if tile < 1 or (overlap is not None and overlap < 0):
        raise MetamixerError(f"tiles need at least one pixel and no negative overlap, got {tile} and {overlap}")
    context, scale = model.reach if overlap is None else min(overlap, model.reach), model.scale
    weight = model.first.weight
    height, width = picture.shape[2:]
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            above, before = max(top - context, 0), max(left - context, 0)  # where the tile's input begins
            part = picture[:, :, above : bottom + context, before : right + context]
            enlarged = model((part.float() / 255 if part.dtype == torch.uint8 else part).to(weight))
            inner = enlarged[
                :,
                :,
                scale * (top - above) : scale * (bottom - above),
                scale * (left - before) : scale * (right - before),
            ]
            yield slice(scale * top, scale * bottom), slice(scale * left, scale * right), inner


@torch.no_grad()
def upscale(model: FFNetSR, picture: Image.Image, tile: int = 192, overlap: int | None = 32) -> Image.Image:
    """A picture enlarged by the network, as 8-bit RGB.

    Args:
        model: the network.
        picture: any mode: grey becomes RGB, transparency is laid over white.
        tile, overlap: as for :func:`tiled`.

    Memory: the result at 8 bits, and that of one tile. Raises MetamixerError as :func:`tiled` does.
    """
    pixels = torch.from_numpy(np.array(to_rgb(picture))).permute(2, 0, 1)[None]
    _check_picture(pixels)
    out = np.empty((model.scale * picture.height, model.scale * picture.width, 3), np.uint8)
    for rows, columns, part in _tiles(model, pixels, tile, overlap):
        rounded = part[0].float().clamp(0, 1).mul_(255).round_().byte()
        out[rows, columns] = rounded.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(out)
