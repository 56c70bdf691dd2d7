"""Read a checkpoint of any layout and put it into a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from metamixer.data.files import open_regular
from metamixer.data.pickles import load_pickle
from metamixer.data.tensors import plain_tensors
from metamixer.errors import MetamixerError
from metamixer.limits import CHECKPOINT_BYTES, require_memory
from metamixer.printing import notices
from metamixer.weights.checkpoint import read_shapes
from metamixer.weights.released import released_layout, to_our_layout

# Entries that may hold the weights; averaged ones come first, as in timm. CVNets and BasicSR have names of their own.
WRAPPINGS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "state_dict", "model", "model_state_dict", "params"
)  # fmt: skip
WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
MODULES = ("model.", "net.")  # what a LightningModule calls its network
BACKBONES = ("backbone.", "encoder.")  # mmdetection and mmsegmentation, CVNets
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")  # of batch norms; thop leaves the others behind


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file by our names.

    The file may be safetensors or PyTorch, a state dict or a dictionary around one (averaged weights are preferred),
    with the prefixes of wrappers, or a dense-prediction network, of which the backbone is taken. Nothing in the file is
    run.

    Raises MetamixerError for a file that is missing, empty, cut short, no checkpoint, or that needs code to be run.
    """
    path = Path(path)
    return _some(state_from(_read(path)), path)


def state_from(contents: Any, model: nn.Module | None = None) -> dict[str, Tensor]:
    """Tensors, by our names, in a checkpoint's contents; timm takes it as ``pretrained_filter_fn``."""
    return to_our_layout(unwrap(contents))


def read_network(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint file as :func:`read_state`, but of the whole network and by the file's own names."""
    path = Path(path)
    return _some(unwrap_network(_read(path)), path)


def _some(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    if not state:
        raise MetamixerError(f"{path} holds no weights")
    return plain_tensors(state, path)


def _read(path: Path) -> Any:
    with open_regular(path, CHECKPOINT_BYTES, "a checkpoint") as file:
        head = file.read(9)
        require_memory(file.seek(0, 2), str(path))
    if not head:
        raise MetamixerError(f"{path} is empty")
    # A safetensors file is the length of its header in eight bytes, then the header, which is JSON.
    if path.suffix == ".safetensors" or head[8:] == b"{":
        try:
            return load_file(path)
        except Exception:  # SafetensorError, and what its types raise that PyTorch lacks
            raise MetamixerError(f"{path} is cut short or damaged") from None
    if head.startswith((b"PK", b"\x80")):  # a zip archive since PyTorch 1.6, a pickle before
        return load_pickle(path)
    raise MetamixerError(f"{path} is no checkpoint (neither safetensors nor PyTorch)")


def unwrap(contents: Any) -> dict[str, Tensor]:
    """As :func:`unwrap_network`, but of a dense-prediction network the backbone alone."""
    state = unwrap_network(contents)
    for prefix in BACKBONES:
        if any(name.startswith(prefix) for name in state):
            return _below(prefix, state)
    return state


def unwrap_network(contents: Any) -> dict[str, Tensor]:
    """The state dict inside a checkpoint's contents, without the prefixes of wrappers; empty where there is none."""
    seen: set[int] = set()
    while isinstance(contents, Mapping) and id(contents) not in seen:  # one may hold itself
        seen.add(id(contents))
        inner = [contents[name] for name in WRAPPINGS if isinstance(contents.get(name), Mapping)]
        if inner:
            contents = inner[0]
    if not isinstance(contents, Mapping):
        return {}
    state = {str(name): tensor for name, tensor in contents.items() if isinstance(tensor, Tensor)}
    while state and any(name.startswith(WRAPPERS) for name in state):
        state = {_without(name, WRAPPERS): tensor for name, tensor in state.items()}
    if released_layout(state) is None:  # FFNet's release for forecasting is such a module itself
        for prefix in MODULES:
            if any(name.startswith(prefix) for name in state):
                return unwrap_network(_below(prefix, state))
    return state


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    for prefix in prefixes:
        name = name.removeprefix(prefix)
    return name


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: str | Path = "the checkpoint") -> None:
    """Put weights, by our names, into a network, adapted as :func:`fit` says, with a notice in the log.

    Weights of a merged network (:func:`metamixer.merge`) merge the model first, where it knows how
    (``merge_in_place``). Raises MetamixerError where they do not fit; the model is then unchanged.
    """
    if is_merged(model, state):
        cast(Any, model).merge_in_place()
    fitted, said = fit(model, state, source)
    model.load_state_dict(fitted, strict=False)
    for notice in said:
        notices.warning("%s %s", source, notice)


def is_merged(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether weights, by our names, fit a network when it is merged, and not as it is."""
    if not hasattr(model, "merge_in_place") or fits(model, state):
        return False
    expected = model.state_dict()
    if any(name in state and state[name].shape != tensor.shape for name, tensor in expected.items()):
        return False  # merging leaves names out and brings new ones
    with shapes_alone():
        return fits(cast(Any, deepcopy(model).to("meta")).merge_in_place(), state)


def fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether :func:`fit` can adapt the weights."""
    try:
        fit(model, state)
    except MetamixerError:
        return False
    return True


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Networks that are built here have no memory for their weights, and no time is spent on initialising them."""
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    """Leaves out what only changes the numbers of a tensor that has none: slow on the meta device, by the thousand."""

    _LEFT_OUT = frozenset(
        ("add_", "clamp_", "copy_", "div_", "erfinv_", "fill_", "mul_", "normal_", "sub_", "uniform_", "zero_")
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        initialises = getattr(func, "__module__", None) == "torch.nn.init" or func.__name__ in self._LEFT_OUT
        tensor = next(iter(args), None) if args else next(iter((kwargs or {}).values()), None)
        if initialises and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **(kwargs or {}))


@lru_cache
def made_by(entry: Callable[..., nn.Module]) -> Callable[..., Any]:
    """The class of the network that a function registered with timm makes; the function itself where that is unknown.

    Functions of timm say it in their annotation, others make one.
    """
    try:
        made = get_type_hints(entry).get("return")
        if not isinstance(made, type) or made is nn.Module:
            with shapes_alone():
                made = type(entry())
    except Exception:  # annotations for type checkers alone, and whatever a stranger's function does
        return entry
    return made


def check_size(build: Callable[[], nn.Module], file: str | Path) -> None:
    """Build a network as a safetensors file says, without memory for its weights, and compare it with the file's own.

    Raises MetamixerError where it cannot be built, and where it has more than twice as many numbers as the file (a
    merged network has fewer than it is built with): so much memory it shall not get.
    """
    held = sum(tensor.numel() for tensor in read_shapes(file).values())
    try:
        with shapes_alone():
            built = sum(tensor.numel() for tensor in build().state_dict().values())
    except MetamixerError as error:
        raise MetamixerError(f"{file} cannot be what it says it is ({error})") from None
    except Exception as error:  # whatever a constructor makes of numbers that do not go together
        raise MetamixerError(f"{file} cannot be what it says it is ({' '.join(str(error).split())[:200]})") from None
    if built > 2 * held + 1000:
        raise MetamixerError(f"{file} says that it belongs to a network of {built} numbers, but holds {held}")


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
    state = {name: tensor for name, tensor in state.items() if name in expected or not name.endswith(COUNTERS)}
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
        "missing": [name for name in expected if name not in state and not name.endswith(COUNTERS)],
        "unexpected": [name for name in state if name not in expected],
        "misshapen": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
        "of another kind of numbers": [
            f"{name} ({str(state[name].dtype).removeprefix('torch.')})"
            for name, tensor in expected.items()
            if name in state
            and state[name].is_floating_point() != tensor.is_floating_point()
            and not name.endswith(COUNTERS)
        ],
    }
    problems = []
    for problem, found in names.items():
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            problems.append(f"{problem}: {', '.join(found[:3])}{more}")
    if problems:
        raise MetamixerError(f"{source} does not fit {architecture} ({'; '.join(problems)})")


def _keep_own(state: dict[str, Tensor], expected: Mapping[str, Tensor], prefix: str, lacks: str) -> str | None:
    """Fill in the model's own tensors under ``prefix``; a notice where there are any."""
    own = {name: tensor for name, tensor in expected.items() if name.startswith(prefix)}
    state |= own
    return f"holds {lacks}: the model's own stays" if own else None


def _adapt_input(model: nn.Module, state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    name = f"{getattr(model, 'pretrained_cfg', {}).get('first_conv')}.weight"
    if name not in state or name not in expected or state[name].ndim != 4 or not state[name].is_floating_point():
        return None
    held, wanted = state[name].shape[1], expected[name].shape[1]
    if held == wanted or not held:
        return None
    state[name] = adapt_input_channels(state[name], wanted)
    return f"was trained on {held} input channels: adapted to {wanted}"


def adapt_input_channels(weight: Tensor, wanted: int) -> Tensor:
    """A convolution's weight ``O × held × H × W`` for ``wanted`` input channels: one gets their sum, more repeat them.

    What timm's ``adapt_input_conv`` does, which before 1.0.31 adapts from three channels alone.
    """
    held = weight.shape[1]
    whole = weight.float()
    if wanted == 1:
        return whole.sum(1, keepdim=True).to(weight.dtype)
    repeated = whole.repeat(1, -(-wanted // held), 1, 1)[:, :wanted]
    return (repeated * (held / wanted)).to(weight.dtype)


def _adapt_heads(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Make the classifiers in ``state`` those that the model expects."""
    heads = {name: state.pop(name) for name in list(state) if name.startswith("head.")}
    if "head.fc.weight" not in expected:
        return None
    if "head.fc.weight" not in heads:
        return _keep_own(state, expected, "head.", "no classifier")
    if any(tensor.shape[1:] != expected[name].shape[1:] for name, tensor in heads.items() if name in expected):
        state |= heads  # to be refused
        return None
    held, wanted = heads["head.fc.weight"].shape[0], expected["head.fc.weight"].shape[0]
    if held != wanted:
        return _keep_own(state, expected, "head.", f"a classifier of {held} classes, not {wanted}")
    two_held, two_wanted = ("head.fc_dist.weight" in heads, "head.fc_dist.weight" in expected)
    for part in ("weight", "bias"):
        one, two = f"head.fc.{part}", f"head.fc_dist.{part}"
        if two_held and not two_wanted:
            second = heads.pop(two, None)
            if one not in heads or second is None or heads[one].shape != second.shape:
                continue  # to be refused
            heads[one] = (heads[one] + second) / 2
        elif two_wanted and not two_held and one in heads:
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
