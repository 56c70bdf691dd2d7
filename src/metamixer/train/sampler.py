"""Which samples come in which batch, at which size and with which random numbers.

All of it follows from the seed and the epoch alone, whatever the number of processes and workers, so a run can be taken
up at any batch.

Batches may differ in size, as in AFFNet (CVNets' variable batch sampler, arXiv 2110.02178) and CAS-ViT: all processes
draw the same size, and so many samples that memory stays level. (The released samplers take no fewer samples at large
sizes than at the reference, so theirs grows; they also fill the last batch, which here is left out.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Key(NamedTuple):
    """What a dataset is asked for: a sample, its side in pixels (None: the task's own), its augmentation's seed."""

    sample: int
    size: int | None
    seed: int


class Share(NamedTuple):
    """The part of every batch that is this process's: one of ``processes``, worked through in ``parts``."""

    process: int = 0
    processes: int = 1
    parts: int = 1


class BatchSampler(Sampler[list[Key]]):
    """Batches of an epoch: this process's share of each, in parts.

    Samples are shuffled; what is left at the end and fills no batch is left out. All processes draw the same sizes.

    Args:
        samples: number of samples.
        batch_size: samples in a batch over all processes and parts, at the first size of an epoch.
        seed: of order, sizes and augmentation.
        sizes_at: sides of which the batches of an epoch draw one each.
        repeats: how many times a sample comes in one batch.
        share: whose part of the batches.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        seed: int,
        sizes_at: Callable[[int], Sequence[int | None]] = lambda epoch: (None,),
        repeats: int = 1,
        share: Share | None = None,
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.sizes_at = sizes_at
        self.repeats = repeats
        self.share = share or Share()
        self.set_epoch(0)
        self.steps = cache(lambda epoch: len(self._batches(epoch)))
        """Batches in an epoch."""

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The epoch (from 0) that the next iteration runs through, without its first ``skip`` batches."""
        self.epoch, self.skip = epoch, skip

    def smallest_part(self, epochs: int) -> int:
        """The fewest samples that a process works through at once, at any size that these epochs may draw."""
        drawn = (self.sizes_at(epoch) for epoch in range(epochs))
        counts = {self._count(size, sizes[0]) for sizes in drawn for size in sizes}
        return min(counts) // (self.share.processes * self.share.parts)

    def __len__(self) -> int:
        return (self.steps(self.epoch) - self.skip) * self.share.parts

    def __iter__(self) -> Iterator[list[Key]]:
        process, processes, parts = self.share
        random = np.random.default_rng((self.seed, self.epoch, 0))
        order = random.permutation(self.samples)
        if self.repeats > 1:
            order = np.repeat(order, self.repeats)[: self.samples]
        seeds = random.integers(2**63, size=self.samples)
        for size, start, end in self._batches(self.epoch)[self.skip :]:
            # Every so-many-th sample, so that the repeats of one go to different processes.
            mine = range(start + process, end, processes)
            per_part = len(mine) // parts
            for part in range(parts):
                chosen = mine[part * per_part : (part + 1) * per_part]
                yield [Key(int(order[i]), size, int(seeds[i])) for i in chosen]

    def _batches(self, epoch: int) -> list[tuple[int | None, int, int]]:
        """Size, start and end of an epoch's batches."""
        sizes = self.sizes_at(epoch)
        counts = [self._count(size, sizes[0]) for size in sizes]
        random = np.random.default_rng((self.seed, epoch, 1))
        batches: list[tuple[int | None, int, int]] = []
        start = 0
        while True:
            chosen = int(random.integers(len(sizes)))
            end = start + counts[chosen]
            if end > self.samples:
                return batches
            batches.append((sizes[chosen], start, end))
            start = end

    def _count(self, size: int | None, reference: int | None) -> int:
        """Samples in a batch of ``size`` pixels, a multiple of what the processes and parts share."""
        unit = self.share.processes * self.share.parts
        scale = (reference / size) ** 2 if size and reference else 1.0
        return max(unit, int(self.batch_size * scale) // unit * unit)
