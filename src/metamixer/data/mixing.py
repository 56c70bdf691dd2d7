"""Mixup and CutMix: batches in which two pictures share a label each."""

from __future__ import annotations

import random

from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2


def mix(
    pictures: Tensor,
    labels: Tensor,
    num_classes: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    probability: float = 1.0,
    cutmix_share: float = 0.5,
    smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Blend every picture with its neighbour in the batch, or paste a rectangle of the neighbour into it.

    Args:
        pictures: ``B × C × H × W`` floats, before or after normalisation; they are left as they are.
        labels: ``B`` class indices.
        num_classes: C of the result.
        mixup: alpha of Mixup's Beta distribution (arXiv 1710.09412); 0 for no Mixup.
        cutmix: alpha of CutMix's (arXiv 1905.04899); 0 for no CutMix.
        probability: share of the batches that are mixed.
        cutmix_share: share of the mixed batches that CutMix takes where Mixup is on too.
        smoothing: label smoothing.

    Returns the pictures and ``B × C`` probabilities, for a cross-entropy with soft targets. Random numbers come from
    the global generators of Python and torch; the choices hold for the whole batch.
    """
    if (mixup or cutmix) and random.random() < probability:
        take_cutmix = not mixup or (cutmix and random.random() < cutmix_share)
        mixer = (
            v2.CutMix(alpha=cutmix, num_classes=num_classes)
            if take_cutmix
            else v2.MixUp(alpha=mixup, num_classes=num_classes)
        )
        pictures, targets = mixer(pictures, labels)
    else:
        targets = F.one_hot(labels, num_classes).to(pictures.dtype)
    return pictures, targets * (1 - smoothing) + smoothing / num_classes
