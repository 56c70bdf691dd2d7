"""Read a checkpoint of any layout and put it into a network."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from metamixer.errors import MetamixerError
from metamixer.printing import notices
from metamixer.weights.released import to_our_layout

# Entries that may hold the weights; averaged ones come first, as in timm. CVNets and BasicSR have names of their own.
WRAPPINGS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "state_dict", "model", "model_state_dict", "params"
)  # fmt: skip
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
BACKBONES = ("backbone.", "encoder.")  # mmdetection and mmsegmentation, CVNets


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by our names.

    The file may be safetensors or PyTorch, a state dict or a dictionary around one (averaged weights are preferred),
    with the prefixes of wrappers, or a dense-prediction network, of which the backbone is taken. Nothing in the file is
    run.

    Raises MetamixerError for a file that is missing, empty, cut short, no checkpoint, or that needs code to be run.
    """
    path = Path(path)
    state = state_from(_read(path))
    if not state:
        raise MetamixerError(f"{path} holds no weights")
    return state


def state_from(contents: Any, model: nn.Module | None = None) -> dict[str, Tensor]:
    """Tensors, by our names, in a checkpoint's contents; timm takes it as ``pretrained_filter_fn``."""
    return to_our_layout(unwrap(contents))


def read_network(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file as :func:`read_state`, but of the whole network and by the file's own names."""
    path = Path(path)
    state = unwrap_network(_read(path))
    if not state:
        raise MetamixerError(f"{path} holds no weights")
    return state


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise MetamixerError(f"{path} cannot be read ({error.strerror or error})") from None
    if not head:
        raise MetamixerError(f"{path} is empty")
    try:
        # A safetensors file is the length of its header in eight bytes, then the header, which is JSON.
        if path.suffix == ".safetensors" or head[8:] == b"{":
            return load_file(path)
        if head.startswith((b"PK", b"\x80")):  # a zip archive since PyTorch 1.6, a pickle before
            # timm's training checkpoints carry their command line as a Namespace, which runs nothing either.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles by other protocols: they are read, or refused below
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise MetamixerError(
            f"{path} was not opened, because reading it could run code hidden in it; if you trust it, load it "
            "elsewhere with torch.load(..., weights_only=False) and save only its state dict"
        ) from None
    except (SafetensorError, EOFError, OSError, RuntimeError, ValueError, KeyError, IndexError, AttributeError):
        raise MetamixerError(f"{path} is cut short or damaged") from None
    raise MetamixerError(f"{path} is no checkpoint (neither safetensors nor PyTorch)")


def unwrap(contents: Any) -> dict[str, Tensor]:
    """As :func:`unwrap_network`, but of a dense-prediction network the backbone alone."""
    state = unwrap_network(contents)
    for prefix in BACKBONES:
        if any(name.startswith(prefix) for name in state):
            return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return state


def unwrap_network(contents: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint's contents, without the prefixes of wrappers; empty where there is none."""
    while isinstance(contents, Mapping):
        inner = [contents[name] for name in WRAPPINGS if isinstance(contents.get(name), Mapping)]
        if not inner:
            break
        contents = inner[0]
    if not isinstance(contents, Mapping):
        return {}
    state = {str(name): tensor for name, tensor in contents.items() if isinstance(tensor, Tensor)}
    while state and any(name.startswith(WRAPPERS) for name in state):
        state = {_without(name, WRAPPERS): tensor for name, tensor in state.items()}
    return state


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: str | Path = "the checkpoint") -> None:
    """Put weights, by our names, into a network, adapted as :func:`fit` says, with a notice in the log.

    Raises MetamixerError where they do not fit; the model is then unchanged.
    """
    fitted, said = fit(model, state, source)
    model.load_state_dict(fitted, strict=False)
    for notice in said:
        notices.warning("%s %s", source, notice)


def fit(
    model: nn.Module, state: Mapping[str, Tensor], source: str | Path = "the checkpoint"
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights as the network takes them, and what had to be adapted for that.

    Another number of classes, or no classifier, leaves the model's own one; another number of input channels sums or
    repeats the first convolution's weights, as timm does; two classifiers become one by averaging, which is what they
    compute at inference, and one becomes two equal ones; a headless backbone leaves the last norm as it is; the norms
    of dense-prediction backbones may be missing or too many.

    Raises MetamixerError for anything else that does not fit, naming the first few keys.
    """
    expected = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in expected or not _is_counter(name)}
    headless = not any(name.startswith(("head.", "final.")) for name in state)
    said = [_adapt_input(model, state, expected), _adapt_heads(state, expected)]
    if headless:
        said.append(_keep_own(state, expected, "final.", "no last norm"))
    said.append(_adapt_feature_norms(state, expected))
    check_fit(state, expected, getattr(model, "pretrained_cfg", {}).get("architecture") or type(model).__name__, source)
    return state, [notice for notice in said if notice]


def check_fit(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str, source: str | Path
) -> None:
    """Raise MetamixerError, naming the first few keys, where names and shapes are not the expected ones."""
    names = {
        "missing": [name for name in expected if name not in state and not _is_counter(name)],
        "unexpected": [name for name in state if name not in expected],
        "misshapen": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    problems = []
    for problem, found in names.items():
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            problems.append(f"{problem}: {', '.join(found[:3])}{more}")
    if problems:
        raise MetamixerError(f"{source} does not fit {architecture} ({'; '.join(problems)})")


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _keep_own(state: dict[str, Tensor], expected: Mapping[str, Tensor], prefix: str, lacks: str) -> str | None:
    """Fill in the model's own tensors under ``prefix``; a notice where there are any."""
    own = {name: tensor for name, tensor in expected.items() if name.startswith(prefix)}
    state |= own
    return f"holds {lacks}: the model's own stays" if own else None


def _adapt_input(model: nn.Module, state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    # Imported late: importing timm registers the backbones, which import this module.
    from timm.models import adapt_input_conv

    name = f"{getattr(model, 'pretrained_cfg', {}).get('first_conv')}.weight"
    if name not in state or name not in expected or state[name].ndim != 4:
        return None
    held, wanted = state[name].shape[1], expected[name].shape[1]
    if held == wanted:
        return None
    state[name] = adapt_input_conv(wanted, state[name], base_chans=held)
    return f"was trained on {held} input channels: adapted to {wanted}"


def _adapt_heads(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Make the classifiers in ``state`` those that the model expects."""
    heads = {name: state.pop(name) for name in list(state) if name.startswith("head.")}
    if "head.fc.weight" not in expected:
        return None
    if "head.fc.weight" not in heads:
        return _keep_own(state, expected, "head.", "no classifier")
    held, wanted = len(heads["head.fc.weight"]), len(expected["head.fc.weight"])
    if held != wanted:
        return _keep_own(state, expected, "head.", f"a classifier of {held} classes, not {wanted}")
    two_held, two_wanted = ("head.fc_dist.weight" in heads, "head.fc_dist.weight" in expected)
    for part in ("weight", "bias"):
        one, two = f"head.fc.{part}", f"head.fc_dist.{part}"
        if two_held and not two_wanted:
            heads[one] = (heads[one] + heads.pop(two)) / 2
        elif two_wanted and not two_held:
            heads[two] = heads[one]
    state |= heads
    if two_held and not two_wanted:
        return "holds two classifiers: the model's is their average"
    return "holds one classifier: both of the model's start from it" if two_wanted and not two_held else None


def _adapt_feature_norms(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    held = [name for name in state if name.startswith("feature_norms.")]
    if not held:
        return _keep_own(state, expected, "feature_norms.", "no norms of feature maps")
    if any(name.startswith("feature_norms.") for name in expected):
        return None
    for name in held:
        del state[name]
    return "holds norms of feature maps, which the model has not: they are left out"
