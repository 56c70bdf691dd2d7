"""Merge a trained model for inference: fewer layers, the same function."""

from __future__ import annotations

from copy import deepcopy

import torch
from timm.utils import reparameterize_model
from torch import nn

from metamixer.backbones.base import Backbone, DistilledHead
from metamixer.deploy.fold_norms import fold_norms
from metamixer.mixers.conv_norm import affine_of


def merge(model: nn.Module) -> nn.Module:
    """A merged copy of ``model`` in evaluation mode; the model itself is left as it is.

    Folds every norm, parallel kernel, layer scale and linear chain that the modules know to fold (their ``fuse`` and
    ``reparameterize``), averages two classifiers into one, and folds a last norm into the classifier. In other people's
    networks batch norms go into the convolutions before them. Exact up to rounding. A merged model cannot be trained
    further in a meaningful way.
    """
    merged = reparameterize_model(deepcopy(model).eval(), inplace=True)
    if not isinstance(merged, Backbone):
        fold_norms(merged)
    else:
        _merge_heads(merged)
        _fold_final_norm(merged)
    return merged


@torch.no_grad()
def _merge_heads(model: Backbone) -> None:
    """The average of two linear classifiers is one linear classifier."""
    head = model.head
    if isinstance(head, DistilledHead) and isinstance(head.fc, nn.Linear):
        head.fc.weight.add_(head.fc_dist.weight).div_(2)
        head.fc.bias.add_(head.fc_dist.bias).div_(2)
        head.fc_dist = None


@torch.no_grad()
def _fold_final_norm(model: Backbone) -> None:
    """An affine map per channel commutes with averaging over positions, so it moves behind the pooling."""
    fc = model.head.fc
    averages = getattr(model.head.global_pool, "pool_type", "") == "avg"
    if isinstance(model.final, nn.BatchNorm2d) and isinstance(fc, nn.Linear) and averages:
        scale, shift = affine_of(model.final)
        fc.bias.add_(fc.weight @ shift)
        fc.weight.mul_(scale)
        model.final = nn.Identity()
