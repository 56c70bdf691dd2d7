"""Bicubic reduction against MATLAB's own output, stored, and against the formula written out for single pixels."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from metamixer.data.degradation import imresize

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "matlab_imresize.npz")


@pytest.mark.parametrize("name", ["down_x2", "down_x3", "down_x4", "up_x2", "up_x3"])
def test_equals_matlab(name: str) -> None:
    """The top left corner of "baboon" and of what MATLAB made of the whole picture.

    Pictures and outputs are those of github.com/xinntao/matlab_functions_verification (imresize of im2double, stored by
    imwrite). Only pixels that do not read beyond the stored corner are compared; at the top and the left the mirrored
    border is among them.
    """
    direction, factor = name.split("_x")
    scale = int(factor) if direction == "up" else 1 / int(factor)
    expected = GOLDEN[name]
    found = imresize(GOLDEN["baboon"], scale)[: expected.shape[0], : expected.shape[1]]
    assert np.array_equal(found, expected)
    # Floating point from 0 to 1 is the same, not rounded.
    fine = imresize(GOLDEN["baboon"] / 255, scale)[: expected.shape[0], : expected.shape[1]]
    assert np.abs(255 * fine.clip(0, 1) - expected).max() <= 0.5 + 1e-9


def by_hand(row: np.ndarray, scale: float, place: int) -> float:
    """One output pixel of a row: the cubic kernel at every input pixel of an endlessly mirrored row."""
    stretch = max(1.0, 1 / scale)
    centre = (place + 0.5) / scale - 0.5
    total = weight_sum = 0.0
    for i in range(math.floor(centre - 2 * stretch) - 2, math.ceil(centre + 2 * stretch) + 3):
        x = abs(centre - i) / stretch
        weight = (
            1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0
        )  # fmt: skip
        mirrored = np.concatenate([row, row[::-1]])
        total += weight * mirrored[i % (2 * len(row))]
        weight_sum += weight
    return total / weight_sum


@pytest.mark.parametrize(("length", "scale"), [(12, 0.5), (13, 1 / 3), (9, 0.25), (7, 2), (10, 0.7), (5, 3), (1, 0.5)])
def test_equals_the_formula(length: int, scale: float) -> None:
    row = np.random.default_rng(0).normal(size=length)
    expected = [by_hand(row, scale, place) for place in range(math.ceil(length * scale))]
    np.testing.assert_allclose(imresize(row[None], scale)[0], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(imresize(row[:, None], scale)[:, 0], expected, rtol=0, atol=1e-12)


def test_channels_are_independent_and_constants_stay() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (17, 12, 3), dtype=np.uint8)
    apart = [imresize(picture[..., channel], 1 / 3) for channel in range(3)]
    assert np.array_equal(imresize(picture, 1 / 3), np.stack(apart, -1))
    np.testing.assert_allclose(imresize(np.full((9, 9), 3.5), 1 / 4), 3.5, rtol=1e-14)


def test_bands_do_not_matter_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    whole = imresize(picture, 3)
    monkeypatch.setattr("metamixer.data.degradation._BAND", 20_000)
    tracemalloc.start()
    banded = imresize(picture, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(banded, whole)
    assert peak < 1.5 * whole.nbytes  # in float64 alone it would be eight times that


def test_a_corner_with_context_is_that_of_the_whole() -> None:
    picture = np.random.default_rng(0).normal(size=(60, 60))
    whole = imresize(picture, 0.5)
    np.testing.assert_allclose(imresize(picture[:40, :40], 0.5)[:17, :17], whole[:17, :17], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("picture", "scale"),
    [(np.zeros((0, 4)), 0.5), (np.zeros(4), 0.5), (np.zeros((4, 4), np.int64), 0.5), (np.zeros((4, 4)), 0.0)],
)
def test_what_cannot_be_resized(picture: np.ndarray, scale: float) -> None:
    with pytest.raises(ValueError, match=r"picture|scale"):
        imresize(picture, scale)
