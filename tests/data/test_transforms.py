"""Augmentation on 8-bit pixels: shapes, ranges, what each change does, and that chance is all in the seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from metamixer.data import augment
from metamixer.data.augment import jitter, rand_augment, three_augment, trivial_augment
from metamixer.data.mixing import mix
from metamixer.data.transforms import (
    EvaluationTransform,
    Preprocessing,
    TrainingTransform,
    pixels_of,
    random_crop,
    training_transform,
)

FILL = (124, 116, 104)


def photograph(width: int = 60, height: int = 45) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.stack([x, y, (x * 7 + y * 5) % 1], -1)).round().astype(np.uint8))


def seed(number: int) -> None:
    random.seed(number)
    torch.manual_seed(number)


EVERYTHING: dict[str, dict[str, object]] = {
    "plain": {},
    "random interpolation": {"interpolation": "random"},
    "rand": {"policy": "rand"},
    "trivial": {"policy": "trivial"},
    "three": {"policy": "three", "colour_jitter": 0.3},
    "jitter": {"colour_jitter": 0.4},
    "erase": {"erase": 1.0},
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_shapes_and_seeds(name: str) -> None:
    transform = training_transform(32, crop_scale=(0.2, 1.0), **EVERYTHING[name])  # type: ignore[arg-type]

    def drawn(number: int, size: int | None = None) -> Tensor:
        seed(number)
        return transform(photograph(), size)

    for number in range(8):
        assert drawn(number).shape == (3, 32, 32)
        assert drawn(number).dtype == torch.uint8
        torch.testing.assert_close(drawn(number), drawn(number), rtol=0, atol=0)
    assert len({drawn(number).numpy().tobytes() for number in range(8)}) == 8
    assert drawn(0, 48).shape == (3, 48, 48)


def test_pictures_and_their_pixels_give_the_same() -> None:
    transform = training_transform(24, colour_jitter=0.2, policy="rand")
    for number in range(10):
        seed(number)
        expected = transform(photograph())
        seed(number)
        torch.testing.assert_close(transform(pixels_of(photograph())), expected, rtol=0, atol=0)


def test_pixels_of() -> None:
    torch.testing.assert_close(pixels_of(photograph()), F.pil_to_tensor(photograph()), rtol=0, atol=0)


def test_normalising_leaves_what_is_given() -> None:
    whole = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    preprocessing = Preprocessing(4)
    floats = whole / 255
    for pictures in (whole, floats):
        before = pictures.clone()
        normalised = preprocessing.normalise(pictures)
        torch.testing.assert_close(pictures, before, rtol=0, atol=0)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        torch.testing.assert_close(normalised, (floats - mean) / std)


def test_the_whole_picture_is_only_resized() -> None:
    transform = training_transform(30, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    square = photograph(60, 60)
    expected = F.resize(F.pil_to_tensor(square), [30, 30], antialias=True)
    torch.testing.assert_close(transform(square), expected, rtol=0, atol=0)


def test_half_are_mirrored() -> None:
    square = photograph(20, 20)
    plain = F.pil_to_tensor(square)
    transform = training_transform(20, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    seed(0)
    mirrored = [torch.equal(transform(square), plain.flip(-1)) for _ in range(200)]
    assert 70 < sum(mirrored) < 130
    seed(0)
    assert all(torch.equal(transform(square), plain.flip(-1) if flip else plain) for flip in mirrored)


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    st.tuples(st.floats(0.1, 1), st.floats(1, 10)),
    st.randoms(use_true_random=False),
)
def test_crops_lie_within_the_picture(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], chance: random.Random
) -> None:
    random.seed(chance.randrange(10**6))
    left, top, w, h = random_crop(width, height, (min(scale), max(scale)), ratio)
    assert 0 <= left <= left + w <= width
    assert 0 <= top <= top + h <= height
    assert w >= 1
    assert h >= 1


def test_crops_follow_scale_and_ratio() -> None:
    seed(0)
    crops = [random_crop(500, 400, (0.2, 0.6), (0.5, 2.0)) for _ in range(2000)]
    areas = np.array([w * h / 200_000 for _, _, w, h in crops])
    shapes = np.array([w / h for _, _, w, h in crops])
    assert 0.19 < areas.min() < 0.25
    assert 0.5 < areas.max() < 0.61
    assert 0.49 < shapes.min() < 0.55
    assert 1.8 < shapes.max() < 2.05
    assert abs(np.log(shapes).mean()) < 0.05
    # Where no such shape fits, it is the largest in the middle.
    assert random_crop(1000, 10, (1.0, 1.0), (0.5, 2.0)) == (490, 0, 20, 10)
    assert random_crop(10, 1000, (1.0, 1.0), (0.5, 2.0)) == (0, 490, 10, 20)


def test_erased_noise_becomes_standard_normal() -> None:
    mean, std = (0.5, 0.4, 0.6), (0.1, 0.12, 0.08)  # black and white are four deviations away
    transform = TrainingTransform(200, (1.0, 1.0), False, erase=1.0, mean=mean, std=std)
    grey = Image.new("RGB", (200, 200), (1, 1, 1))
    shares, noise = [], []
    for number in range(20):
        seed(number)
        pixels = transform(grey)
        erased = (pixels != 1).any(0)
        rows, columns = erased.any(1).nonzero().flatten(), erased.any(0).nonzero().flatten()
        box = pixels[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        shares.append(box[0].numel() / 200**2)
        noise.append((box.flatten(1).float() / 255 - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None])
    normal = torch.cat(noise, 1)
    torch.testing.assert_close(normal.mean(1), torch.zeros(3), rtol=0, atol=0.02)
    torch.testing.assert_close(normal.std(1), torch.ones(3), rtol=0, atol=0.02)
    assert 0.015 < min(shares) < max(shares) < 0.35


def test_erasing_leaves_what_came_in() -> None:
    given_pixels = pixels_of(photograph(30, 30))
    before = given_pixels.clone()
    seed(1)
    TrainingTransform(30, (1.0, 1.0), False, crop_ratio=(1.0, 1.0), erase=1.0)(given_pixels)
    torch.testing.assert_close(given_pixels, before, rtol=0, atol=0)


# ---------------------------------------------------------------- policies

# The names of timm's rand-m9-mstd0.5-inc1, in the order of our table.
NAMES = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)


@pytest.mark.parametrize("level", [0.0, 3.0, 9.0])
@pytest.mark.parametrize("name", NAMES)
def test_every_change_is_timms(name: str, level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data.auto_augment import AugmentOp

    change = augment._CHANGES[NAMES.index(name)]
    picture = photograph()
    theirs = set()
    for draw in (0.1, 0.9):  # either way, where there are two
        monkeypatch.setattr(random, "random", lambda draw=draw: draw)
        hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR}
        theirs.add(AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)(picture).tobytes())
    ours = set()
    for draw in (0.1, 0.9):
        monkeypatch.setattr(random, "random", lambda draw=draw: draw)
        ours.add(change(picture, level / 10, FILL).tobytes())
    assert ours == theirs


def test_rand_augment_draws_every_change_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []

    def noted(number: int) -> Callable[..., Image.Image]:
        def change(picture: Image.Image, level: float, fill: tuple[int, ...]) -> Image.Image:
            seen.append((number, level))
            return picture

        return change

    monkeypatch.setattr(augment, "_CHANGES", tuple(noted(number) for number in range(15)))
    seed(0)
    for _ in range(1500):
        rand_augment(photograph(4, 4), 9.0, 0.5, 2, FILL)
    assert 1400 < len(seen) < 1600
    assert {number for number, _ in seen} == set(range(15))
    levels = np.array([level for _, level in seen])
    assert levels.max() == 1.0
    assert math.isclose(np.median(levels), 0.9, abs_tol=0.01)
    assert math.isclose(np.quantile(levels, 0.1587), 0.85, abs_tol=0.01)  # one deviation below
    seen.clear()
    rand_augment(photograph(4, 4), 5.0, 0.0, 3, FILL, probability=1.0)
    assert [level for _, level in seen] == [0.5] * 3


def test_the_strongest_posterising_leaves_something() -> None:
    posterise = augment._CHANGES[NAMES.index("PosterizeIncreasing")]
    assert np.asarray(posterise(photograph(), 1.0, FILL)).max() == 128


def test_three_augment_takes_one_of_three() -> None:
    picture = photograph()
    plain = np.asarray(picture).astype(int)
    kinds = {"grey": 0, "solarised": 0, "blurred": 0}
    for number in range(90):
        seed(number)
        changed = np.asarray(three_augment(picture)).astype(int)
        if (changed[..., 0] == changed[..., 1]).all():
            kinds["grey"] += 1
        elif (changed == np.where(plain < 128, plain, 255 - plain)).all():
            kinds["solarised"] += 1
        else:
            assert changed[..., 2].std() <= plain[..., 2].std()
            kinds["blurred"] += 1
    assert min(kinds.values()) > 15


def test_jitter_stays_within_its_strength() -> None:
    grey = Image.new("RGB", (4, 4), (100, 100, 100))  # of which contrast and saturation change nothing
    values = []
    for number in range(200):
        seed(number)
        values.append(jitter(grey, 0.4).getpixel((0, 0))[0])
    assert 59 <= min(values) < 66
    assert 134 < max(values) <= 141
    assert jitter(grey, 0.0).getpixel((0, 0)) == (100, 100, 100)


def test_trivial_augment_changes_most_pictures() -> None:
    seed(0)
    picture = photograph()
    changed = [trivial_augment(picture, FILL).tobytes() != picture.tobytes() for _ in range(60)]
    assert sum(changed) > 40


# ---------------------------------------------------------------- mixing


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Every picture holds the number of its class."""
    labels = torch.tensor([0, 1, 2, 3, 4])
    return labels.float().view(5, 1, 1, 1).expand(5, 3, 16, 16).clone(), labels


def test_without_mixing_labels_are_smoothed_only(batch: tuple[Tensor, Tensor]) -> None:
    pictures, targets = mix(*batch, num_classes=6, smoothing=0.1)
    torch.testing.assert_close(pictures, batch[0])
    expected = torch.full((5, 6), 0.1 / 6)
    expected[range(5), range(5)] += 0.9
    torch.testing.assert_close(targets, expected)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_say_what_the_pictures_hold(batch: tuple[Tensor, Tensor], mixup: float, cutmix: float) -> None:
    seed(0)
    kinds = set()
    for _ in range(40):
        pictures, targets = mix(*batch, num_classes=5, mixup=mixup, cutmix=cutmix)
        torch.testing.assert_close(targets.sum(1), torch.ones(5))
        # The mean of a picture is the mean of its labels; both mixes only ever take the neighbour.
        torch.testing.assert_close(pictures.mean((1, 2, 3)), targets @ torch.arange(5.0), rtol=0, atol=1e-5)
        whole = all(len(picture.unique()) == 1 for picture in pictures)
        kinds.add("mixup" if whole else "cutmix")
    expected = {"mixup"} if not cutmix else {"cutmix", "mixup"} if mixup else {"cutmix"}
    assert kinds - expected in (set(), {"mixup"} if cutmix and not mixup else set())  # a cut may be empty
    assert expected <= kinds


def test_mixing_leaves_the_given_batch_and_some_batches(batch: tuple[Tensor, Tensor]) -> None:
    seed(0)
    before = batch[0].clone()
    mixed = [not torch.equal(mix(*batch, num_classes=5, mixup=0.8, probability=0.5)[0], before) for _ in range(100)]
    assert 30 < sum(mixed) < 70
    torch.testing.assert_close(batch[0], before)


@pytest.mark.parametrize("crop_pct", [1.0, 0.8])
def test_a_squash_keeps_the_whole_picture_as_timm_does(crop_pct: float) -> None:
    """The 384-pixel weights of CAS-ViT were measured so."""
    from timm.data import create_transform

    picture = photograph(90, 50)
    how = dict(interpolation="bicubic", crop_mode="squash", crop_pct=crop_pct)
    ours = EvaluationTransform(Preprocessing(32, **how))(picture)  # type: ignore[arg-type]
    theirs = create_transform(32, normalize=False, **how)(picture)
    assert ours.shape == (3, 32, 32)
    # Pillow and torchvision resize alike up to rounding.
    assert (ours.int() - (theirs * 255 if theirs.is_floating_point() else theirs).int()).abs().max() <= 2
    centred = EvaluationTransform(Preprocessing(32, crop_pct, interpolation="bicubic"))(picture)
    assert (ours.int() - centred.int()).abs().max() > 10


def test_normalising_is_torchvisions_to_the_last_bit() -> None:
    preprocessing = Preprocessing(16, mean=(0.1, 0.5, 0.7), std=(0.3, 0.2, 0.25))
    pictures = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    floats = F.to_dtype(pictures, torch.float32, scale=True)
    expected, before = F.normalize(floats, list(preprocessing.mean), list(preprocessing.std)), floats.clone()
    assert torch.equal(preprocessing.normalise(pictures), expected)
    assert torch.equal(preprocessing.normalise(floats), expected)
    assert torch.equal(floats, before)  # what is given stays as it is
