"""Memory that a training step frees and the next one asks for again."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that were freed, for the rest of the process; True where that is possible.

    By default glibc takes every block above 32 MiB fresh from the system and gives it back when it is freed. A training
    step on the CPU that allocates the same large activations again and again then spends up to half of its time in the
    kernel, clearing pages. Memory stays with the process, somewhat more of it than was needed at one time, since kept
    blocks fit less well than fresh ones. Only for Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
