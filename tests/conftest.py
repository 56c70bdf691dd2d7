"""What all tests share."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# The same examples in every run, so that no change is blamed for what another example finds; EXPLORE=1 draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None)
if not os.environ.get("EXPLORE"):
    settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Reports carry the promises that their tests show (``benchmarks/reliability.py``)."""
    for item in items:
        item.user_properties += [("promise", list(mark.args)) for mark in item.iter_markers("promise")]


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


class SmallDisk:
    """A folder on a file system of 2 MiB; where none can be mounted, no file may grow beyond a bound instead.

    Attributes:
        path: the folder.
    """

    size = 2**21

    def __init__(self, path: Path) -> None:
        self.path = path
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(path)]
        self.mounted = bool(shutil.which("mount")) and not subprocess.run(mount, capture_output=True).returncode
        self.bound: tuple[int, int] | None = None

    def leave(self, bytes_: int) -> None:
        """From now on about so many bytes fit on the disk (in the other case: into a file)."""
        if self.mounted:
            free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
            (self.path / "filling").write_bytes(bytes(max(0, free - bytes_)))
            return
        import resource

        self.bound = self.bound or resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, self.bound[1]))

    def free(self) -> None:
        """Make room again."""
        (self.path / "filling").unlink(missing_ok=True)
        if self.bound:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, self.bound)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written inside the block: the disk, or else every folder on it, is read-only."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)
            try:
                yield
            finally:
                subprocess.run(["mount", "-o", "remount,rw", str(self.path)], check=True)
            return
        folders = [self.path, *(path for path in self.path.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o500)
        try:
            yield
        finally:
            for folder in folders:
                folder.chmod(0o700)

    def close(self) -> None:
        self.free()
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk that is soon full: "No space left on device", or "File too large" where none can be mounted."""
    pytest.importorskip("resource", reason="neither disks to mount nor bounds on files")
    (tmp_path / "disk").mkdir()
    disk = SmallDisk(tmp_path / "disk")
    try:
        yield disk
    finally:
        disk.close()


@pytest.fixture
def server() -> Iterator[Any]:
    """A file server on this machine that can misbehave (``tests/file_server.py``)."""
    with runpy.run_path(str(Path(__file__).with_name("file_server.py")))["running"]() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, not made yet."""
    monkeypatch.setenv("METAMIXER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"
