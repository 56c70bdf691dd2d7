"""One runtime in a process of its own: ``python -m metamixer.deploy.worker MODULE ARTEFACT THREADS``.

``MODULE`` is that of a target (see ``targets.py``). Takes pickled requests on standard input and answers on standard
output: first the milliseconds that loading took, then for every array the output or the list of them; for ``AGAIN``
the milliseconds of another call with the last array; for ``MEMORY`` the most bytes that loading and running have taken
so far, on top of the process with the runtime's library.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

AGAIN, MEMORY = "again", "memory"


def main(target: str, path: str, threads: str) -> None:
    """Serve until standard input ends."""
    requests = sys.stdin.buffer
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what runtimes print is no answer

        def answer(content: Any) -> None:
            pickle.dump(content, answers)
            answers.flush()

        module = import_module(target)
        module.check()
        for name in module.RUNS_ON:
            import_module(name)
        before = _resident("VmRSS")
        with suppress(OSError):  # not Linux; the peak is that of the imports until something exceeds it
            Path("/proc/self/clear_refs").write_text("5")
        started = time.perf_counter()
        run = module.load(Path(path), int(threads))
        answer(1e3 * (time.perf_counter() - started))
        array: Any = None
        while True:
            try:
                request = pickle.load(requests)
            except EOFError:
                return
            if isinstance(request, str) and request == MEMORY:
                peak = _resident("VmHWM")
                answer(None if before is None or peak is None else max(0, peak - before))
            elif isinstance(request, str) and request == AGAIN:
                started = time.perf_counter()
                run(array)
                answer(1e3 * (time.perf_counter() - started))
            else:
                array = request
                answer(run(array))


def _resident(entry: str) -> int | None:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM), as Linux tells them; None elsewhere."""
    # Not resource.getrusage: its maximum begins with the memory of the process that started this one.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{entry}:"):
                return 1024 * int(line.split()[1])
    return None


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # its message is what the user sees, a traceback would hide it
        sys.exit(f"{type(error).__name__}: {error}")
