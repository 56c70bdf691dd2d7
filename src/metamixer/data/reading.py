"""Samples read in worker processes that leave signals to whoever asked for the samples, and whose end is said."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from typing import Any
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset

from metamixer.errors import MetamixerError

_OURS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT") if hasattr(signal, name))
_MORE_SHARED_MEMORY = "give /dev/shm more, or ask for fewer --workers (0 needs none)"
_LIKELY = {
    "SIGKILL": "which is how systems end processes when memory is short; fewer --workers or a smaller batch need less",
    "SIGBUS": f"which is how shared memory ends when it is full; {_MORE_SHARED_MEMORY}",
}


class ReadingEndedError(MetamixerError):
    """A worker process that reads samples has died."""


class Reader(DataLoader[Any]):
    """A DataLoader whose workers ignore SIGTERM and Ctrl-C, which batch systems send to them, too.

    A worker that dies is told by :class:`ReadingEndedError`, between two batches only. A batch that is a
    MetamixerError is raised: a plain DataLoader would wrap a worker's exception in the worker's traceback. Nothing is
    drawn from the global generators.
    """

    def __init__(self, dataset: Dataset[Any], *arguments: Any, **options: Any) -> None:
        options.setdefault("worker_init_fn", leave_signals)
        options.setdefault("generator", torch.Generator())
        super().__init__(dataset, *arguments, **options)

    def __iter__(self) -> Any:  # an iterator; PyTorch says its own class, which is private
        before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        try:
            with _signals_held():  # the workers are forked with them held, until they ignore them
                batches = super().__iter__()
        except OSError as error:
            raise ReadingEndedError(
                f"the {self.num_workers} processes that read samples cannot be started ({error.strerror or error});"
                " ask for fewer --workers"
            ) from None
        if before is not None and threading.current_thread() is threading.main_thread():
            # PyTorch's handler would raise at any moment, in the middle of a step of the optimiser, too. Without it the
            # death of a worker is seen, some seconds later, by who waits for its batch.
            signal.signal(signal.SIGCHLD, before)
        # PyTorch's name for them, there is no public one. At the end multiprocessing asks by SIGTERM, and would wait.
        workers = getattr(batches, "_workers", [])
        if workers and batches not in _begun:
            _begun.add(batches)
            Finalize(batches, _end, args=(workers,), exitpriority=0)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if dead := _dead(workers):
                    raise ReadingEndedError(_epitaph(dead)) from error
                if workers and "shared memory" in str(error):  # its own words, in a worker's traceback
                    raise ReadingEndedError(
                        f"a process that reads samples found no room in shared memory; {_MORE_SHARED_MEMORY}"
                    ) from error
                raise
            if isinstance(batch, MetamixerError):
                raise batch
            yield batch


def leave_signals(worker: int) -> None:
    """Ignore the signals that ask for an end: a worker ends with whoever reads from it, who may be gone already."""
    for number in _OURS:
        signal.signal(number, signal.SIG_IGN)
    reader = multiprocessing.parent_process()
    if reader is not None and not reader.is_alive():  # PyTorch looks from later on, and would not know whom it misses
        os._exit(1)


@contextmanager
def _signals_held() -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_begun: WeakSet[Any] = WeakSet()


def _end(workers: list[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()


def _dead(workers: list[Any]) -> list[Any]:
    """Those that have died; a moment is waited for one that is about to."""
    for _ in range(10 if workers else 0):
        if dead := [worker for worker in workers if worker.exitcode is not None]:
            return dead
        time.sleep(0.05)
    return []


def _epitaph(dead: list[Any]) -> str:
    code = dead[0].exitcode
    if code >= 0:
        return f"a process that reads samples (number {dead[0].pid}) ended by itself, with the exit code {code}"
    name = signal.Signals(-code).name
    likely = f", {_LIKELY[name]}" if name in _LIKELY else ""
    return f"a process that reads samples (number {dead[0].pid}) was ended by {name}{likely}"
