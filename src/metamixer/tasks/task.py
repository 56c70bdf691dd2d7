"""What the training loop knows of a task."""

from __future__ import annotations

import ast
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metamixer.errors import SettingError
from metamixer.limits import check
from metamixer.schemas import ARGUMENTS

__all__ = ["SettingError", "Task", "key_values", "model_arguments", "require"]


def require(holds: bool, sentence: str) -> None:
    """Raise SettingError with this sentence unless ``holds``."""
    if not holds:
        raise SettingError(sentence)


def key_values(texts: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from texts ``key=value``; a value that is no Python literal stays text."""
    arguments: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        require(bool(key and equals), f"{text!r} must be written as key=value")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two of brackets without end
            arguments[key] = value
    return arguments


def model_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """:func:`key_values` for a network: those that shape one of ours are in the ranges that files keep to as well.

    Raises SettingError for one that is not, such as a million blocks.
    """
    arguments = key_values(texts)
    for name in arguments.keys() & ARGUMENTS.keys():
        try:
            arguments[name] = check(name, arguments[name], ARGUMENTS[name])
        except SettingError as error:
            raise SettingError(f"model_args: {error}") from None
    return arguments


class Task(ABC):
    """Samples, a loss and a metric: all that the training loop needs; it knows nothing else of what it trains.

    A task is a dataclass whose fields are its settings (the model, the data folder, the augmentation …), so that a
    recipe can be printed, changed from the command line and written to the run's folder. Nothing is read before
    ``open``.
    """

    #: The entry of ``evaluate``'s result that picks the best checkpoint, and whether more of it is better.
    metric: ClassVar[str]
    greater_is_better: ClassVar[bool] = True

    #: Processes that ``evaluate`` reads with, which the loop sets: 0 for none, None for what suits the machine.
    workers: int | None = None

    #: Samples that a network with batch norms must see at once; 1 where a sample holds many things to take a mean of.
    smallest_part: ClassVar[int] = 2

    @abstractmethod
    def open(self) -> None:
        """Find and check the data. Raises MetamixerError for all that can be known to be wrong before training."""

    @abstractmethod
    def create_model(self) -> nn.Module:
        """The network, fitted to the data; called after ``open``."""

    @abstractmethod
    def __len__(self) -> int:
        """Training samples."""

    @abstractmethod
    def sample(self, index: int, size: int | None) -> Any:
        """One training sample, read and augmented.

        Random choices are drawn from the global generators of torch, NumPy and Python, which the caller seeds for every
        sample: what comes back depends on nothing but them and the arguments, in whatever process it runs.

        Args:
            index: which sample, from 0 to ``len(self) - 1``.
            size: side in pixels that the batch asks for, where batches differ in size; None for the task's own.

        Raises MetamixerError for a file that cannot be read.
        """

    def describe(self, index: int) -> str:
        """What a person calls a training sample, such as its file; for messages."""
        return f"sample {index}"

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of tensors (in tuples, lists or dicts) of what ``sample`` returned.

        Random choices are drawn as in ``sample``; the caller seeds the generators for every batch.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor | dict[str, Tensor]:
        """The loss of a batch on the model's device, a scalar; or its named parts, whose sum is minimised.

        The names are the same for every batch of a run: processes add up what they have under one name, so a part that
        a batch has nothing for is a zero with gradients of zero, not left out. (The loop says so where they differ.)

        ``model`` is called (not one of its other methods), as it may be wrapped for several processes. Random choices
        are drawn from the global generators, whose state a checkpoint holds.
        """

    @abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Metrics on the validation data, ``metric`` among them; leaves the model's mode as it was.

        All processes of a distributed run call it with equal weights and share the work (:mod:`.sharing`): each sample
        counts once, and all get the same metrics.
        """

    @abstractmethod
    def save(self, model: nn.Module, path: Path) -> None:
        """Write a file that ``mm.create_model`` or ``mm.build`` loads, with what prediction needs beside weights."""

    def test_part(self) -> str | None:
        """What the validation samples are called where they are a test part; None where they are none.

        The best epoch is chosen on them, so that their result is no test any more, which has to be said.
        """
        return None

    def notes(self) -> list[str]:
        """Sentences for the end of a run, such as which files were skipped; all processes call it, one says them."""
        return []
