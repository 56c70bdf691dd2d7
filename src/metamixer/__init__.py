"""metamixer: efficient vision backbones built on token mixers.

Importing the package is cheap and registers every backbone with timm, whichever of the two is imported first.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metamixer._timm_registration import register_with_timm

__version__ = "0.1.0"

# Public name → module that holds it. Resolved on first use, so that `metamixer --help` need not import torch.
_PUBLIC = {
    "MetaMixer": "metamixer.mixers",
    "create_mixer": "metamixer.mixers",
    "list_mixers": "metamixer.mixers",
    "register_mixer": "metamixer.mixers",
    "create_model": "metamixer.models",
    "list_models": "metamixer.models",
    "build": "metamixer.heads.build",
    "list_weights": "metamixer.weights",
    "merge": "metamixer.deploy.merge",
    "export": "metamixer.deploy.export",
    "predict": "metamixer.tasks.predict",
    "evaluate": "metamixer.tasks.evaluate",
    "train": "metamixer.train",
    "TrainConfig": "metamixer.train",
    "benchmark": "metamixer.bench",
    "MetamixerError": "metamixer.errors",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:  # `x as x` tells the checker that x is public
    from metamixer.bench import benchmark as benchmark
    from metamixer.deploy.export import export as export
    from metamixer.deploy.merge import merge as merge
    from metamixer.errors import MetamixerError as MetamixerError
    from metamixer.heads.build import build as build
    from metamixer.mixers import MetaMixer as MetaMixer
    from metamixer.mixers import create_mixer as create_mixer
    from metamixer.mixers import list_mixers as list_mixers
    from metamixer.mixers import register_mixer as register_mixer
    from metamixer.models import create_model as create_model
    from metamixer.models import list_models as list_models
    from metamixer.tasks.evaluate import evaluate as evaluate
    from metamixer.tasks.predict import predict as predict
    from metamixer.train import TrainConfig as TrainConfig
    from metamixer.train import train as train
    from metamixer.weights import list_weights as list_weights


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'metamixer' has no attribute {name!r}")
    module = import_module(_PUBLIC[name])
    value = module if name == "train" else getattr(module, name)  # metamixer.train is a package that can be called
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_timm()
