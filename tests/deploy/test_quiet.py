"""Silence that ends."""

from __future__ import annotations

import os
import sys
import threading
import warnings

import pytest

from metamixer.deploy.quiet import quiet


def _speak(word: str) -> None:
    print(word)
    print(word, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os.write(1, f"{word}\n".encode())
    os.write(2, f"{word}\n".encode())


@pytest.mark.promise("exports", "two exports at once, in two threads, leave output and warnings as they were")
def test_output_is_back_when_the_last_thread_has_left(capfd: pytest.CaptureFixture) -> None:
    """The first to come leaves before the second one, so that neither order of coming and going is the other's."""
    streams, filters = (sys.stdout, sys.stderr), list(warnings.filters)
    both, first_out = threading.Barrier(2, timeout=20), threading.Event()

    def first() -> None:
        with quiet():
            both.wait()
            _speak("first")
        first_out.set()

    def second() -> None:
        with quiet():
            both.wait()
            assert first_out.wait(20)
            _speak("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (sys.stdout, sys.stderr) == streams
    assert warnings.filters == filters
    _speak("after")
    assert capfd.readouterr() == ("after\nafter\n", "after\nafter\n")


def test_output_is_back_after_a_failure_in_a_nested_block(capfd: pytest.CaptureFixture) -> None:
    def fail() -> None:
        with quiet():
            _speak("outer")
            with quiet():
                _speak("inner")
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    _speak("after")
    assert capfd.readouterr() == ("after\nafter\n", "after\nafter\n")
