"""Matrix product or FFT: the one place where that is decided.

Both give the same result up to rounding. A product with a small constant matrix is faster on small maps
and is the only form that an exported graph may hold (no complex tensor); an FFT wins on large maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from metamixer.ops.tracing import is_tracing

Choice = Literal["auto", "matmul", "fft"]

# Height + width above which an FFT is taken. A product costs H + W multiplications a pixel, an FFT about log(H * W)
# of slower ones, and a DCT by FFT must reorder and turn its samples besides. The numbers come from a CPU
# (benchmarks/transforms.md: DFT crosses over at about 56², DCT is still 3.6 times slower by FFT at 256²); GPUs, whose
# matrix units are faster still, have not been measured and follow the same rule.
_CROSSOVER = {"dft": 120, "dct": 2048}
_forced: ContextVar[Choice] = ContextVar("forced transform", default="auto")


@contextmanager
def use_transform(choice: Choice) -> Iterator[None]:
    """Force ``"matmul"`` or ``"fft"`` inside a ``with`` block, for tests and benchmarks; ``"auto"`` is the rule.

    Other threads keep their own choice. Raises ValueError for another word.
    """
    if choice not in ("auto", "matmul", "fft"):
        raise ValueError(f"transform must be 'auto', 'matmul' or 'fft', not {choice!r}")
    token = _forced.set(choice)
    try:
        yield
    finally:
        _forced.reset(token)


def prefers_fft(transform: Literal["dft", "dct"], height: int, width: int) -> bool:
    """Whether a map of this size is transformed by FFT rather than by matrix product."""
    if is_tracing():
        return False  # complex tensors must not reach an exported or compiled graph
    forced = _forced.get()
    if forced != "auto":
        return forced == "fft"
    return height + width > _CROSSOVER[transform]
