"""Read the samples that the sampler asks for, in worker processes."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from metamixer.data.reading import Reader, ReadingEndedError
from metamixer.errors import MetamixerError
from metamixer.tasks.sharing import processes
from metamixer.tasks.task import Task
from metamixer.train.sampler import BatchSampler, Key


class Batch(NamedTuple):
    """What a task collated, and the samples' indices."""

    indices: list[int]
    data: Any


class TaskLoader(Reader):
    """Batches of a task. Unreadable samples raise their one sentence, from worker processes too.

    Every sample is augmented, and every batch collated, under a seed of its own that follows from the run's seed, the
    epoch and the place in it, so the batches depend neither on the number of workers nor on where a run was taken up.
    The workers live as long as the loader; ``sampler.set_epoch`` decides what the next iteration reads.

    Attributes:
        ended: what is to be said of a worker that has died where several processes train together. This one then reads
            by itself until all have agreed to stop, as the others wait for its part of the next step.
    """

    ended: str = ""

    def __init__(self, task: Task, sampler: BatchSampler, workers: int, pin_memory: bool) -> None:
        self.batches = sampler
        super().__init__(
            _Samples(task),
            batch_sampler=sampler,
            collate_fn=_Collate(task),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Any:  # an iterator over Batch
        done = 0
        try:
            for batch in super().__iter__():
                done += 1
                yield batch
        except ReadingEndedError as error:
            if processes() == 1:
                raise
            self.ended = str(error)
        if self.ended:
            for keys in islice(iter(self.batches), done, None):
                batch = self.collate_fn([self.dataset[key] for key in keys])
                if isinstance(batch, MetamixerError):
                    raise batch
                yield batch


class _Samples(Dataset[Any]):
    def __init__(self, task: Task) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, key: Key) -> Any:
        with _seeded(key.seed):
            try:
                return key, self.task.sample(key.sample, key.size)
            except MetamixerError as error:  # as data: a DataLoader would wrap it in the worker's traceback
                return key, error


class _Collate:
    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, samples: Sequence[tuple[Key, Any]]) -> Any:
        error = next((sample for _, sample in samples if isinstance(sample, MetamixerError)), None)
        if error is not None:
            return error
        keys, contents = zip(*samples, strict=True)
        with _seeded(_another(keys[0].seed)):
            return Batch([key.sample for key in keys], self.task.collate(contents))


def _another(seed: int) -> int:
    """A seed that follows from ``seed``, but whose numbers have nothing to do with those of that."""
    return int(np.random.SeedSequence((seed, 1)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of the CPU seeded inside the block, and as they were after it."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed the accelerator's too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
