"""Which samples come in which batch: the same whatever the processes, and from any batch on."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamixer.train.sampler import BatchSampler, Key, Share

SIZES = (64, 32, 48, 96)


def keys(sampler: BatchSampler) -> list[list[Key]]:
    return list(sampler)


@given(
    samples=st.integers(8, 200),
    batch=st.integers(1, 8),
    processes=st.integers(1, 4),
    parts=st.integers(1, 3),
    sizes=st.sampled_from([(None,), (32,), SIZES]),
    repeats=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_the_processes_share_the_very_batches_of_one(
    samples: int, batch: int, processes: int, parts: int, sizes: tuple, repeats: int, epoch: int
) -> None:
    unit = processes * parts
    batch *= unit

    def sampler(share: Share) -> BatchSampler:
        result = BatchSampler(samples, batch, 7, lambda epoch: sizes, repeats, share)
        result.set_epoch(epoch)
        return result

    shares = [keys(sampler(Share(process, processes, parts))) for process in range(processes)]
    counts = {len(share) for share in shares}
    assert len(counts) == 1  # equally many steps
    assert counts == {len(sampler(Share(0, processes, parts)))}
    assert all(len({len(share[i]) for share in shares}) == 1 for i in range(counts.pop()))  # of equal size
    assert all(len({key.size for share in shares for key in share[i]}) == 1 for i in range(len(shares[0])))

    if unit == 1 or len(sizes) == 1:  # otherwise one process alone rounds the batches of other sizes less
        whole = keys(sampler(Share()))
        together = [
            {key for share in shares for part in share[i : i + parts] for key in part}
            for i in range(0, len(shares[0]), parts)
        ]
        assert together == [set(step) for step in whole]


def test_every_sample_comes_once_and_the_incomplete_batch_is_left_out() -> None:
    sampler = BatchSampler(23, 5, seed=0)
    seen = Counter(key.sample for step in sampler for key in step)
    assert len(sampler) == sampler.steps(0) == 4
    assert len(seen) == 20
    assert set(seen.values()) == {1}


def test_epochs_and_seeds_differ_in_order_and_augmentation_and_repeat_themselves() -> None:
    def epoch(number: int, seed: int) -> list[list[Key]]:
        sampler = BatchSampler(50, 10, seed)
        sampler.set_epoch(number)
        return keys(sampler)

    assert epoch(1, 3) == epoch(1, 3)
    for other in (epoch(2, 3), epoch(1, 4)):
        assert [key.sample for step in other for key in step] != [key.sample for step in epoch(1, 3) for key in step]
        assert not {key.seed for step in other for key in step} & {key.seed for step in epoch(1, 3) for key in step}
    seeds = [key.seed for step in epoch(1, 3) for key in step]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("parts", [1, 2])
def test_an_epoch_can_be_taken_up_at_any_batch(parts: int) -> None:
    sampler = BatchSampler(101, 8, 1, lambda epoch: SIZES, share=Share(1, 2, parts))
    sampler.set_epoch(5)
    whole = keys(sampler)
    for skip in range(len(whole) // parts + 1):
        sampler.set_epoch(5, skip)
        assert keys(sampler) == whole[skip * parts :]
        assert len(sampler) == len(whole) - skip * parts


def test_batches_of_other_sizes_hold_equally_many_pixels() -> None:
    sampler = BatchSampler(20_000, 128, 0, lambda epoch: SIZES, share=Share(0, 2, 2))
    counts: dict[int, set[int]] = {}
    for step in sampler:
        counts.setdefault(step[0].size or 0, set()).add(4 * len(step))
    assert counts == {64: {128}, 32: {512}, 48: {224}, 96: {56}}  # 227.6 and 56.9, rounded down to fours


def test_repeats_stand_in_one_batch_on_different_processes_with_seeds_of_their_own() -> None:
    shares = [keys(BatchSampler(48, 12, 0, repeats=3, share=Share(process, 3))) for process in range(3)]
    for step in zip(*shares, strict=True):
        first, *others = ([key.sample for key in part] for part in step)
        assert all(other == first for other in others)
        assert len({key.seed for part in step for key in part}) == 12
    assert len({key.sample for share in shares for step in share for key in step}) == 16


def test_sizes_follow_the_epoch() -> None:
    sampler = BatchSampler(16, 8, 0, lambda epoch: (32 + 16 * epoch,))
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert {key.size for step in sampler for key in step} == {32 + 16 * epoch}
        assert {len(step) for step in sampler} == {8}  # a size alone is its own reference
