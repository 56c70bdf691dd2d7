"""Boxes, masks and class maps follow their picture through every change of it."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from metamixer.data.joint_transforms import (
    Augmentation,
    augment_class_map,
    augment_objects,
    fitted_size,
    pad_masks,
    pad_together,
    padded_size,
)

FILL = (124, 116, 104)


def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A red and a blue rectangle on grey, 90 × 120, far enough apart to tell."""
    picture = torch.full((3, 90, 120), 128, dtype=torch.uint8)
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [70.0, 5.0, 110.0, 85.0]])
    masks = torch.zeros(2, 90, 120, dtype=torch.uint8)
    for mask, box, colour in zip(masks, boxes.int().tolist(), ((255, 0, 0), (0, 0, 255)), strict=True):
        left, top, right, bottom = box
        mask[top:bottom, left:right] = 1
        picture[:, top:bottom, left:right] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    return picture, boxes, torch.tensor([1, 0]), masks


@pytest.mark.parametrize("augmentation", get_args(Augmentation))
@pytest.mark.parametrize("longest", [5 / 3, None])
def test_objects_stay_on_their_pixels(augmentation: Augmentation, longest: float | None) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        picture, boxes, labels, masks = scene()
        sample = augment_objects(
            picture, boxes, labels, masks, shorter=96, longest=longest, augmentation=augmentation, fill=FILL
        )
        height, width = sample["picture"].shape[-2:]
        assert sample["size"].tolist() == [height, width]
        assert longest is not None or (height, width) == (96, 96)
        assert len(sample["boxes"]) == len(sample["labels"]) == len(sample["masks"])
        assert sample["masks"].shape[1:] == (height, width)
        for box, label, mask in zip(sample["boxes"], sample["labels"], sample["masks"], strict=True):
            [around] = masks_to_boxes(mask[None])
            assert (around - box).abs().max() <= 3  # a pixel, enlarged at most three times
            inside = sample["picture"].float()[:, mask.bool()].mean(1)
            red, blue = float(inside[0]), float(inside[2])
            if augmentation != "ssd":  # which swaps channels too
                assert (red > blue) == (int(label) == 1)


def test_pictures_without_objects_are_samples_too() -> None:
    picture, boxes, labels, masks = scene()
    for augmentation in get_args(Augmentation):
        sample = augment_objects(
            picture, boxes[:0], labels[:0], masks[:0], shorter=64, longest=5 / 3, augmentation=augmentation, fill=FILL
        )
        assert sample["boxes"].shape == (0, 4)
        assert len(sample["masks"]) == 0


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 1000), (33, 33)])
def test_proportions_are_kept_within_the_longest_side(size: tuple[int, int]) -> None:
    height, width = fitted_size(size, 96, 5 / 3)
    assert max(height, width) <= 160
    assert min(height, width) == 96 or max(height, width) == 160
    assert height / width == pytest.approx(size[0] / size[1], rel=0.05)
    assert fitted_size(size, 96, None) == (96, 96)


def test_class_maps_stay_on_their_pixels() -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        picture, _, _, masks = scene()
        labels = (masks[0] + 2 * masks[1]).to(torch.uint8)
        part, found = augment_class_map(
            picture, labels, shorter=64, longest=4.0, crop=64, scale=(0.5, 2.0), colours=False, flip=True, fill=FILL
        )
        assert part.shape == (3, 64, 64)
        assert found.shape == (64, 64)
        assert found.dtype == torch.uint8  # as it travels between processes
        assert set(found.unique().tolist()) <= {0, 1, 2, 255}
        assert (part[0][found == 1] > 128).float().mean() > 0.9
        assert (part[2][found == 2] > 128).float().mean() > 0.9
        if (found == 255).any():
            assert (part.permute(1, 2, 0)[found == 255] == torch.tensor(FILL)).all()


def test_batches_are_padded_at_right_and_bottom() -> None:
    pictures = [torch.full((3, 40, 50), 7, dtype=torch.uint8), torch.full((3, 64, 20), 9, dtype=torch.uint8)]
    batch = pad_together(pictures, FILL)
    assert batch.shape == (2, 3, 64, 64)
    assert (batch[0, :, :40, :50] == 7).all()
    assert (batch[0, :, 40:] == torch.tensor(FILL)[:, None, None]).all()
    assert (batch[1, :, :, 20:] == torch.tensor(FILL)[:, None, None]).all()
    masks = pad_masks(torch.ones(2, 40, 50, dtype=torch.uint8), (64, 64))
    assert masks.sum() == 2 * 40 * 50
    assert masks[:, :40, :50].all()


def test_a_picture_by_itself_is_padded_as_in_a_batch_of_its_own() -> None:
    for size, expected in (((100, 150), (128, 160)), ((96, 128), (96, 128)), ((1, 33), (32, 64))):
        assert padded_size(size) == expected
        assert pad_together([torch.zeros(3, *size, dtype=torch.uint8)], FILL).shape[-2:] == expected
    assert padded_size((40, 50), 1) == (40, 50)
