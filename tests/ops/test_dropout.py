"""Dropout's mask: how many, which, and from which random numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from metamixer.ops.dropout import kept


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.7, 0.99999])
def test_the_share_that_is_dropped(rate: float) -> None:
    mask = kept(torch.empty(1000, 1001), rate)
    assert mask.shape == (1000, 1001)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    deviation = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert 1 - mask.mean().item() == pytest.approx(rate, abs=5 * deviation + 2**-16)
    if rate:  # at every place of the generator's numbers alike, and independent of the neighbour
        for place in range(4):
            assert 1 - mask.flatten()[place::4].mean().item() == pytest.approx(rate, abs=10 * deviation + 2**-16)
        both = (mask[:, 1:] * mask[:, :-1]).mean().item()
        assert both == pytest.approx((1 - rate) ** 2, abs=10 * deviation + 2**-15)


def test_it_follows_the_seed_and_the_type() -> None:
    like = torch.empty(3, 5, dtype=torch.float64)
    torch.manual_seed(1)
    first, second = kept(like, 0.5), kept(like, 0.5)
    torch.manual_seed(1)
    assert torch.equal(kept(like, 0.5), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.float64


def test_memory_can_be_kept_in_a_process() -> None:
    """In a process of its own, as it cannot be taken back: a large block comes again without new pages."""
    code = """
import resource, torch
from metamixer.ops.allocator import keep_freed_memory
def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(count).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
without, worked = faults(2**24), keep_freed_memory()
faults(2**24 + 2**20)
print(int(worked), without, faults(2**24))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    worked, without, kept_now = (int(number) for number in out.split())
    if not worked:
        pytest.skip("another C library than glibc")
    assert kept_now < without / 10  # 16384 pages of 4 KiB, where pages are that small
