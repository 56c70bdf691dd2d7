"""The mutations of ``mutations.yaml``, and how one is put into the sources without touching them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml

import metamixer
import metamixer.heads.build
import metamixer.tasks.detection
import metamixer.tasks.segmentation

ROOMS = ("metamixer.heads", "metamixer.tasks")


class Mutation(NamedTuple):
    """In ``metamixer/heads/FILE.py`` the text ``old`` becomes ``new``; ``case`` of ``head`` must then fail."""

    what: str
    file: str
    old: str
    new: str
    head: str
    case: str


MUTATIONS = [
    Mutation(row["what"], row["file"], row["old"], row["new"], *fails.split())
    for row in yaml.safe_load(Path(__file__).with_name("mutations.yaml").read_text())
    for fails in row["fails"]
]


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """Heads and tasks are imported anew with the mutation in them while the context lasts."""
    name = f"metamixer.heads.{mutation.file}"
    own = {module: sys.modules[module] for module in sys.modules if module.startswith(ROOMS)}
    rooms = {room: vars(metamixer)[room] for room in ("heads", "tasks")}
    file = Path(str(metamixer.__file__)).parent / "heads" / f"{mutation.file}.py"
    with mock.patch.object(sys, "meta_path", [_Finder(name, _Loader(name, file, mutation)), *sys.meta_path]):
        try:
            _forget()
            importlib.import_module(name)
            yield
        finally:
            _forget()
            sys.modules.update(own)
            for room, module in rooms.items():
                setattr(metamixer, room, module)


def _forget() -> None:
    for module in [module for module in sys.modules if module.startswith(ROOMS)]:
        del sys.modules[module]


class _Loader(SourceFileLoader):
    def __init__(self, name: str, file: Path, mutation: Mutation) -> None:
        super().__init__(name, str(file))
        self.mutation = mutation

    def path_stats(self, path: Any) -> Any:
        raise OSError("what is compiled already is the source as it stands")

    def get_data(self, path: Any) -> bytes:
        text = super().get_data(path).decode()
        assert text.count(self.mutation.old) == 1, f"{self.mutation.old!r} stands {text.count(self.mutation.old)} times"
        return text.replace(self.mutation.old, self.mutation.new).encode()


class _Finder:
    def __init__(self, name: str, loader: _Loader) -> None:
        self.name, self.loader = name, loader

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self.loader) if name == self.name else None
