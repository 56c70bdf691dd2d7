"""The verb ``metamixer train``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from metamixer.errors import MetamixerError
from metamixer.models import list_models
from metamixer.networks import NETWORKS
from metamixer.printing import complain, say, say_lines
from metamixer.tasks.classification import Classification
from metamixer.tasks.sharing import process
from metamixer.train.config import TrainConfig
from metamixer.train.dry_run import estimate, report
from metamixer.train.interruption import TrainingInterruptedError
from metamixer.train.loop import train
from metamixer.train.recipes import describe_recipe, get_recipe, list_recipes


def train_command(arguments: Sequence[str]) -> int:
    """Train a recipe, changed by flags: ``metamixer train RECIPE --field value``.

    RECIPE is a recipe's name, or a model's, which means to train it as a classifier from the defaults. Each recipe has
    the flags of its task.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    base = configuration(arguments[0]) if named else TrainConfig(Classification("MODEL"))
    if getattr(base.task, "data", None) == "":  # the command line asks for it
        base = replace(base, task=replace(base.task, data=tyro.MISSING))  # type: ignore[type-var]

    def command(
        recipe: Positional[Annotated[str, arg(metavar="RECIPE", help="a recipe's or a model's name.")]],
        config: OmitArgPrefixes[TrainConfig] = base,
        dry_run: Annotated[bool, arg(help="print settings, parameters, MACs, steps and memory, and end.")] = False,
    ) -> tuple[TrainConfig, bool]:
        return config, dry_run

    description = "Train a network. The run's folder gets its configuration, metrics and checkpoints.\n\n"
    if named and arguments[0] in list_recipes():
        description += f"{arguments[0]}: {describe_recipe(arguments[0])}"
    else:
        description += "RECIPE is the name of a model, or one of\n" + "\n".join(f"  {name}" for name in list_recipes())
    config, dry = tyro.cli(command, prog="metamixer train", args=list(arguments), description=description)
    if dry:
        say_lines(report(config, estimate(config)))
        return 0
    try:
        result = train(config)
    except TrainingInterruptedError as interrupted:
        complain(interrupted)
        return interrupted.exit_code
    first = process() == 0
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if first:
        say(f"best {result.metric} {result.value:.4g} in epoch {result.epoch}: {result.best}")
    return 0


def configuration(name: str) -> TrainConfig:
    """The configuration of a recipe, or of the classification of pictures with a model. Raises MetamixerError."""
    if name in list_recipes():
        return get_recipe(name)
    architecture = name.partition(".")[0]
    if architecture in NETWORKS:  # classifies no pictures
        recipes = [recipe for recipe in list_recipes() if getattr(get_recipe(recipe).task, "model", "") == architecture]
        raise MetamixerError(f"{architecture} is no picture classifier; recipes that train it: {', '.join(recipes)}")
    if architecture in list_models():
        return TrainConfig(Classification(name))
    near = difflib.get_close_matches(name, [*list_recipes(), *list_models()], 1)
    hint = f"did you mean {near[0]!r}?" if near else "`metamixer train --help` lists the recipes"
    raise MetamixerError(f"unknown recipe or model {name!r}; {hint}")
