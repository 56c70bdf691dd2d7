"""The command ``metamixer``: a table of verbs, each a typed function whose parameters are its flags."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import NamedTuple, TextIO

from metamixer.errors import MetamixerError, SettingError
from metamixer.printing import complain, note, say


class Verb(NamedTuple):
    """Where a verb's function is (imported only when the verb is used), and the verb's line of help.

    Parameters without a default are positional arguments, or with ``flags`` only those that are annotated so. A ``raw``
    verb's function takes the list of arguments and reads them itself.
    """

    module: str
    function: str
    usage: str
    summary: str
    flags: bool = False
    raw: bool = False


VERBS = {
    "models": Verb("metamixer.model_table", "models_command", "[PATTERN]", "list models and their weights"),
    "predict": Verb("metamixer.tasks.predict", "predict_command", "MODEL PICTURE...", "what pictures show, drawn"),
    "train": Verb("metamixer.train.command", "train_command", "RECIPE --data DIR", "train a network", raw=True),
    "evaluate": Verb(
        "metamixer.tasks.evaluate", "evaluate_command", "MODEL --data DIR", "measure a network", flags=True
    ),
    "convert": Verb("metamixer.weights.convert", "convert", "IN OUT", "write a checkpoint as safetensors"),
    "export": Verb(
        "metamixer.deploy.export", "export_command", "MODEL --to onnx", "export for a runtime, and check it there"
    ),
    "bench": Verb("metamixer.bench", "bench_command", "MODEL...", "time models side by side"),
    "race": Verb(
        "metamixer.bench.race.command", "race_command", "--data DIR --mixers A,B", "compare token mixers", raw=True
    ),
    "data": Verb(
        "metamixer.data.command",
        "data_command",
        "fetch NAME | check DIR",
        "get a public data set, or look through one",
        flags=True,
    ),
    "demo": Verb("metamixer.demo", "run_demo", "", "see the shipped models at work"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 fine, 1 for a failure in one sentence, 130 for Ctrl-C, 143 for SIGTERM.

    Wrong usage exits with 2. An exception that no user could have mended keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with _sigterm_unwinds():
            code = _run(arguments)
        sys.stdout.flush()
        return code
    except SettingError as error:
        complain(_by_flag(error, arguments[0]))
        return 2 if error.name else 1
    except MetamixerError as error:
        complain(error)
        return 1
    except KeyboardInterrupt as interrupt:
        complain("interrupted")
        return 128 + (signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _give_up_stdout()
        return 1
    except (OSError, MemoryError, RuntimeError) as error:
        sentence = _of_the_machine(error)
        if isinstance(error, OSError) and not _can_be_written(sys.stdout):
            _give_up_stdout()
            sentence = f"standard output cannot be written ({error.strerror or error})"
        if sentence is None:
            raise
        complain(sentence)
        return 1


def _of_the_machine(error: Exception) -> str | None:
    """What the system refused, such as a right or memory, in a sentence; None for anything else."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in said:
        reason = f" ({said.partition('. ')[0][:200]})" if said else ""
        return f"there is too little memory{reason}; smaller pictures or batches take less"
    return None


def _give_up_stdout() -> None:
    """What has not been written is not wanted any more; else the flush at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _can_be_written(stream: TextIO) -> bool:
    """Whether what was printed has arrived where the stream leads to, such as a file on a disk that is full."""
    try:
        stream.flush()
    except OSError:
        return False
    return True


def _by_flag(error: SettingError, verb: str) -> str:
    """The sentence, with the flag in place of the parameter that it sets."""
    sentence = str(error)
    if not error.name:
        return sentence
    flag = f"--{error.name.replace('_', '-')}"
    return f"{flag}{sentence.removeprefix(error.name)}; see metamixer {verb} --help"


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM raise as Ctrl-C does, so that nothing half written is left; the second one acts as usual.

    Training's own handlers (``train/interruption.py``) come before it while a run is under way. Main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def unwind(number: int, frame: FrameType | None) -> None:
        signal.signal(number, before)
        raise _Terminated

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        for line in _help().splitlines():
            (say if arguments else note)(line)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from metamixer import __version__

        say(f"metamixer {__version__}")
        return 0
    if "" in arguments:
        complain("an argument is empty; leave out what is not meant")
        return 2
    name, *rest = arguments
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see metamixer --help"
        complain(f"unknown verb {name!r}; {hint}")
        return 2
    verb = VERBS[name]
    function = getattr(import_module(verb.module), verb.function)
    if verb.raw:
        return function(rest)
    import tyro

    config = None if verb.flags else (tyro.conf.PositionalRequiredArgs,)
    return tyro.cli(function, prog=f"metamixer {name}", args=rest, config=config) or 0


def _help() -> str:
    rows = [f"  {name + ' ' + verb.usage:<32}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: metamixer VERB ...",
            "",
            "Vision backbones built on token mixers: train, measure, predict, export.",
            "",
            *rows,
            "",
            "metamixer VERB --help lists a verb's flags; metamixer --version prints the version.",
            "MODEL is a name (default weights where it has any), name.tag for other weights, or a checkpoint's path.",
        ]
    )
