"""Files of ``torch.save``: read without running anything in them."""

from __future__ import annotations

import argparse
import datetime
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from metamixer.data.archives import require_stored
from metamixer.data.files import open_regular
from metamixer.errors import MetamixerError
from metamixer.limits import CHECKPOINT_BYTES, require_memory


def load_pickle(path: str | Path, at_most: int = CHECKPOINT_BYTES, what: str = "a checkpoint") -> Any:
    """The contents of a file of ``torch.save``, on the CPU.

    Beside tensors and Python's own containers and numbers it may hold the types of ``TRUSTED``, of which none can run
    code: what else a file names is not called, and such a file is refused.

    Args:
        path: of the file.
        at_most: bytes.
        what: what it should be, for messages.

    Raises MetamixerError for a file that is missing, no file of ``torch.save``, cut short, damaged, larger inside than
    outside or than there is memory for, or that needs code to be run.
    """
    path = Path(path)
    with open_regular(path, at_most, what) as file:
        if not file.read(2).startswith((b"PK", b"\x80")):  # a ZIP archive since PyTorch 1.6, a pickle before
            raise MetamixerError(f"{path} is no file of torch.save")
        try:
            require_stored(file, str(path))
            require_memory(file.seek(0, 2), str(path))
            file.seek(0)
            with _LOCK, torch.serialization.safe_globals(TRUSTED), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles by other protocols: they are read, or refused below
                return torch.load(file, map_location="cpu", weights_only=True)
        except MetamixerError:
            raise
        except pickle.UnpicklingError:
            raise MetamixerError(
                f"{path} was not opened, because reading it could run code hidden in it; if you trust it, load it "
                "elsewhere with torch.load(..., weights_only=False) and save only its state dict"
            ) from None
        except Exception:  # damaged bytes make unpickling raise nearly anything
            raise MetamixerError(f"{path} is cut short or damaged") from None


# --- What is trusted -------------------------------------------------------------------------------------------------

_PLAIN = "?bhilqBHILQefdFDUSMm"
"""NumPy's kinds of numbers, text and times; no objects."""


def _kind(name: Any, *_: Any) -> np.dtype:
    kind = np.dtype(name)
    if kind.char not in _PLAIN:
        raise pickle.UnpicklingError(f"{kind} is no plain kind of numbers")
    return kind


def _array(*_: Any) -> np.ndarray:
    """An array that the pickle's next instruction fills; the one asked for could be of any size."""
    return np.empty(0, "b")


def _scalar(kind: np.dtype, value: bytes) -> Any:
    return np.frombuffer(value, kind, 1)[0]


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}


def _with_names(function: Callable[..., Any], *names: str) -> list[Any]:
    return [(function, name) for name in names]


#: What checkpoints hold beside weights and cannot do any harm: the one list for every file of ``torch.save``. An entry
#: is a type, or what stands for it with its names in files of Python 3.10 to 3.13 and NumPy 1 and 2.
TRUSTED: list[Any] = [
    *_with_names(_kind, "numpy.dtype"),
    *_with_names(_array, "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *_with_names(_scalar, "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    np.ndarray,
    *dict.fromkeys(type(np.dtype(kind)) for kind in _PLAIN),
    *_with_names(PurePosixPath, "pathlib.PosixPath", "pathlib._local.PosixPath"),
    *_with_names(PureWindowsPath, "pathlib.WindowsPath", "pathlib._local.WindowsPath"),
    *_with_names(PurePosixPath, "pathlib.PurePosixPath", "pathlib._local.PurePosixPath"),
    *_with_names(PureWindowsPath, "pathlib.PureWindowsPath", "pathlib._local.PureWindowsPath"),
    *_with_names(_dictionary, "collections.defaultdict"),
    argparse.Namespace,
    *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
    *(bool, int, float, str, list, tuple, dict, frozenset),
]

_LOCK = threading.Lock()
"""PyTorch's list of trusted types is the process's: two threads would empty it for each other."""
