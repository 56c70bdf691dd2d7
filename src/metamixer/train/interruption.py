"""SIGTERM and Ctrl-C: the loop saves a checkpoint between two steps and ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from metamixer.errors import MetamixerError


class TrainingInterruptedError(MetamixerError):
    """A signal ended the run after its checkpoint was written; ``exit_code`` is 128 plus the signal's number."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StoppedInsideError(KeyboardInterrupt):
    """A signal came inside a block that it may end (:meth:`Interruption.ends`)."""


class Interruption:
    """The signal that came, if one did."""

    signal: int | None = None
    _may_raise = False

    @contextmanager
    def ends(self) -> Iterator[None]:
        """A block that a signal ends at once, by StoppedInsideError: one that changes nothing of the run."""
        self._may_raise = True
        try:
            if self.signal is not None:
                raise StoppedInsideError
            yield
        finally:
            self._may_raise = False

    def note(self, number: int) -> None:
        """A signal has come."""
        self.signal = number
        if self._may_raise:
            self._may_raise = False
            raise StoppedInsideError


@contextmanager
def watch_signals() -> Iterator[Interruption]:
    """Note SIGTERM and SIGINT instead of dying of them; the second of them acts as usual. Main thread only."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        restore()
        interruption.note(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield interruption
    finally:
        restore()
