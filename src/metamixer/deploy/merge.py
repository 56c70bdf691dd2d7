"""Merge a trained model for inference: fewer layers, the same function."""

from __future__ import annotations

from copy import deepcopy

from timm.utils import reparameterize_model
from torch import nn

from metamixer.backbones.base import Backbone
from metamixer.deploy.fold_norms import fold_norms
from metamixer.errors import MetamixerError
from metamixer.finite import called, check_weights, strange_weight


def merge(model: nn.Module) -> nn.Module:
    """A merged copy of ``model`` in evaluation mode; the model itself is left as it is.

    Folds every norm, parallel kernel, layer scale and linear chain that the modules know to fold (their ``fuse`` and
    ``reparameterize``), averages two classifiers into one, and folds a last norm into the classifier. In other people's
    networks batch norms go into the convolutions before them. Exact up to rounding. A merged model cannot be trained
    further in a meaningful way.

    Raises MetamixerError where weights hold NaN or infinity, before merging or by it.
    """
    check_weights(model)
    merged = deepcopy(model).eval()
    if isinstance(merged, Backbone):
        merged = merged.merge_in_place()
    else:
        merged = reparameterize_model(merged, inplace=True)
        fold_norms(merged)
    weight = strange_weight(merged)
    if weight is not None:
        raise MetamixerError(
            f"merging {called(model)} makes values that are not finite in {weight}: a batch norm that goes into it has "
            "a variance of zero or less, or the product overflows"
        )
    return merged
