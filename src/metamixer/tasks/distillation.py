"""A teacher's answers as a second target (arXiv 1503.02531; hard labels as in DeiT, arXiv 2012.12877, section 4)."""

from __future__ import annotations

import difflib
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.data.transforms import Preprocessing
from metamixer.errors import MetamixerError
from metamixer.finite import check_weights
from metamixer.models import check_tag, list_models, load_model
from metamixer.weights.timm_weights import timm_weights

Distillation = Literal["hard", "soft"]


class Teacher:
    """A trained classifier that sees the student's pictures, normalised as it was trained.

    Args:
        name: a checkpoint's path, a model's name (of this library or of timm, whose default weights are then fetched),
            or ``name.tag``.
        classes: how many the student has; the teacher must have as many.
        size: side in pixels of what the teacher sees; None for the student's pictures as they are, or for the
            teacher's own size where it takes no other.

    Raises MetamixerError for an unknown name, weights that cannot be had or are not finite, and another number of
    classes.
    """

    def __init__(self, name: str, classes: int, size: int | None = None) -> None:
        self.model = load_teacher(name).eval().requires_grad_(False)
        cfg: Any = self.model.pretrained_cfg
        if self.model.num_classes != classes:
            raise MetamixerError(f"the teacher {name} knows {self.model.num_classes} classes, the data has {classes}")
        check_weights(self.model, f"the teacher {name}")  # the likeliest of classes that are NaN would be the first one
        self.preprocessing = Preprocessing.of(cfg)
        own_size = self.preprocessing.image_size if cfg.get("fixed_input_size") else None
        self.size = size or own_size
        self._device: torch.device | None = None

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Logits ``B × classes`` of pictures ``B × 3 × S × S``: uint8, or floats from 0 to 1."""
        if pictures.device != self._device:  # once: looking at every weight takes time in every step
            self._device = pictures.device
            self.model.to(self._device)
        inputs = self.preprocessing.normalise(pictures)
        if self.size is not None and self.size != inputs.shape[-1]:
            inputs = F.interpolate(inputs, size=(self.size, self.size), mode="bicubic", antialias=True)
        return self.model(inputs).float()


def load_teacher(name: str) -> nn.Module:
    """A classifier by path or name, of this library first, else of timm. Raises MetamixerError."""
    ours = name.partition(".")[0] in list_models() or "/" in name or name.endswith((".safetensors", ".pth", ".tar"))
    if ours:
        return load_model(name)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 1)
        raise MetamixerError(f"unknown teacher {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    check_tag(name)
    overlay = timm_weights(name)
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:  # of whatever reads the file: all of them its user's matter
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        file = overlay.get("file", "its file")
        raise MetamixerError(f"the weights of the teacher {name} cannot be loaded from {file} ({reason})") from None


def distillation_loss(student: Tensor, teacher: Tensor, kind: Distillation, temperature: float = 1.0) -> Tensor:
    """How far the student's logits ``B × C`` are from the teacher's.

    "hard" is the cross-entropy with the teacher's likeliest class. "soft" is the Kullback–Leibler divergence of the
    distributions at ``temperature``, times its square, averaged over the batch. (DeiT's code and those that borrow
    from it divide by the number of classes too, which makes the term vanishingly small.)
    """
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(1))
    ours, theirs = F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
