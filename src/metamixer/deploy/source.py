"""What an export is made of: a model, what goes into it, what its outputs are called, and when two answers agree."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from metamixer.data.transforms import Preprocessing, evaluation_transform
from metamixer.deploy.graph import WithPreprocessing
from metamixer.deploy.pictures import CHECKED, Picture, open_given, pictures_in, synthetic
from metamixer.deploy.report import Agreement, Array, agreement, as_list, different
from metamixer.deploy.settings import Precision, Selection
from metamixer.deploy.targets import in_one_line
from metamixer.errors import MetamixerError
from metamixer.finite import check_outputs
from metamixer.heads.base import Size
from metamixer.limits import Side, check, require_memory_for_pictures
from metamixer.models import class_names

Answer = list[Array]
"""All outputs of one call."""


class Source(ABC):
    """A model to be exported, checked and timed.

    Args:
        model: the network.
        name: what messages, report and metadata call it.

    Attributes:
        input_name: name of the graph's input.
        outputs: names of the graph's outputs, in their order.
        classifies: whether the one output holds the scores of classes.
        checked: pictures, or whatever goes in, that an export is compared on, unless the user names others.
        rectangles: whether a height and a width may be asked for.
        refuses: what makes no sense for it, from the name of an option to the reason.
        selection: of a detector that chooses among its boxes inside the graph, how it does that.
    """

    input_name = "pictures"
    outputs: tuple[str, ...] = ()
    classifies = False
    checked = 16
    rectangles = False
    refuses: ClassVar[Mapping[str, str]] = {}
    selection: Selection | None = None

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.name = name

    @property
    def own_size(self) -> int | None:
        """Side of the model's own pictures in pixels; None where it has no size of its own."""
        return None

    def require_room(self, size: int | Size | None, count: int, at_once: int = 1) -> None:
        """Raises MetamixerError where pictures are too large, or so many of them do not fit into memory."""
        size = self.own_size if size is None else size
        if self.input_name == "pictures" and size is not None:
            height, width = (
                check("image_size", side, Side) for side in (size if isinstance(size, tuple) else [size] * 2)
            )
            require_memory_for_pictures(count, height, width, at_once)

    @contextmanager
    def first_call(self, inputs: Tensor) -> Iterator[None]:
        """Around the first call: what a network says of a size that it cannot take becomes one sentence."""
        try:
            yield
        except MetamixerError:
            raise
        except Exception as error:  # networks complain in their own ways
            size = self.side(inputs)
            raise MetamixerError(
                f"{self.name} does not take {self.input_name} of size {size} ({in_one_line(error)})"
            ) from error

    def check_outputs(self, answer: Answer) -> None:
        """Raises MetamixerError where the network gives another number of outputs, or values that are not finite."""
        if len(answer) != len(self.outputs):
            raise MetamixerError(f"{self.name} gives {len(answer)} outputs where {len(self.outputs)} can be exported")
        check_outputs(answer, self.model, self.name, self.outputs)

    def graph(self, model: nn.Module) -> nn.Module:
        """What computes the raw outputs of the model, or of a merged copy of it."""
        return model

    def written(self, graph: nn.Module) -> nn.Module:
        """What is given to a target's ``write``, of :meth:`graph`."""
        return graph

    @abstractmethod
    def inputs(self, size: int | Size | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """What an export is checked on, a batch: the given pictures, else what suits the model."""

    @abstractmethod
    def example(self, batch: int, size: int | None) -> Tensor:
        """Random numbers that one call is timed on."""

    def side(self, inputs: Tensor) -> int:
        """The size in a report: the shorter side of pictures in pixels."""
        return min(inputs.shape[-2:])

    def metadata(self, inputs: Tensor, sizes: tuple[int, int] | None) -> dict[str, str]:
        """As text: architecture, what goes in and what comes out."""
        return {"producer": "metamixer", "architecture": self.name}

    def expected(self, graph: nn.Module, inputs: Tensor) -> Answer:
        """What an artefact of :meth:`written` must say, by PyTorch."""
        return answer_of(graph, inputs)

    def agreement(self, expected: Sequence[Answer], answers: Sequence[Answer], weights: Precision) -> Agreement:
        """How far the answers of a runtime are from those expected, over all calls."""
        found = agreement_of_all(expected, answers, self.outputs)
        return found if self.classifies else replace(found, top1=float("nan"))


class ClassifierSource(Source):
    """Pictures for a backbone with its classifier, or for any module that takes maps and gives scores.

    Args:
        model: ``B × C × S × S`` to ``B × classes``.
        name: as of :class:`Source`.
        normalise: build the normalisation into the graph.
        softmax: give probabilities.

    Raises MetamixerError where the model does not know its normalisation.
    """

    classifies = True
    checked = CHECKED
    refuses: ClassVar[Mapping[str, str]] = {"nms": "it gives no boxes"}

    def __init__(self, model: nn.Module, name: str, normalise: bool, softmax: bool) -> None:
        super().__init__(model, name)
        self.normalise = normalise
        self.softmax = softmax
        self.outputs = ("probabilities" if softmax else "logits",)
        self.cfg: Any = getattr(model, "pretrained_cfg", None)
        self.channels: int = getattr(model, "in_chans", self.cfg["input_size"][0] if self.cfg else 3)
        if normalise and (self.cfg is None or self.channels != len(self.cfg["mean"])):
            raise MetamixerError(f"{name} does not say how its pictures are normalised")

    @property
    def own_size(self) -> int | None:
        return self.cfg["input_size"][-1] if self.cfg else None

    def graph(self, model: nn.Module) -> nn.Module:
        if not (self.normalise or self.softmax):
            return model
        mean, std = (self.cfg["mean"], self.cfg["std"]) if self.normalise else (None, None)
        return WithPreprocessing(model, mean, std, self.softmax).eval()

    def inputs(self, size: int | Size | None, pictures: str | Path | Sequence[Picture], most: int) -> Tensor:
        """``N × C × S × S`` float32 as the graph takes them: the given pictures, else photographs, else noise."""
        assert not isinstance(size, tuple)
        if isinstance(pictures, (str, Path)):
            pictures = pictures_in(pictures, most)
        if self.cfg is None:
            if size is None or pictures:
                raise MetamixerError("a model without a timm pretrained_cfg needs image_size and takes no pictures")
            return synthetic(self.channels, size)
        preprocessing = Preprocessing.of(self.cfg, size)
        if self.channels != 3:
            if pictures:
                raise MetamixerError(f"{self.name} takes {self.channels} channels, pictures have 3")
            return synthetic(self.channels, preprocessing.image_size)
        transform = evaluation_transform(preprocessing)
        pixels = torch.stack([transform(picture) for picture in open_given(pictures, most)])
        return pixels.float() if self.normalise else preprocessing.normalise(pixels)

    def example(self, batch: int, size: int | None) -> Tensor:
        return uniform(batch, self.channels, *2 * (size or self.own_size or 224,))

    def metadata(self, inputs: Tensor, sizes: tuple[int, int] | None) -> dict[str, str]:
        """As text: architecture, classes, preprocessing, what goes in and what comes out."""
        size = self.side(inputs)
        metadata = super().metadata(inputs, sizes) | {
            "image_size": str(size) if sizes is None else f"{sizes[0]}-{sizes[1]}",
            "input": "RGB, 0 to 255" if self.normalise else "normalised",
            "output": self.outputs[0],
        }
        if self.cfg is not None:
            metadata["preprocessing"] = json.dumps(asdict(Preprocessing.of(self.cfg, size)))
            names = class_names(self.model)
            if names is not None:
                metadata["classes"] = json.dumps(names)
                metadata["class_names"] = json.dumps(class_names(self.model, readable=True))
        return metadata


@torch.inference_mode()
def answer_of(graph: nn.Module, inputs: Tensor) -> Answer:
    """All outputs of a module. Raises MetamixerError where they are no tensors."""
    outputs = as_list(graph(inputs))
    for output in outputs:
        if not isinstance(output, Tensor):
            raise MetamixerError(f"a graph's outputs are tensors, and the model gives a {type(output).__name__}")
    return [output.numpy() for output in outputs]


def agreement_of_all(expected: Sequence[Answer], answers: Sequence[Answer], names: Sequence[str] = ()) -> Agreement:
    """The largest differences of any output over all calls, see :func:`metamixer.deploy.report.agreement`.

    A shape that differs, a missing output or a value that is not finite counts as an infinite difference.

    Args:
        expected: at least one call.
        answers: of the same calls.
        names: of the outputs, in their order; otherwise they are numbered.
    """
    for wanted, got in zip(expected, answers, strict=True):
        if len(wanted) != len(got):
            return different(f"gives {len(got)} outputs where PyTorch gives {len(wanted)}")
    count = len(expected[0])
    if len(names) != count:
        names = ["its output"] if count == 1 else [f"output {i}" for i in range(count)]
    found: Agreement | None = None
    for place, name in enumerate(names):
        one = _agreement_of_one([answer[place] for answer in expected], [answer[place] for answer in answers], name)
        found = one if found is None else found.worse(one)
    assert found is not None
    return found


def _agreement_of_one(expected: list[Array], answers: list[Array], name: str) -> Agreement:
    for wanted, got in zip(expected, answers, strict=True):
        if wanted.shape != got.shape:
            return agreement(wanted, got, name)
    return agreement(np.concatenate(expected), np.concatenate(answers), name)


def uniform(*shape: int) -> Tensor:
    """Random numbers from 0 to 1, the same on every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))
