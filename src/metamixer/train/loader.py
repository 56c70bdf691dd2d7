"""Read the samples that the sampler asks for, in worker processes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from metamixer.errors import MetamixerError
from metamixer.tasks.task import Task
from metamixer.train.sampler import BatchSampler, Key


class Batch(NamedTuple):
    """What a task collated, and the samples' indices."""

    indices: list[int]
    data: Any


class TaskLoader(DataLoader[Any]):
    """Batches of a task. Unreadable samples raise their one sentence, from worker processes too.

    Every sample is augmented, and every batch collated, under a seed of its own that follows from the run's seed, the
    epoch and the place in it, so the batches depend neither on the number of workers nor on where a run was taken up.
    The workers live as long as the loader; ``sampler.set_epoch`` decides what the next iteration reads.
    """

    def __init__(self, task: Task, sampler: BatchSampler, workers: int, pin_memory: bool) -> None:
        super().__init__(
            _Samples(task),
            batch_sampler=sampler,
            collate_fn=_Collate(task),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_loop,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else each iteration draws from the global one, and resuming would differ
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
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


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C reaches a terminal's whole process group; workers outlive it, so that the loop can save and end."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
