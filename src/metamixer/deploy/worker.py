"""One runtime in a process of its own: ``python -m metamixer.deploy.worker TARGET ARTEFACT THREADS``.

Takes pickled requests on standard input and answers on standard output: first the milliseconds that loading took, then
for every array its outputs and the milliseconds of the call, and for ``None`` the milliseconds of running on the last
array again.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from pathlib import Path
from typing import Any

from metamixer.deploy.targets import target_module


def main(target: str, path: str, threads: str) -> None:
    """Serve until standard input ends."""
    requests = sys.stdin.buffer
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what runtimes print is no answer

        def answer(content: Any) -> None:
            pickle.dump(content, answers)
            answers.flush()

        module = target_module(target)
        module.check()
        started = time.perf_counter()
        run = module.load(Path(path), int(threads))
        answer(1e3 * (time.perf_counter() - started))
        array: Any = None
        while True:
            try:
                request = pickle.load(requests)
            except EOFError:
                return
            array = array if request is None else request
            started = time.perf_counter()
            outputs = run(array)
            elapsed = 1e3 * (time.perf_counter() - started)
            answer(elapsed if request is None else (outputs, elapsed))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # its message is what the user sees, a traceback would hide it
        sys.exit(f"{type(error).__name__}: {error}")
