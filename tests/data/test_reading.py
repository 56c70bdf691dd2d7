"""Worker processes that read samples end with whoever reads from them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ORPHANED = """
import multiprocessing, os, signal, sys, time
from metamixer.data.reading import leave_signals

def work(reader, path):
    while os.getppid() == reader:
        time.sleep(0.01)
    leave_signals(0)
    open(path, "w").close()

multiprocessing.get_context("fork").Process(target=work, args=(os.getpid(), sys.argv[1])).start()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no processes that fork")
def test_a_worker_whose_reader_is_killed_before_it_starts_ends_too(tmp_path: Path) -> None:
    """PyTorch looks for the reader later on; one that is gone by then would never be missed, and the lock of the run's
    folder, which its workers share, be held for good."""
    command = [sys.executable, "-c", ORPHANED, str(tmp_path / "went on")]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)  # ends when the worker does
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "went on").exists()
