"""Super-resolution: folders of pictures, L1 and Fourier loss, PSNR and SSIM on luma, enlarged pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.data.degradation import imresize
from metamixer.data.files import replace_when_done
from metamixer.data.picture_pairs import PicturePairs
from metamixer.data.pictures import read_picture, to_rgb
from metamixer.data.source import is_test_name
from metamixer.errors import MetamixerError
from metamixer.limits import Count, Depth, NotNegative, Side, Upscaling, Width, check_settings
from metamixer.networks import FFNetSR, create_network, save_network, upscale
from metamixer.printing import as_utf8
from metamixer.tasks.evaluation_mode import evaluation_mode
from metamixer.tasks.sharing import in_order, shared
from metamixer.tasks.task import Task, require

FOURIER_WEIGHT = 0.02  # of the released settings
LUMA = np.array([65.481, 128.553, 24.966]) / 255  # ITU-R BT.601, 8-bit RGB to luma from 16 to 235


@dataclass
class SuperResolution(Task):
    """Pictures ``scale`` times as large.

    Args:
        model: ``ffnet_sr_light``, ``ffnet_sr`` or ``ffnet_sr_nano``.
        data: folder of large pictures, at any depth; or a folder with ``train`` and ``val`` in it.
        validation: folder of large pictures to validate with, where ``data`` has no ``val``.
        small: folder of the small training pictures; by default they are made bicubically (MATLAB's ``imresize``).
        small_validation: the same for the validation pictures.
        scale: 2, 3 or 4.
        dim: channels of the network; its own number by default.
        depth: blocks of the network; its own number by default.
        checkpoint: weights to start from.
        crop: side of the random crops in pixels of the large picture; smaller pictures are mirrored up to it.
        fourier_weight: weight of the Fourier loss beside L1.
        passes: times that each picture counts in an epoch, as crops are small and folders may be too.
        tile: side of the tiles in which validation pictures are enlarged.
    """

    model: str = "ffnet_sr_light"
    data: str = ""
    validation: str | None = None
    small: str | None = None
    small_validation: str | None = None
    scale: Upscaling = 2
    dim: Width | None = None
    depth: Depth | None = None
    checkpoint: str | None = None
    crop: Side = 192
    fourier_weight: NotNegative = FOURIER_WEIGHT
    passes: Count = 1
    tile: Side = 192

    metric = "psnr"
    smallest_part = 1

    def __post_init__(self) -> None:
        check_settings(self)
        require(self.crop >= self.scale, "crop must be at least the scale")

    def open(self) -> None:
        root, validation = Path(self.data), self.validation
        if validation is None:
            if not os.path.isdir(root / "train") or not os.path.isdir(root / "val"):
                raise MetamixerError(
                    f"{root} needs the folders 'train' and 'val', or another folder of pictures as validation"
                )
            root, validation = root / "train", str(root / "val")
        self._train = PicturePairs(root, self.scale, self.small)
        self._train.check_sizes()
        self._validation = PicturePairs(validation, self.scale, self.small_validation)
        self._validation.check_sizes(border=self.scale)
        self._bicubic: tuple[float, float] | None = None
        self._test_part = str(validation) if is_test_name(Path(validation).name) else None

    def test_part(self) -> str | None:
        return self._test_part

    def create_model(self) -> FFNetSR:
        sizes = {"dim": self.dim, "depth": self.depth}
        given = {name: size for name, size in sizes.items() if size is not None}
        model = create_network(self.model, self.checkpoint, scale=self.scale, **given)
        if not isinstance(model, FFNetSR):
            raise MetamixerError(f"{self.model} enlarges no pictures")
        return model

    def __len__(self) -> int:
        return len(self._train) * self.passes

    def sample(self, index: int, size: int | None) -> tuple[Tensor, Tensor]:
        """A random crop of the small and the large picture, uint8 ``3 × s × s`` and ``3 × scale·s × scale·s``."""
        small, large = self._train[index % len(self._train)]
        side = max(1, (self.crop if size is None else size) // self.scale)
        small, large = _at_least(small, side), _at_least(large, side * self.scale)
        top = int(torch.randint(small.shape[0] - side + 1, ()))
        left = int(torch.randint(small.shape[1] - side + 1, ()))
        turn = torch.rand(3) < 0.5
        return _crop(small, top, left, side, turn), _crop(
            large, top * self.scale, left * self.scale, side * self.scale, turn
        )

    def describe(self, index: int) -> str:
        return str(self._train.large[index % len(self._train)])

    def collate(self, samples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        small, large = zip(*samples, strict=True)
        return torch.stack(small), torch.stack(large)

    def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        small, large = (pictures.float() / 255 for pictures in batch)
        out = model(small).float()
        return {"l1": F.l1_loss(out, large), "fourier": self.fourier_weight * fourier_loss(out, large)}

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Means over the validation pictures: ``psnr`` and ``ssim``, and of bicubic enlargement for comparison."""
        assert isinstance(model, FFNetSR)

        def ours(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> tuple[float, float]:
            return _quality_of(model, low, high, self.tile)

        def bicubic(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> tuple[float, float]:
            return quality(imresize(low, self.scale), high, self.scale)

        if self._bicubic is None:
            self._bicubic = self._mean_quality(bicubic)
        psnr, ssim = self._mean_quality(ours)
        return {"psnr": psnr, "ssim": ssim, "bicubic_psnr": self._bicubic[0], "bicubic_ssim": self._bicubic[1]}

    def save(self, model: nn.Module, path: Path) -> None:
        save_network(model, path)

    def _mean_quality(self, of: Callable[..., tuple[float, float]]) -> tuple[float, float]:
        """Of all validation pairs; the processes of a distributed run look at a part each."""
        pairs = self._validation
        return _mean(in_order(shared(len(pairs), lambda indices: [of(*pairs[i]) for i in indices])))


def fourier_loss(out: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of the real and the imaginary parts of both pictures' spectra (unnormalised rFFT2)."""
    difference = torch.fft.rfft2(out - target)  # of the difference: the transform is linear
    return torch.view_as_real(difference).abs().mean()


def _at_least(picture: NDArray, side: int) -> NDArray:
    """Mirrored at the right and the bottom to at least that many pixels each way."""
    missing = [(0, max(0, side - length)) for length in picture.shape[:2]]
    return np.pad(picture, (*missing, (0, 0)), mode="symmetric") if any(m for _, m in missing) else picture


def _crop(picture: NDArray, top: int, left: int, side: int, turn: Tensor) -> Tensor:
    """A square as ``3 × side × side``, in one of its eight orientations."""
    part = torch.from_numpy(picture[top : top + side, left : left + side].copy()).permute(2, 0, 1)
    part = part.flip([axis for axis in (1, 2) if turn[axis]])
    return (part.mT if turn[0] else part).contiguous()


# --- Quality ---------------------------------------------------------------------------------------------------------


def luma(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Luma (Y of BT.601, 16 to 235, not rounded) of 8-bit ``H × W × 3``, as the literature measures on."""
    return picture @ LUMA + 16


def psnr(first: NDArray, second: NDArray) -> float:
    """Peak signal-to-noise ratio in dB of two arrays whose peak is 255; infinite where they are equal."""
    error = float(np.mean((first.astype(np.float64) - second) ** 2))
    return 10 * float(np.log10(255**2 / error)) if error else float("inf")


def ssim(first: NDArray, second: NDArray) -> float:
    """Structural similarity of two ``H × W`` arrays from 0 to 255 (Wang et al. 2004).

    Gaussian window of 11 × 11 with deviation 1.5, K1 = 0.01, K2 = 0.03; windows that leave the picture do not count.
    Raises ValueError for pictures smaller than the window.
    """
    if min(first.shape) < 11 or first.shape != second.shape:
        raise ValueError(f"two pictures of one size, at least 11 × 11, are compared, got {first.shape}, {second.shape}")
    window = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    a, b = (torch.from_numpy(np.asarray(picture, np.float64)) for picture in (first, second))
    moments = torch.stack([a, b, a * a, b * b, a * b])[:, None]
    moments = F.conv2d(F.conv2d(moments, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))[:, 0]
    mean_a, mean_b, square_a, square_b, product = moments
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean())


def quality(picture: NDArray[np.uint8], truth: NDArray[np.uint8], border: int) -> tuple[float, float]:
    """PSNR (dB) and SSIM on luma, without ``border`` pixels on each side (by habit the scale).

    SSIM is NaN where too little is left for its window of 11 × 11.
    """
    kept = np.s_[border : picture.shape[0] - border, border : picture.shape[1] - border]
    first, second = luma(picture)[kept], luma(truth)[kept]
    if not first.size:
        raise MetamixerError(f"a picture of {picture.shape[1]} × {picture.shape[0]} pixels is all border")
    return psnr(first, second), ssim(first, second) if min(first.shape) >= 11 else float("nan")


def _mean(rows: list[tuple[float, float]]) -> tuple[float, float]:
    """Of both columns; pictures too small for SSIM do not count in its mean."""
    ratios, similarities = (np.array(column) for column in zip(*rows, strict=True))
    known = similarities[~np.isnan(similarities)]
    return float(ratios.mean()), float(known.mean()) if known.size else float("nan")


@dataclass(frozen=True)
class SuperResolutionMetrics:
    """Mean PSNR (dB) and SSIM on luma of the network and of bicubic enlargement, and the pictures counted."""

    psnr: float
    ssim: float
    bicubic_psnr: float
    bicubic_ssim: float
    count: int


def evaluate_folder(
    model: FFNetSR, data: str | Path, small: str | Path | None = None, tile: int = 192
) -> SuperResolutionMetrics:
    """How well a network enlarges the pictures of a folder, beside bicubic enlargement.

    Args:
        model: the network, used on its device.
        data: folder of large pictures, such as Set5; or one picture.
        small: folder of the small ones; by default they are made bicubically.
        tile: side of the tiles in which they are enlarged.

    Raises MetamixerError as :class:`metamixer.data.picture_pairs.PicturePairs` does, and for pictures that are all
    border.
    """
    scale = model.scale
    pairs, ours, bicubic = PicturePairs(data, scale, small, keep=0), [], []
    pairs.check_sizes(border=scale)
    for i in range(len(pairs)):
        low, high = pairs[i]
        ours.append(_quality_of(model, low, high, tile))
        bicubic.append(quality(imresize(low, scale), high, scale))
    return SuperResolutionMetrics(*_mean(ours), *_mean(bicubic), len(pairs))


def _enlarged(model: FFNetSR, picture: Image.Image, tile: int) -> Image.Image:
    with evaluation_mode(model):
        return upscale(model, picture, tile)


def _quality_of(model: FFNetSR, low: NDArray[np.uint8], high: NDArray[np.uint8], tile: int) -> tuple[float, float]:
    return quality(np.asarray(_enlarged(model, Image.fromarray(low), tile)), high, model.scale)


# --- Results ---------------------------------------------------------------------------------------------------------

_PANEL, _MARGIN, _FONT_SIZE = 480, 12, 18


@dataclass(frozen=True)
class Enlargement:
    """A picture enlarged by a network.

    Args:
        picture: the enlarged picture, 8-bit RGB.
        original: the picture as it was.
        bicubic: the same enlargement by bicubic interpolation.
        source: path of the original, if it came from a file.
    """

    picture: Image.Image = field(repr=False)
    original: Image.Image = field(repr=False)
    bicubic: Image.Image = field(repr=False)
    source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All but the pictures, ready for JSON."""
        return {
            "source": self.source and as_utf8(self.source),
            "from": list(self.original.size),
            "to": list(self.picture.size),
        }

    def draw(self) -> Image.Image:
        """The middle of the picture, at most 480 pixels each way: its pixels repeated, bicubic, and the network."""
        width, height = (min(side, _PANEL) for side in self.picture.size)
        left, top = (self.picture.width - width) // 2, (self.picture.height - height) // 2
        middle = (left, top, left + width, top + height)
        scale = self.picture.width / self.original.width
        read = (left / scale, top / scale, (left + width) / scale, (top + height) / scale)
        panels = {
            "pixels": self.original.resize((width, height), Image.Resampling.NEAREST, read),
            "bicubic": self.bicubic.crop(middle),
            "network": self.picture.crop(middle),
        }
        step = max(width, 80) + _MARGIN
        sheet = Image.new("RGB", (len(panels) * step + _MARGIN, height + _FONT_SIZE + 3 * _MARGIN), "white")
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), _FONT_SIZE)
        for i, (name, panel) in enumerate(panels.items()):
            x = _MARGIN + i * step
            draw.text((x, _MARGIN), name, "black", font)
            sheet.paste(panel, (x, _FONT_SIZE + 2 * _MARGIN))
        return sheet

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write ``NAME.png``, enlarged, and ``NAME_comparison.png`` into a folder; returns their paths."""
        written = []
        for path, picture in {f"{name}.png": self.picture, f"{name}_comparison.png": self.draw()}.items():
            with replace_when_done(Path(folder, path)) as temporary:
                picture.save(temporary, "PNG")
            written.append(Path(folder, path))
        return written


def enlarge(model: FFNetSR, picture: Image.Image | str | Path, tile: int = 192) -> Enlargement:
    """A picture ``model.scale`` times as large, with the bicubic enlargement beside it.

    Both are held whole, at 3 bytes a pixel, twice while they are copied; what else it takes is the memory of one tile,
    whatever the size.

    Args:
        model: the network (left in its mode, used on its device).
        picture: a picture or its path, of any mode: grey becomes RGB, transparency is laid over white.
        tile: side of the tiles in input pixels; smaller pictures are one tile.

    Raises MetamixerError for a file that is no picture.
    """
    original = to_rgb(picture) if isinstance(picture, Image.Image) else read_picture(picture)
    pixels = np.asarray(original)
    enlarged = _enlarged(model, original, tile)
    bicubic = Image.fromarray(imresize(pixels, model.scale))
    source = None if isinstance(picture, Image.Image) else str(picture)
    return Enlargement(enlarged, original, bicubic, source)
