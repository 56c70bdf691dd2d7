"""What a safetensors file says is checked before anything of it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import model_entrypoint

from metamixer import MetamixerError, build, create_model, list_models
from metamixer.heads.build import HEADS
from metamixer.limits import _ranges
from metamixer.models import load_model
from metamixer.networks import NETWORKS, save_network
from metamixer.schemas import ARGUMENTS, parameters_of, validated
from metamixer.tasks.dense import load_any_model
from metamixer.tasks.forecasting import Forecasting
from metamixer.tasks.point_clouds import PointSegmentation
from metamixer.tasks.super_resolution import SuperResolution
from metamixer.weights import save_checkpoint
from metamixer.weights.load import made_by

SMALL = dict(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8))
ELSEWHERE = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained", "file", "url")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A valid file of each kind of network."""
    folder = tmp_path_factory.mktemp("valid")
    found = {kind: folder / f"{kind}.safetensors" for kind in ("backbone", "dense", "series", "clouds", "pictures")}
    save_checkpoint(create_model("metaformer_nano", num_classes=2, **SMALL), found["backbone"], ["cat", "dog"])
    save_checkpoint(build("semantic_fpn", "metaformer_nano", 2, backbone_kwargs=SMALL, channels=8), found["dense"])
    small = dict(channels=2, lookback=8, horizon=3, dim=4, kernel_size=5, small_kernel=3)
    facts = {"split": "ratio", "columns": ["x", "y"], "mean": [0.0, 1.0], "deviation": [1.0, 2.0]}
    save_network(create_model("ffnet_tsf", **small), found["series"], facts)
    tiny = dict(enc_depths=(1,), enc_channels=(8,), dec_depths=(), dec_channels=())
    facts = {"classes": ["a", "b"], "features": ["coord", "color"], "grid": 0.1, "centre": True}
    save_network(create_model("ffnet_points", num_classes=2, **tiny), found["clouds"], facts)
    save_network(create_model("ffnet_sr_nano", dim=4, depth=1), found["pictures"])
    return found


def said_otherwise(file: Path, folder: Path, **changes: Any) -> Path:
    """The same tensors, saying something else; None leaves an entry out."""
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        said = opened.metadata()
    for name, value in changes.items():
        said.pop(name, None)
        if value is not None:
            said[name] = value if isinstance(value, str) else json.dumps(value)
    save_file(load_file(file), folder / "changed.safetensors", said)
    return folder / "changed.safetensors"


def arguments_of(file: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        return json.loads(opened.metadata()["arguments"])


KINDS = ("backbone", "dense", "series", "clouds", "pictures")


@pytest.mark.parametrize("kind", KINDS)
def test_valid_files_load(kind: str, files: dict[str, Path]) -> None:
    assert load_any_model(files[kind]).state_dict()


@pytest.mark.promise("bad input", "no weight file can make the program open another file")
@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_arguments_that_name_files_never_pass(kind: str, name: str, files: dict[str, Path], tmp_path: Path) -> None:
    asked = arguments_of(files[kind]) | {name: "/nowhere"}
    changed = said_otherwise(files[kind], tmp_path, arguments=asked)
    with pytest.raises(MetamixerError, match=rf"arguments\.{name} is no entry that is known there"):
        load_any_model(changed)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_nor_do_those_of_a_detectors_backbone(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    for backbone in ("metaformer_nano", "resnet18", "efficientvit_b0", "ffnet_seg"):
        asked = {"backbone": backbone, "backbone_kwargs": {name: "/nowhere"}}
        changed = said_otherwise(files["dense"], tmp_path, arguments=asked)
        with pytest.raises(MetamixerError, match=rf"arguments\.backbone_kwargs\.{name} is no entry"):
            load_any_model(changed)


@pytest.mark.promise("bad input", "a network that a file claims to hold, but does not, is never built")
@pytest.mark.parametrize(
    ("kind", "larger"),
    [
        ("backbone", {"dims": (16384,) * 4, "depths": (128, 1, 1, 1)}),
        ("backbone", {"dims": (4096,) * 4}),
        ("backbone", {"num_classes": 1_000_000}),
        ("dense", {"channels": 16384}),
        ("dense", {"backbone_kwargs": {"dims": (8192,) * 4, "depths": (1, 1, 1, 1)}}),
        ("series", {"lookback": 1_000_000}),
        ("series", {"dim": 16384}),
        ("clouds", {"enc_channels": (16384,)}),
        ("pictures", {"dim": 16384, "depth": 32}),
    ],
)
def test_larger_networks_than_the_file_holds(
    kind: str, larger: dict[str, Any], files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = said_otherwise(files[kind], tmp_path, arguments=arguments_of(files[kind]) | larger)
    real, allocated = torch.empty, []

    def empty(*size: Any, **how: Any) -> torch.Tensor:
        made = real(*size, **how)
        allocated.append(0 if made.is_meta else made.numel())
        return made

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(MetamixerError, match=r"says that it belongs to a network of|cannot be what it says"):
        load_any_model(changed)
    assert sum(allocated) < 1e6


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("backbone", {"arguments": {"depths": [10**6] * 4}}, "arguments.depths.0 should be less than or equal to 128"),
        ("backbone", {"arguments": {"dims": "wide"}}, "arguments.dims should be a valid tuple, but is 'wide'"),
        ("backbone", {"arguments": {"num_classes": True}}, "arguments.num_classes should be a valid integer"),
        ("backbone", {"arguments": '{"ffn_expansion": NaN}'}, "arguments.ffn_expansion should be a finite number"),
        ("backbone", {"arguments": '{"num_classes": ' + "9" * 5000 + "}"}, "arguments is no valid JSON"),
        ("backbone", {"arguments": "[" * 5000}, "arguments is no valid JSON"),
        ("backbone", {"arguments": {"mixer": "../x"}}, "arguments.mixer should match|arguments.mixer string should"),
        ("backbone", {"arguments": {"mixer": "nonsense"}}, "cannot be what it says it is .unknown mixer 'nonsense'"),
        ("backbone", {"arguments": {"dims": [4], "depths": [1, 1]}}, "cannot be what it says it is"),
        ("backbone", {"architecture": "no such thing"}, "architecture string should match"),
        ("backbone", {"architecture": "resnet18"}, "unknown model 'resnet18'"),
        ("backbone", {"classes": ["cat", 3]}, "classes.1 should be a valid string, but is 3"),
        ("backbone", {"colour": "blue"}, "colour is no entry that is known there"),
        ("backbone", {"preprocessing": {"image_size": 10**9}}, "preprocessing.image_size should be less than"),
        ("backbone", {"preprocessing": {"image_size": 64, "crop_pct": 0.0001}}, "preprocessing value error|crop more"),
        ("backbone", {"preprocessing": {"image_size": 64, "std": [0, 1, 1]}}, "preprocessing.std.0 should be greater"),
        ("backbone", {"preprocessing": {"image_size": 64, "mean": [0.5, None]}}, "mean.1 should be a valid number"),
        ("backbone", {"preprocessing": {"image_size": 64, "interpolation": "x"}}, "interpolation should be 'nearest'"),
        ("dense", {"arguments": {"backbone": "hf-hub:a/b"}}, "arguments.backbone"),
        ("dense", {"arguments": {"backbone": "nothing"}}, "is on an unknown backbone, 'nothing'"),
        ("dense", {"arguments": {"backbone_kwargs": 3}}, "arguments.backbone_kwargs should be a valid dictionary"),
        ("series", {"about": {"mean": [0, "1"]}}, "about.mean.1 should be a valid number"),
        ("series", {"about": {"mean": [0.0]}}, "about.mean has 1 entries where channels is 2"),
        ("series", {"about": {"classes": []}}, "about.classes is no entry that is known there"),
        ("series", {"about": {"split": "mine"}}, "about.split should be 'auto'"),
        ("clouds", {"about": {"grid": 0}}, "about.grid should be greater than 0"),
        ("clouds", {"about": {"classes": ["a"]}}, "about.classes has 1 entries where num_classes is 2"),
    ],
)  # fmt: skip
def test_one_sentence_names_file_entry_and_what_is_allowed(
    kind: str, changes: dict[str, Any], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(MetamixerError, match=message) as refused:
        load_any_model(said_otherwise(files[kind], tmp_path, **changes))
    assert "\n" not in str(refused.value)


def test_every_argument_of_our_networks_has_a_range() -> None:
    """A new argument of a constructor must get one, or a file that was saved with it cannot be read."""
    constructors = [made_by(model_entrypoint(name)) for name in list_models() if name not in NETWORKS]
    constructors += [*NETWORKS.values(), *(head.model for head in HEADS.values())]
    asked = set().union(*(parameters_of(constructor) for constructor in constructors))
    assert asked - ARGUMENTS.keys() <= {"backbone", "device", "dtype"}


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    network = create_model("ffnet_sr_nano", dim=4, depth=1)
    with pytest.raises(MetamixerError, match=r"about\.colour is no entry that is known there"):
        save_network(network, tmp_path / "a.safetensors", {"colour": "blue"})
    with pytest.raises(MetamixerError, match="classes is no valid JSON"):
        save_checkpoint(create_model("metaformer_nano", num_classes=1, **SMALL), tmp_path / "a.safetensors", ["\ud800"])
    assert not list(tmp_path.iterdir())


def test_peers_as_backbones_keep_their_arguments(tmp_path: Path) -> None:
    model = build("pspnet", "resnet18", 2, pretrained=False, backbone_kwargs={"in_chans": 1, "stem_width": 8})
    save_checkpoint(model, tmp_path / "a.safetensors")
    again = load_any_model(tmp_path / "a.safetensors")
    assert again.backbone.conv1.weight.shape[:2] == model.backbone.conv1.weight.shape[:2]
    assert timm.is_model("resnet18")


def test_a_file_that_says_nothing_needs_no_schema(files: dict[str, Path], tmp_path: Path) -> None:
    trained = create_model("casvit_nano", num_classes=2)
    save_file(trained.state_dict(), tmp_path / "bare.safetensors", {"format": "pt", "step": "3"})
    assert torch.equal(load_model(tmp_path / "bare.safetensors").head.fc.weight, trained.head.fc.weight)


@pytest.mark.parametrize(("task", "count"), [(SuperResolution, 6), (Forecasting, 14), (PointSegmentation, 1)])
def test_every_setting_of_a_training_may_stand_in_its_file(task: Any, count: int) -> None:
    """Both ends of the range of every setting that is an argument of the network, too."""
    hints = get_type_hints(task, include_extras=True)
    ends = [
        (name, getattr(limit, end))
        for name in hints.keys() & ARGUMENTS.keys()
        for base, info in _ranges(hints[name])
        for limit in info.metadata
        for end in ("ge", "le")
        if hasattr(limit, end)
    ]
    for name, value in ends:
        validated(ARGUMENTS[name], value, task.__name__, entry=name)
    assert len(ends) >= count


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    small = dict(channels=2, lookback=8, horizon=3, dim=4)
    file = tmp_path / "large.safetensors"
    with pytest.raises(MetamixerError, match=r"large\.safetensors: arguments\.kernel_size should be .* 1023"):
        save_network(create_model("ffnet_tsf", kernel_size=2047, **small), file)
    with pytest.raises(MetamixerError, match=r"large\.safetensors: arguments\.depths\.0 should be .* 128"):
        save_checkpoint(create_model("metaformer_nano", depths=(129, 0, 0, 0), dims=(4, 4, 8, 8)), file)
    assert not file.exists()
