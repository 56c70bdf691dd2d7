"""TensorBoard's event files, written at once: where the disk is full, the loop is told and not a thread."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metamixer.data.files import make_folder
from metamixer.errors import MetamixerError


class Events:
    """Scalars over steps, in a new file of a folder.

    ``SummaryWriter`` has a thread write its events, whose errors come out as a traceback of the thread's and, later, of
    the caller's.

    Args:
        folder: for the file.
        first_step: what earlier files hold from this step on is forgotten, as the run was taken up before it; 0 for a
            new run.

    Raises MetamixerError where the file cannot be written, as ``add`` does; ``close`` does not.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import scalar

        self._event = Event
        self._scalar: Any = scalar
        self.folder = make_folder(folder)
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}"
        try:
            self._file = (folder / name).open("wb")
        except OSError as error:
            raise self._failed(error) from None
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if first_step:
            self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, row: Mapping[str, float], step: int) -> None:
        """Write numbers by name, and have them in the file."""
        for name, value in row.items():
            self._write(step=step, summary=self._scalar(name, value))
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        """Close the file. What could not be written was said before."""
        try:
            self._file.close()
        except OSError:
            self._file.close()  # the second time without writing

    def _write(self, **contents: Any) -> None:
        try:
            self._records.write(self._event(wall_time=time.time(), **contents).SerializeToString())
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> MetamixerError:
        return MetamixerError(f"{self.folder} cannot be written ({error.strerror or error})")
