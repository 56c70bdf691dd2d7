"""The list of recipes. A file in this folder adds to it by decorating its functions."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from importlib import import_module

from metamixer.errors import MetamixerError
from metamixer.train.config import TrainConfig

Recipe = Callable[[], TrainConfig]
_RECIPES: dict[str, Recipe] = {}


def recipe(function: Recipe) -> Recipe:
    """Register a function without arguments that returns a configuration, under its name.

    The docstring says where the recipe comes from, the accuracy to expect, the GPU-hours and the command.
    """
    if function.__name__ in _RECIPES:
        raise ValueError(f"there is a recipe {function.__name__!r} already")
    _RECIPES[function.__name__] = function
    return function


def list_recipes(pattern: str = "*") -> list[str]:
    """Names of the recipes that match a shell pattern, such as ``"imagenet_*"``, sorted."""
    return [name for name in sorted(_loaded()) if fnmatch(name, pattern)]


def get_recipe(name: str) -> TrainConfig:
    """The configuration of a recipe. Raises MetamixerError, naming the nearest, where there is none of that name."""
    recipes = _loaded()
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, 1)
        hint = f"did you mean {near[0]!r}?" if near else "`metamixer train --help` lists them"
        raise MetamixerError(f"unknown recipe {name!r}; {hint}")
    return recipes[name]()


def describe_recipe(name: str) -> str:
    """A recipe's docstring."""
    return inspect.getdoc(_loaded()[name]) or ""


@cache
def _load_files() -> None:
    for module in pkgutil.iter_modules(import_module("metamixer.train.recipes").__path__):
        import_module(f"metamixer.train.recipes.{module.name}")


def _loaded() -> dict[str, Recipe]:
    _load_files()
    return _RECIPES
