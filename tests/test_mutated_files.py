"""Files that were once valid, changed at random: every reader takes them or refuses them in one sentence, soon, with
nothing else opened and nobody asked over the network."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import metamixer as mm
from metamixer import MetamixerError, build, create_model
from metamixer.deploy.export import export
from metamixer.networks import save_network
from metamixer.tasks.dense import load_any_model
from metamixer.train import checkpointing
from metamixer.weights import save_checkpoint
from metamixer.weights.convert import convert

SMALL = dict(depths=(1, 1, 1, 1), dims=(4, 4, 8, 8))
SECONDS = 30  # of the processor for one reading, a short training among them
ODD_VALUES: list[Any] = (
    [None, True, False, 0, -1, 3, 2**31, 10**30, -(10**30), 0.5, 1e308, float("nan"), float("inf"), "", "x", "\ud800",
     "../../etc/passwd", "/dev/zero", "http://127.0.0.1:9/x", "[b]", [], [0], [[]], {}, {"a": {}}, [None, 1]]
)  # fmt: skip
ODD = st.sampled_from(ODD_VALUES)
ODD_STATE = [*ODD_VALUES, torch.zeros(()), torch.zeros(3), torch.full((8,), torch.nan), torch.ones(2, 2).int()]


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in nested dictionaries and lists something can be changed."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list | tuple) and len(value) < 20:
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))


def changed(value: Any, data: st.DataObject, odd: st.SearchStrategy[Any] = ODD) -> Any:
    """``value`` with one to three entries dropped, replaced, renamed or added."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        path = data.draw(st.sampled_from([*places(value)]), label="place")
        how = data.draw(st.sampled_from(["drop", "replace", "add", "deepen"]), label="how")
        new = deep(data.draw(st.sampled_from([3, 90, 400]))) if how == "deepen" else data.draw(odd, label="new")
        value = _put(value, path, how, new)
    return value


def _put(value: Any, path: tuple[Any, ...], how: str, new: Any) -> Any:
    if not path:
        if how == "add" and isinstance(value, dict):
            return {**value, "surprise": new}
        return new if how in ("replace", "deepen") else value
    key, rest = path[0], path[1:]
    if isinstance(value, dict):
        if how == "drop" and not rest:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: _put(value[key], rest, how, new)}
    entries = list(value)
    if how == "drop" and not rest:
        del entries[key]
    else:
        entries[key] = _put(entries[key], rest, how, new)
    return type(value)(entries)


# --- What is opened --------------------------------------------------------------------------------------------------

_watching: list[tuple[str, Any]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is not None and event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
        _watching.append((event, arguments[1] if event == "socket.connect" else arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def nothing_else_opened(*allowed: Path) -> Iterator[None]:
    """Fails where a file outside ``allowed`` and the installed packages is opened, or a network asked."""
    global _watching
    _watching = seen = []
    try:
        yield
    finally:
        _watching = None
    own = [str(path) for path in allowed] + [path for path in (*sys.path, sys.prefix, sys.base_prefix) if path]
    for event, what in seen:
        name = str(what)
        known = isinstance(what, int) or name.startswith((*own, "/proc/", "/sys/")) or "/__pycache__/" in name
        assert event == "open", (event, what)
        assert known, f"{name} was opened"


@contextmanager
def ends_well(*allowed: Path) -> Iterator[None]:
    """Success, or one sentence; soon."""
    begun = time.process_time()
    with nothing_else_opened(*allowed):
        sentence = ""
        try:
            yield
        except MetamixerError as error:
            sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 1500
    assert time.process_time() - begun < SECONDS


# --- safetensors files -----------------------------------------------------------------------------------------------

KINDS = ("backbone", "dense", "series", "clouds", "pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid file of each kind, and a little data for each."""
    folder = tmp_path_factory.mktemp("valid")
    torch.manual_seed(0)
    save_checkpoint(
        create_model("metaformer_nano", num_classes=2, **SMALL), folder / "backbone.safetensors", ["a", "b"]
    )
    dense = build("semantic_fpn", "metaformer_nano", 2, backbone_kwargs=SMALL, channels=8, head_channels=8)
    save_checkpoint(dense, folder / "dense.safetensors", ["a", "b"])
    small = dict(channels=2, lookback=8, horizon=3, dim=4, kernel_size=5, small_kernel=3)
    facts = {"split": "ratio", "columns": ["x", "y"], "mean": [0.0, 1.0], "deviation": [1.0, 2.0], "time_column": "t"}
    save_network(create_model("ffnet_tsf", **small), folder / "series.safetensors", facts)
    tiny = dict(enc_depths=(1,), enc_channels=(8,), dec_depths=(), dec_channels=())
    facts = {"classes": ["a", "b"], "features": ["coord", "coord"], "grid": 0.1, "centre": True}
    save_network(create_model("ffnet_points", num_classes=2, **tiny), folder / "clouds.safetensors", facts)
    save_network(create_model("ffnet_sr_nano", dim=4, depth=1), folder / "pictures.safetensors")

    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    rows = "".join(f"2026-01-01 {hour:02}:00,{hour},{-hour}\n" for hour in range(24))
    (folder / "a.csv").write_text("t,x,y\n" + rows)
    (folder / "a_cloud").mkdir()
    np.save(folder / "a_cloud" / "coord.npy", np.random.default_rng(0).random((50, 3), np.float32))
    return folder


DATA = {"backbone": "a.png", "dense": "a.png", "series": "a.csv", "clouds": "a_cloud", "pictures": "a.png"}


def metadata_of(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="np") as opened:
        said = opened.metadata()
    names = sorted(said)  # they come in any order
    return {name: said[name] if name in ("format", "architecture") else json.loads(said[name]) for name in names}


def write(state: dict[str, torch.Tensor], said: Any, path: Path) -> None:
    """As a stranger would write it: entries that are no texts become JSON."""
    if not isinstance(said, dict):
        said = {"architecture": json.dumps(said)}
    texts = {
        str(name).encode("utf-8", "replace").decode(): value.encode("utf-8", "replace").decode()
        if isinstance(value, str)
        else json.dumps(value)
        for name, value in said.items()
    }
    save_file(state, path, texts)


def read_all(path: Path, kind: str, folder: Path, out: Path) -> list[Callable[[], object]]:
    """Every reader of a file of weights."""
    source = folder / DATA[kind]
    readers: list[Callable[[], object]] = [
        lambda: mm.predict(load_any_model(path).eval(), source),
        lambda: convert(path, out / "converted.safetensors", half=True),
        lambda: convert(path, out / "converted.safetensors", model="metaformer_nano"),
        lambda: create_model({"series": "ffnet_tsf", "clouds": "ffnet_points", "pictures": "ffnet_sr_nano"}.get(
            kind, "metaformer_nano"), checkpoint=path),
        lambda: build("semantic_fpn", "metaformer_nano", checkpoint=path),
    ]  # fmt: skip
    return readers


@pytest.mark.promise("bad input", "whatever a weight file says, each reader takes it or refuses it in one sentence")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck], database=None)
@given(data=st.data())
def test_what_files_of_weights_say(kind: str, folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    file = folder / f"{kind}.safetensors"
    path = tmp_path / "changed.safetensors"
    write(load_file(file), changed(metadata_of(file), data), path)
    for read in read_all(path, kind, folder, tmp_path):
        with ends_well(tmp_path, folder):
            read()


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck], database=None)
@given(data=st.data())
def test_damaged_bytes(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Cut short, overwritten or lengthened anywhere, as downloads and disks do it."""
    kind = data.draw(st.sampled_from(["backbone.safetensors", "a.pth"]))
    if kind == "a.pth" and not (folder / kind).exists():
        torch.save(load_file(folder / "backbone.safetensors"), folder / kind)
    written = bytearray((folder / kind).read_bytes())
    at = data.draw(st.integers(0, min(len(written), 6000)) | st.integers(0, len(written)))
    new = data.draw(st.binary(min_size=1, max_size=8))
    how = data.draw(st.sampled_from(["cut", "overwrite", "insert"]))
    damaged = written[:at] if how == "cut" else written[:at] + new + written[at + len(new) * (how == "overwrite") :]
    path = tmp_path / f"damaged{Path(kind).suffix}"
    path.write_bytes(damaged)
    for read in (lambda: load_any_model(path), lambda: convert(path, tmp_path / "b.safetensors", "metaformer_nano")):
        with ends_well(tmp_path):
            read()


def test_exports_of_changed_files(folder: Path, tmp_path: Path) -> None:
    """An export goes through the same reader."""
    said = metadata_of(folder / "backbone.safetensors")
    for changes in ({"preprocessing": 3}, {"arguments": {"cache_dir": "/"}}):
        write(load_file(folder / "backbone.safetensors"), said | changes, tmp_path / "a.safetensors")
        with ends_well(tmp_path, folder):
            export(load_any_model(tmp_path / "a.safetensors"), "onnx", tmp_path / "a.onnx", repeats=0)
        assert not (tmp_path / "a.onnx").exists()


# --- The folder of a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training that can be resumed, and the state that it would be resumed from."""
    from metamixer.tasks.classification import Classification
    from metamixer.train import TrainConfig

    root = tmp_path_factory.mktemp("run")
    for part in ("train", "val"):
        for i, name in enumerate("abc"):
            (root / "data" / part / name).mkdir(parents=True)
            for j in range(2):
                Image.new("RGB", (32, 32), (80 * i, 20 * j, 0)).save(root / "data" / part / name / f"{j}.png")
    arguments = tuple(f"{name}={value}".replace(" ", "") for name, value in SMALL.items())
    task = Classification("metaformer_nano", str(root / "data"), image_size=32, model_args=arguments)
    config = TrainConfig(task, out=str(root / "run"), epochs=1, batch_size=2, workers=0, save_every=1)
    mm.train(config)
    state = torch.load(sorted((root / "run" / "checkpoints").iterdir())[0], weights_only=True)
    return config, state


@pytest.mark.promise("bad input", "a changed checkpoint of a run is resumed or refused in one sentence")
@pytest.mark.parametrize("seed", range(8))
def test_states_of_a_run(seed: int, run: Any, tmp_path: Path) -> None:
    """Drawn by seed: each is a short training, too long for hypothesis to make smaller."""
    config, state = run
    random = Random(seed)
    part = random.choice([name for name in state if name != "model"])
    new = copy.deepcopy(state[part])
    for _ in range(2):
        place = random.choice([*places(new)])
        new = _put(new, place, random.choice(["drop", "replace", "add"]), random.choice(ODD_STATE))
    torch.save({**state, part: new}, tmp_path / "step.pt")
    with ends_well(tmp_path, Path(config.out).parent, Path("/dev/null")):
        mm.train(replace(config, out=str(tmp_path / "out"), resume=str(tmp_path / "step.pt"), allow_changes=True))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck], database=None)
@given(data=st.data())
def test_settings_of_a_run(run: Any, tmp_path: Path, data: st.DataObject) -> None:
    config, state = run
    new = changed(state["config"], data)
    (tmp_path / "config.json").write_text(json.dumps(new), encoding="utf-8")
    with ends_well(tmp_path):
        checkpointing.check_same(config, checkpointing.read_settings(tmp_path / "config.json"), tmp_path)


def test_a_state_that_grows_when_it_is_walked(run: Any, tmp_path: Path) -> None:
    """Lists of the same lists, forty deep: small in the file, endless for whoever walks through them."""
    config, state = run
    bomb: Any = []
    for _ in range(40):
        bomb = [bomb, bomb]
    for part in ("config", "progress", "optimizer", "generators", "scaler"):
        torch.save({**state, part: bomb}, tmp_path / "step.pt")
        with ends_well(tmp_path):
            checkpointing.read(tmp_path / "step.pt")
        inner = {**state[part], "surprise": bomb} if isinstance(state[part], dict) else [bomb]
        torch.save({**state, part: inner}, tmp_path / "step.pt")
        with ends_well(tmp_path):
            checkpointing.read(tmp_path / "step.pt")
    assert config


# --- Records of a race -----------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck], database=None)
@given(data=st.data())
def test_records_of_a_race(tmp_path: Path, data: st.DataObject) -> None:
    from metamixer.bench.race.grid import Speeds, _read
    from metamixer.bench.race.standings import Cell

    timing = {"median_ms": 1.0, "low": 0.9, "high": 1.1}
    speed = {"parameters": 1, "merged_parameters": 1, "macs": 1, "ffn_expansion": None, "training_memory": 1,
             "images_per_second": 2.0, "torch": timing, "onnx": None, "onnx_missing": "x"}  # fmt: skip
    cell = {"mixer": "aff", "seed": 0, "top1": 1.0, "top5": 2.0, "images_per_second": 3.0, "curve": [{"top1": 1.0}]}
    for name, valid, schema in (("cell", cell, Cell), ("speed", {"asked": {}, "speeds": {"aff": speed}}, Speeds)):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(valid))
        assert isinstance(_read(path, schema), schema)
        path.write_text(json.dumps(changed(valid, data)))
        with ends_well(tmp_path):
            _read(path, schema)
