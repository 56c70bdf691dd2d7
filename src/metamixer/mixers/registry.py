"""Names of token mixers."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

from torch import nn

_mixers: dict[str, Callable[..., nn.Module]] = {}
MixerT = TypeVar("MixerT", bound=Callable[..., nn.Module])


def register_mixer(name: str, replace: bool = False) -> Callable[[MixerT], MixerT]:
    """Class decorator: make a mixer known under ``name``. Its first argument must be ``dim``, the channel count.

    A name that is taken is given away again only with ``replace``, or to the same class of the same module (a cell of a
    notebook that runs once more); else ValueError is raised.
    """

    def register(mixer: MixerT) -> MixerT:
        known = _mixers.get(name)
        if known is not None and not replace and _place(known) != _place(mixer):
            raise ValueError(
                f"a mixer {name!r} is registered already ({'.'.join(_place(known))}); replace=True puts this one in"
                " its place"
            )
        _mixers[name] = mixer
        return mixer

    return register


def _place(mixer: Callable[..., nn.Module]) -> tuple[str, str]:
    """Module and name of a class or function."""
    return getattr(mixer, "__module__", ""), getattr(mixer, "__qualname__", repr(mixer))


def list_mixers() -> list[str]:
    """Names of all registered token mixers, sorted."""
    return sorted(_mixers)


def create_mixer(name: str, dim: int, **kwargs: Any) -> nn.Module:
    """A token mixer for ``dim`` channels: a module from ``B × dim × H × W`` to the same shape.

    Keyword arguments go to the mixer's constructor. Raises ValueError for an unknown name or an unfit ``dim``.
    """
    if name not in _mixers:
        near = get_close_matches(name, _mixers, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known mixers: {', '.join(list_mixers())}"
        raise ValueError(f"unknown mixer {name!r}; {hint}")
    return _mixers[name](dim, **kwargs)
