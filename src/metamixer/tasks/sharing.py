"""Work that the processes of a distributed run do together: each a part of it, and failing all or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch.distributed as dist

from metamixer.errors import MetamixerError

T = TypeVar("T")


def processes() -> int:
    """Processes of the distributed run that this one belongs to; 1 outside of any."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def from_all(told: T) -> list[T]:
    """What every process tells, in their order; all of them call it."""
    count = processes()
    if count == 1:
        return [told]
    heard: list[Any] = [None] * count
    dist.all_gather_object(heard, told)
    return heard


@contextmanager
def all_or_none() -> Iterator[None]:
    """A MetamixerError that one process raises inside the block is raised in all of them, at the block's end.

    Otherwise the others would wait for it in their next common operation. All processes enter the block; they must not
    wait for each other inside.
    """
    own: MetamixerError | None = None
    try:
        yield
    except MetamixerError as error:
        own = error
    sentence = next(filter(None, from_all(own and str(own))), None)
    if own is not None:
        raise own
    if sentence is not None:
        raise MetamixerError(sentence)


def shared(count: int, work: Callable[[range], T], share: bool = True) -> list[T]:
    """What each process makes of its part of ``count`` samples: ``work`` of every so-many-th index.

    Each index comes once, and the parts differ by one sample at most. With ``share`` all processes of the run call
    this, and all get the whole list; without it, and outside of a distributed run, this one does everything.

    Raises MetamixerError, the same in all processes, where ``work`` does in one of them.
    """
    if not share or processes() == 1:
        return [work(range(count))]
    with all_or_none():
        own = work(range(process(), count, processes()))
    return from_all(own)


def in_order(parts: Sequence[Sequence[T]]) -> list[T]:
    """One list, by index, of what :func:`shared` gave where ``work`` made one thing of each sample."""
    missing = object()
    return [one for one in chain.from_iterable(zip_longest(*parts, fillvalue=missing)) if one is not missing]  # type: ignore[misc]
