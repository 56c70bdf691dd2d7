"""Run an artefact in a process of its own, so that a runtime that crashes is one sentence and not the end of ours."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from metamixer.deploy.targets import Target
from metamixer.deploy.worker import AGAIN, MEMORY
from metamixer.errors import MetamixerError

_LAST_LINES = 3


class RuntimeProcess:
    """An artefact loaded in its runtime, in another process; use it as a context manager.

    Args:
        target: one of :data:`metamixer.deploy.targets.TARGETS`, or another that has ``check`` and ``load``.
        path: the artefact.
        threads: threads within an operator.
        pinned: keep the process on the first ``threads`` of the cores that this one may use, where the system can
            (Linux); ``taskset`` chooses others for both.

    Calling it with a float32 array gives the output, or the list of all outputs. Raises MetamixerError, with the last
    lines that the process wrote, where it fails or dies, there or at the start.
    """

    def __init__(self, target: Target, path: Path, threads: int = 1, pinned: bool = False) -> None:
        self._runtime = target.runtime
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "metamixer.deploy.worker", target.module, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        if pinned and hasattr(os, "sched_setaffinity"):  # its threads are born later and inherit this
            os.sched_setaffinity(self._process.pid, sorted(os.sched_getaffinity(0))[:threads])
        try:
            self.load_ms: float = self._receive()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> RuntimeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdout, self._errors):
            stream.close()
        with suppress(BrokenPipeError):  # what had not been sent yet
            self._process.stdin.close()

    def __call__(self, pictures: np.ndarray) -> Any:
        self._send(np.ascontiguousarray(pictures))
        return self._receive()

    def time_again(self) -> float:
        """Milliseconds of one more call with the last pictures, measured in the other process."""
        self._send(AGAIN)
        return self._receive()

    def time_second_call(self) -> float:
        """Milliseconds of the second of two more calls: the first finds its neighbours' data in the caches."""
        self.time_again()
        return self.time_again()

    def peak_memory(self) -> int | None:
        """The most bytes that loading and running have taken so far, on top of the process with the runtime's library.

        None where the system does not tell (all but Linux).
        """
        self._send(MEMORY)
        return self._receive()

    def _send(self, request: Any) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._failure() from None

    def _failure(self) -> MetamixerError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        said = " | ".join(line.strip() for line in lines if line.strip())
        said = " | ".join(said.split(" | ")[-_LAST_LINES:]) or "nothing"
        how = f"crashed with signal {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        return MetamixerError(f"{self._runtime} {how}; its last lines: {said}")
