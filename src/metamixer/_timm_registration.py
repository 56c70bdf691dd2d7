"""Register the backbones with timm as soon as both packages are there, without importing timm for it.

``import timm`` takes seconds. If it has been imported already, the backbones are registered at once; otherwise a
hook on the import of ``timm.models`` registers them when timm is imported, by whomever. A family that cannot be loaded
is left out with a notice in the log: timm works all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # the import system asks for methods, not for these classes, whose module costs half of our import
    Loader = MetaPathFinder = object

_HOOKED = "timm.models"
_FAMILIES = ("affnet", "casvit", "dsm", "ffnet", "metaformer")


class _RegisterAfter(Loader):
    """Runs the module's own loader, then registers the backbones."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps the loader it would have had.
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        _unhook()
        _register()


class _TimmFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _HOOKED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfter(spec.loader)
        return spec


def _unhook() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _TimmFinder)]


_postponed = False


def _register() -> None:
    global _postponed
    base = sys.modules.get("metamixer.backbones.base")
    if base is not None and not hasattr(base, "LOADED"):  # it imports timm just now
        _postponed = True
        return
    for family in _FAMILIES:
        try:
            import_module(f"metamixer.backbones.{family}")
        except Exception as error:  # whatever it is, it must not reach whoever imports timm
            import logging

            logging.getLogger("metamixer").warning(
                "the networks of metamixer.backbones.%s are not known to timm, since loading them failed: %s: %s",
                family,
                type(error).__name__,
                error,
            )


def register_if_postponed() -> None:
    """Called by ``backbones/base.py`` once it is whole."""
    global _postponed
    if _postponed:
        _postponed = False
        _register()


def register_with_timm() -> None:
    """Register now if timm is loaded, else when it is."""
    if _HOOKED in sys.modules:
        _register()
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())
