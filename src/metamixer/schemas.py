"""What a file may say of itself: one schema for each format, checked before anything of it is used.

Types are strict (``"3"`` is no number, ``true`` no 1), numbers finite and within bounds, unknown names refused. The
formats are the metadata of safetensors files, the run folder of a training, and the cards of shipped weights; a
format that is a dataclass written out, as those of the race are, is checked against the dataclass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

from pydantic import (
    AfterValidator,
    AllowInfNan,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from torch import Tensor
from typing_extensions import Self, TypedDict

from metamixer.errors import MetamixerError
from metamixer.limits import (
    MOST_CLASSES,
    Count,
    Depth,
    Kernel,
    Ratio,
    Share,
    Side,
    Text,
    Upscaling,
    Width,
    shortened,
)

#: How every file is read; dataclasses take it as ``__pydantic_config__``.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

MEASURED = STRICT | ConfigDict(allow_inf_nan=True)
"""The same where what was measured may be undefined."""

T = TypeVar("T")


def validated(schema: type[T], value: Any, file: str | Path, *, entry: str = "", json: bool = False) -> T:
    """A value from a file, as the schema (a pydantic model, or any type that pydantic knows) describes it.

    Args:
        schema: the type.
        value: what the file holds; JSON as text or bytes with ``json``.
        file, entry: the file, and where in it the value is, for the message.
        json: parse the value first, with bounds on nesting and on digits.

    Raises MetamixerError in one sentence that names the file, the entry, and what is allowed there.
    """
    adapter: TypeAdapter[T] = _adapter(cast(Hashable, schema))
    try:
        return adapter.validate_json(value) if json else adapter.validate_python(value)
    except ValidationError as error:
        raise MetamixerError(_sentence(error, file, entry)) from None
    except RecursionError:
        raise MetamixerError(f"{file} is nested too deeply") from None


@lru_cache
def _adapter(schema: Any) -> TypeAdapter:
    return TypeAdapter(schema)


def _sentence(error: ValidationError, file: str | Path, within: str) -> str:
    """The first of the errors in words."""
    first = error.errors(include_url=False)[0]
    # What is no identifier or number names a branch of a union.
    parts = [str(part) for part in first["loc"] if str(part).isidentifier() or isinstance(part, int)]
    entry = ".".join([within, *parts] if within else parts)[:200]
    where = f"{file}: {entry}" if entry else str(file)
    kind, message = first["type"], first["msg"]
    if kind == "extra_forbidden":
        return f"{where} is no entry that is known there"
    if kind == "missing":
        return f"{where} is missing"
    if kind in ("json_invalid", "json_type"):
        return f"{where} is no valid JSON ({message.partition(': ')[2] or message})"
    message = message.replace("Input should", "should").replace("Value error, ", "")
    return f"{where} {message[:1].lower() + message[1:]}, but is {shortened(first['input'])}"


class _Entries(BaseModel):
    model_config = STRICT


# --- Bounds ----------------------------------------------------------------------------------------------------------
# Far above all that is in use, and low enough that checking costs little. What is a setting, too, is in limits.py.

WIDTH = 16_384  # channels
STAGES = 16

Factor = Annotated[float, Field(gt=0, le=256)]
Number = Annotated[float, Field(ge=-1e300, le=1e300)]
Deviation = Annotated[float, Field(gt=0, le=1e300)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$", max_length=100)]
ClassName = Annotated[str, StringConstraints(max_length=4096)]
ClassNames = Annotated[tuple[ClassName, ...], Field(max_length=MOST_CLASSES)]
Numbers = Annotated[tuple[Number, ...], Field(min_length=1, max_length=WIDTH)]
Deviations = Annotated[tuple[Deviation, ...], Field(min_length=1, max_length=WIDTH)]


def _some(kind: Any, most: int = STAGES) -> Any:
    return Annotated[tuple[kind, ...], Field(max_length=most)]


# --- Metadata of safetensors files -----------------------------------------------------------------------------------


class PreprocessingEntries(_Entries):
    """``preprocessing``: the fields of :class:`metamixer.data.transforms.Preprocessing`."""

    image_size: Side
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    mean: Numbers = (0.485, 0.456, 0.406)
    std: Deviations = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "nearest-exact", "bilinear", "bicubic"] = "bicubic"
    crop_mode: Literal["center", "squash"] = "center"

    @model_validator(mode="after")
    def _resizes_to_a_bounded_side(self) -> Self:
        if self.image_size / self.crop_pct > 2 * 8192:
            raise ValueError("should crop more than that of a picture so large")
        return self


class AboutEntries(_Entries):
    """``about``: what the use of a network needs beside its weights. Every kind of network has entries of its own."""

    note: Text | None = None


class AboutSeries(AboutEntries):
    """Of a network for forecasting."""

    split: Literal["auto", "ett_hour", "ett_minute", "ratio"] | None = None
    time_column: Text | None = None
    columns: Annotated[list[ClassName], Field(max_length=WIDTH)] | None = None
    mean: Annotated[list[Number], Field(max_length=WIDTH)] | None = None
    deviation: Annotated[list[Deviation], Field(max_length=WIDTH)] | None = None


class AboutClouds(AboutEntries):
    """Of a network for point clouds."""

    classes: Annotated[list[ClassName], Field(max_length=MOST_CLASSES)] | None = None
    features: Annotated[list[Text], Field(min_length=1, max_length=STAGES)] | None = None
    grid: Annotated[float, Field(gt=0, le=1e6)] | None = None
    centre: bool | None = None


class FileMetadata(_Entries):
    """All metadata of a safetensors file of ours; what the arguments may be, the architecture says."""

    @model_validator(mode="after")
    def _normalises_its_channels(self) -> Self:
        said = self.preprocessing
        if said is not None and not len(said.mean) == len(said.std) in (1, 3, self.arguments.get("in_chans")):
            raise ValueError("should have as many means as deviations in its preprocessing, one for each channel")
        return self

    format: Literal["pt"] = "pt"
    architecture: Name
    classes: Json[ClassNames] | None = None
    preprocessing: Json[PreprocessingEntries] | None = None
    arguments: Json[dict[Name, Any]] = Field(default_factory=dict, max_length=100)
    about: Json[dict[Name, Any]] = Field(default_factory=dict, max_length=100)


class FiguresEntries(_Entries):
    """``ARCHITECTURE.TAG.json`` beside the card of shipped weights: validation accuracy in percent."""

    top1: Annotated[float, Field(ge=0, le=100)]
    top5: Annotated[float, Field(ge=0, le=100)]


# --- Arguments of networks -------------------------------------------------------------------------------------------


def _plain(value: Any, several: bool = True) -> Any:
    if several and isinstance(value, tuple) and len(value) <= STAGES:
        return tuple(_plain(one, several=False) for one in value)
    if value is None or isinstance(value, bool) or (isinstance(value, str) and len(value) <= 100):
        return value
    if isinstance(value, int | float) and abs(value) <= WIDTH:  # which NaN is not
        return value
    raise ValueError(f"should be a number up to {WIDTH}, a short text, true, false, or a few of them")


Plain = Annotated[Any, AfterValidator(_plain)]
"""An argument of somebody else's mixer or network."""

#: Every argument by which a file may shape a network of ours, whichever takes it. None of them names a file.
ARGUMENTS: dict[str, Any] = {
    # backbones
    "dims": _some(Width),
    "depths": _some(Depth),
    "expansion": Factor,
    "mlp_ratio": Factor,
    "ffn_expansion": Factor,
    "stem_dim": Width,
    "output_stride": Literal[8, 16, 32],
    "in_chans": Width,
    "num_classes": Annotated[int, Field(ge=0, le=MOST_CLASSES)],
    "global_pool": Literal["", "avg", "max", "avgmax", "catavgmax", "fast", "fastavg", "fastmax", "fastavgmax",
                           "fastcatavgmax"],
    "drop_rate": Share,
    "drop_path_rate": Share,
    "proj_drop": Share,
    "distilled": bool,
    "feature_norms": bool,
    "token_kernels": _some(Kernel),
    "channel_kernel": Kernel,
    "ffn_kernel": Kernel,
    "layer_scale": Annotated[float, Field(ge=-1e6, le=1e6)] | None,
    "mixer": Name | _some(Name),
    "mixer_args": Annotated[dict[Name, Plain], Field(max_length=STAGES)] | None,
    "dynamic": bool,
    # heads
    "backbone": Name,
    "backbone_kwargs": Annotated[dict[Name, Any], Field(max_length=100)],
    "channels": Width,
    "head_channels": Width,
    "auxiliary": bool,
    "kernel": Kernel,
    "depth": Depth,
    "stds": _some(tuple[Factor, Factor, Factor, Factor]),
    "convs": Depth,
    "layers": Depth,
    "hidden": Width,
    "score_threshold": Share,
    "overlap": Share,
    "proposal_overlap": Share,
    "candidates": Count,
    "limit": Count,
    "proposals": Count,
    "samples": Count,
    "matched_from": Share,
    "averaged_over": Literal["pixels", "labelled", "weights"] | None,
    "kernels": _some(Kernel),
    # other networks
    "scale": Upscaling,
    "dim": Width,
    "large_init": bool,
    "lookback": Count,
    "horizon": Count,
    "ffn_ratio": Ratio,
    "patch": Kernel,
    "stride": Kernel,
    "kernel_size": Kernel,
    "small_kernel": Kernel,
    "head_drop_rate": Share,
    "in_channels": Width,
    "enc_depths": _some(Depth),
    "enc_channels": _some(Width),
    "dec_depths": _some(Depth),
    "dec_channels": _some(Width),
}  # fmt: skip

_FEATURES = {"out_indices": Annotated[tuple[Annotated[int, Field(ge=-STAGES, le=64)], ...], Field(max_length=STAGES)]}
"""What ``features_only`` adds to a backbone's own arguments."""
_USUAL = ("num_classes", "in_chans", "global_pool", "output_stride", "drop_rate", "drop_path_rate")
"""What all networks of timm take, though few say so."""
_NEVER = frozenset({"device", "dtype", "pretrained", "kwargs", "backbone"})
"""Arguments of constructors that belong to the program that loads a file."""


def validated_arguments(
    arguments: Mapping[str, Any], constructor: Callable[..., Any], file: str | Path, entry: str = "arguments"
) -> dict[str, Any]:
    """A file's arguments of a network: those alone that its constructor takes, each of its type and in its range.

    Args:
        arguments: what the file says.
        constructor: class or function that makes the network, ours or other people's, whose arguments are plain values.
        file, entry: for the message.

    Raises MetamixerError for an argument that the constructor does not take, and a value out of its range.
    """
    return dict(validated(_schema_of(constructor), tuples(arguments), file, entry=entry))


@lru_cache
def _schema_of(constructor: Callable[..., Any]) -> Any:
    names = parameters_of(constructor) - _NEVER
    if getattr(constructor, "__module__", "metamixer.").startswith(("metamixer.", "functools")):  # a partial's own
        kinds = {name: ARGUMENTS[name] for name in names if name in ARGUMENTS}
    else:
        kinds = dict.fromkeys(names, Plain) | {name: ARGUMENTS[name] for name in _USUAL}
    kinds |= _FEATURES
    schema = TypedDict("Arguments", kinds, total=False)  # type: ignore[misc]
    schema.__pydantic_config__ = STRICT  # type: ignore[attr-defined]
    return schema


def parameters_of(constructor: Callable[..., Any]) -> set[str]:
    """Names of a constructor's arguments; a class that passes the rest on takes those of the next one too."""
    if not inspect.isclass(constructor):
        return set(inspect.signature(constructor).parameters)
    names: set[str] = set()
    for cls in constructor.__mro__:
        if "__init__" in vars(cls):
            parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            names |= {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break
    return names - {"self"}


def tuples(value: Any) -> Any:
    """JSON has lists alone."""
    if isinstance(value, Mapping):
        return {name: tuples(inner) for name, inner in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


# --- The folder of a training run ------------------------------------------------------------------------------------

Counted = Annotated[int, Field(ge=0, le=10**15)]
Finite = Annotated[float, Field(ge=-1e300, le=1e300)]
Factors = Annotated[float, Field(gt=0, le=1e300)]
Measured = Annotated[float, AllowInfNan(True)]
"""A metric may be undefined."""
Row = Annotated[dict[Text, Measured], Field(max_length=10_000)]
_Scalar: TypeAlias = bool | int | Measured | Annotated[str, StringConstraints(max_length=100_000)] | None
_Scalars: TypeAlias = Annotated[list[_Scalar], Field(max_length=MOST_CLASSES)]
_Setting: TypeAlias = _Scalar | Annotated[list[_Scalar | _Scalars], Field(max_length=MOST_CLASSES)]
Settings: TypeAlias = dict[Text, _Setting | Annotated[dict[Text, _Setting], Field(max_length=100)]]
"""``config.json``, and ``config`` in a checkpoint: what :meth:`metamixer.train.config.TrainConfig.to_dict` gives."""


class ProgressEntries(_Entries):
    """``progress``: the fields of :class:`metamixer.train.run.Progress`."""

    epoch: Counted
    batch: Counted
    step: Counted
    seen: Counted
    loss_sum: Finite
    seconds: Annotated[float, Field(ge=0, le=1e15)]
    rows: Annotated[list[Row], Field(max_length=1_000_000)]
    best: Row
    best_epoch: Counted

    @model_validator(mode="after")
    def _is_of_a_run(self) -> Self:
        if self.epoch != len(self.rows) or self.best_epoch > self.epoch:
            raise ValueError("should have a row for every epoch that is done")
        if self.batch > self.seen or (self.batch and not self.seconds):
            raise ValueError("should have seen a sample or more in every batch, and taken some time")
        return self


class NumPyGeneratorEntries(_Entries):
    class _State(_Entries):
        model_config = STRICT | {"arbitrary_types_allowed": True}

        key: Tensor
        pos: Annotated[int, Field(ge=0, le=624)]

    bit_generator: Literal["MT19937"]
    state: _State
    has_gauss: Annotated[int, Field(ge=0, le=1)]
    gauss: float


_Words = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=625, max_length=625)]


class GeneratorEntries(_Entries):
    """One of ``generators``: the state of each global one of a process, those of its device under the device's name."""

    model_config = STRICT | {"arbitrary_types_allowed": True}

    python: tuple[Literal[3], _Words, float | None]
    numpy: NumPyGeneratorEntries
    torch: Tensor
    cuda: Tensor | None = None
    mps: Tensor | None = None
    xpu: Tensor | None = None


class OptimizerEntries(_Entries):
    """``optimizer``: what each holds beside, the optimiser itself says."""

    state: Annotated[dict[Counted, dict[Text, Any]], Field(max_length=1_000_000)]
    param_groups: Annotated[list[dict[Text, Any]], Field(max_length=100_000)]


class ScalerEntries(TypedDict):
    """``scaler``: of gradients in fp16."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    scale: Factors
    growth_factor: Factors
    backoff_factor: Factors
    growth_interval: Counted
    _growth_tracker: Counted


class CheckpointEntries(_Entries):
    """A file ``checkpoints/step_N.pt``."""

    model_config = STRICT | {"arbitrary_types_allowed": True}

    config: Settings
    progress: ProgressEntries
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: OptimizerEntries
    scaler: ScalerEntries | None
    generators: Annotated[list[GeneratorEntries], Field(max_length=100_000)]
