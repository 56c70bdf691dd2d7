"""Dynamic spectrum mixer, DSM (arXiv 2309.06721): generated weights select bands of the cosine spectrum.

No code was released for the paper. Everything beyond its abstract (interaction in the DCT domain, a generated
weight per band that is conditioned on the input, log-linear cost) is this project's own reconstruction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metamixer.mixers.conv_norm import ConvNorm, draw_weights
from metamixer.mixers.framework import MetaMixer
from metamixer.mixers.registry import register_mixer
from metamixer.ops import dct2, idct2
from metamixer.ops.constants import constant
from metamixer.ops.precision import in_float32


@register_mixer("dsm")
class DynamicSpectrumMixer(MetaMixer):
    """``P(D⁻¹(W(V) ⊙ D(V)))`` with V = 1×1 convolution of the input, D the 2-D DCT and W generated band weights.

    Bands are placed in *normalised* frequency u/H and v/W, so one set of parameters serves every resolution, and are
    narrow at low frequencies, where pictures hold most of their energy. W is smooth: a ``bands × bands`` grid per
    group of channels, interpolated linearly to the H × W coefficients. The grid comes from the spectrum itself: the
    mean log-magnitude in every band and the mean of every channel go through a small network, so each image gets
    its own filters.

    Args:
        dim: channels, a multiple of ``groups``.
        groups: channel groups, each with its own band weights.
        bands: bands per axis.
        hidden: units of the generator, a quarter of ``dim`` but at least 16 by default.
        dynamic: False replaces the generated grid by a learned one, the same for every image (for ablation).

    Raises ValueError where ``dim`` is no multiple of ``groups``.
    """

    reads_input = ("lift",)

    def __init__(
        self, dim: int, groups: int = 8, bands: int = 5, dynamic: bool = True, hidden: int | None = None
    ) -> None:
        if dim % groups:
            raise ValueError(f"dsm needs channels in multiples of groups={groups}, got {dim}")
        super().__init__(project=ConvNorm(dim, dim))
        self.groups = groups
        self.bands = bands
        self.dynamic = dynamic
        self.lift = ConvNorm(dim, dim)
        cells = groups * bands * bands
        if dynamic:
            hidden = hidden or max(16, dim // 4)
            self.generator = nn.Sequential(nn.Linear(cells + dim, hidden), nn.GELU(), nn.Linear(hidden, cells))
            # Zeros pass every band as it is.
            nn.init.zeros_(self.generator[2].weight)
            nn.init.zeros_(self.generator[2].bias)
        else:
            self.grid = nn.Parameter(torch.zeros(groups, bands, bands))

    def init_weights(self) -> None:
        starts_at_zero = self.generator[2] if self.dynamic else None
        for module in self.modules():
            if module is not starts_at_zero:
                draw_weights(module)

    def query(self, x: Tensor) -> Tensor:
        return self.value(x)[0]

    def key(self, x: Tensor) -> Tensor:
        return self._grid(*self.value(x))

    def interact(self, spectrum: Tensor, grid: Tensor) -> Tensor:
        return interpolated(spectrum, grid)

    def activate(self, weights: Tensor) -> Tensor:
        # Between 0 (band removed) and 2 (doubled); a fresh mixer passes every band as it is.
        return 2 * weights.sigmoid()

    def value(self, x: Tensor) -> tuple[Tensor, torch.dtype]:
        lifted = self.lift(x)
        return dct2(lifted), lifted.dtype

    def aggregate(self, coefficients: Tensor, value: tuple[Tensor, torch.dtype]) -> Tensor:
        spectrum, dtype = value
        grouped = spectrum.unflatten(1, (self.groups, -1)) * coefficients
        return idct2(grouped.flatten(1, 2)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        # Straight line: query and value are the same spectrum, and the key is read off it.
        value = self.value(x)
        gains = self.activate(self.interact(value[0], self._grid(*value)))
        return self.project(self.aggregate(gains, value))

    def _grid(self, spectrum: Tensor, dtype: torch.dtype) -> Tensor:
        """``B × G × bands × bands`` band weights, generated from the spectrum (or learned, where static)."""
        if not self.dynamic:
            return self.grid.expand(spectrum.shape[0], -1, -1, -1)
        described = description(spectrum, self.groups, self.bands).to(dtype)
        return self.generator(described).reshape(-1, self.groups, self.bands, self.bands)


@in_float32
def interpolated(spectrum: Tensor, grid: Tensor) -> Tensor:
    """Band grid ``B × G × bands × bands`` interpolated to one weight per coefficient, ``B × G × 1 × H × W``."""
    sizes = spectrum.shape[-2:]
    over_height, over_width = (constant(band_interpolation, n, grid.shape[-1], like=spectrum) for n in sizes)
    return (over_height @ grid.to(spectrum.dtype) @ over_width.mT).unsqueeze(2)


@in_float32
def description(spectrum: Tensor, groups: int, bands: int) -> Tensor:
    """``B × (G·bands² + C)``: log of the mean magnitude in every band, and every channel's mean over the map."""
    height, width = spectrum.shape[-2:]
    over_height, over_width = (constant(band_interpolation, n, bands, like=spectrum) for n in (height, width))
    magnitude = spectrum.abs().unflatten(1, (groups, -1)).mean(2)
    # A band that holds no coefficient of a small map has weight zero everywhere; it then reads as empty.
    share_height = over_height / over_height.sum(0).clamp_min(1e-6)
    share_width = over_width / over_width.sum(0).clamp_min(1e-6)
    energy = share_height.mT @ magnitude @ share_width
    mean = spectrum[..., 0, 0] / torch.sym_sqrt(height * width)
    return torch.cat([(energy + 1e-3).log().flatten(1), mean], dim=1)


def band_interpolation(size: int, bands: int, device: torch.device) -> Tensor:
    """``n × bands``: linear interpolation from bands to the n coefficients of an axis; every row sums to one.

    Band k is centred at normalised frequency (k / (bands - 1))², coefficient u lies at u / n.
    """
    frequency = torch.arange(size, device=device).to(torch.float64) / size
    centres = [(k / max(1, bands - 1)) ** 2 for k in range(bands)]
    columns = []
    for k, centre in enumerate(centres):
        column = torch.ones_like(frequency)
        if k > 0:
            column = torch.minimum(column, (frequency - centres[k - 1]) / (centre - centres[k - 1]))
        if k < bands - 1:
            column = torch.minimum(column, (centres[k + 1] - frequency) / (centres[k + 1] - centre))
        columns.append(column.clamp_min(0))
    return torch.stack(columns, dim=1)
