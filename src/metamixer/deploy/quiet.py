"""Converters talk a lot; what they say matters only when they fail."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing through to the terminal inside a ``with`` block, from Python or from native code.

    Output belongs to the whole process: while several threads are inside such blocks, and as long as one is, nothing
    gets through from any; with the last one it is as before the first.
    """
    global _inside
    with _lock:
        if not _inside:
            _silence.enter_context(_silent())
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _silence.close()


_lock = threading.RLock()  # a signal's handler may export too
_inside = 0  # blocks that are being run, in all threads
_silence = ExitStack()


@contextmanager
def _silent() -> Iterator[None]:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with tempfile.TemporaryFile() as sink:
        kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
        try:
            for descriptor in kept:
                os.dup2(sink.fileno(), descriptor)
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        finally:
            for descriptor, copy in kept.items():
                os.dup2(copy, descriptor)
                os.close(copy)
