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
    "list_weights": "metamixer.weights",
    "merge": "metamixer.deploy.merge",
    "export": "metamixer.deploy",
    "predict": "metamixer.tasks.predict",
    "evaluate": "metamixer.tasks.evaluate",
    "train": "metamixer.train",
    "TrainConfig": "metamixer.train",
    "benchmark": "metamixer.bench",
    "MetamixerError": "metamixer.errors",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from metamixer.bench import benchmark
    from metamixer.deploy import export
    from metamixer.deploy.merge import merge
    from metamixer.errors import MetamixerError
    from metamixer.mixers import MetaMixer, create_mixer, list_mixers, register_mixer
    from metamixer.models import create_model, list_models
    from metamixer.tasks.evaluate import evaluate
    from metamixer.tasks.predict import predict
    from metamixer.train import TrainConfig, train
    from metamixer.weights import list_weights


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'metamixer' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_timm()
