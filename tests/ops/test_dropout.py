"""Dropout: how many are dropped, which, from which random numbers, and the gradient of what is kept."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from metamixer.ops.dropout import bernoulli_like, drop_, gelu_of_kept_


@pytest.mark.parametrize("probability", [0.0, 0.15, 0.7, 0.99999, 1.0])
def test_the_share_of_ones(probability: float) -> None:
    drawn = bernoulli_like(torch.empty(1000, 1001), probability)
    assert drawn.shape == (1000, 1001)
    assert drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    deviation = (probability * (1 - probability) / drawn.numel()) ** 0.5
    assert drawn.mean().item() == pytest.approx(probability, abs=5 * deviation + 2**-16)
    if 0 < probability < 1:  # at every place of the generators' numbers alike, and independent of the neighbour
        for place in range(4):
            assert drawn.flatten()[place::4].mean().item() == pytest.approx(probability, abs=10 * deviation + 2**-16)
        for part in drawn.chunk(5):
            assert part.mean().item() == pytest.approx(probability, abs=10 * deviation + 2**-16)
        both = (drawn[:, 1:] * drawn[:, :-1]).mean().item()
        assert both == pytest.approx(probability**2, abs=10 * deviation + 2**-15)


def test_the_streams_of_random_numbers_differ() -> None:
    first, *others = bernoulli_like(torch.empty(4000), 0.5).chunk(4)
    assert all((first != other).float().mean().item() == pytest.approx(0.5, abs=0.08) for other in others)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (17, 1)])
def test_it_follows_the_seed_and_the_type(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, dtype=torch.float64)
    torch.manual_seed(1)
    first, second = bernoulli_like(x, 0.5), bernoulli_like(torch.empty(100), 0.5)
    torch.manual_seed(1)
    again = bernoulli_like(x, 0.5)
    assert again.shape == shape
    assert again.dtype == torch.float64
    assert torch.equal(again, first)
    assert torch.equal(bernoulli_like(torch.empty(100), 0.5), second)
    assert not torch.equal(bernoulli_like(torch.empty(100), 0.5), second)


def test_the_numbers_do_not_depend_on_the_threads() -> None:
    drawn = []
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        torch.manual_seed(2)
        drawn.append(bernoulli_like(torch.empty(1003), 0.3))
    torch.set_num_threads(threads)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_gelu_of_what_is_kept_has_its_values_and_gradient(rate: float) -> None:
    x = (3 * torch.randn(50, 60)).requires_grad_()
    torch.manual_seed(3)
    found = gelu_of_kept_(x.clone(), rate)
    torch.manual_seed(3)
    expected = F.gelu(x) * (1 - bernoulli_like(x, rate)) if rate else F.gelu(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (found == 0).float().mean().item() == pytest.approx(rate, abs=0.05)
    cotangent = torch.randn_like(found)
    grads = [torch.autograd.grad(out, x, cotangent)[0] for out in (found, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=0)


def test_drop_leaves_the_others_as_they_are() -> None:
    x = torch.randn(50, 60).requires_grad_()
    found = drop_(x.clone(), 0.4)
    kept = found != 0
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.05)
    assert torch.equal(found[kept], x[kept])
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(grad, kept.float())
    assert torch.equal(drop_(x.clone(), 0.0), x)


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
