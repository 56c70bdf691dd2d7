"""Bad input through the command: whatever is given to whatever verb ends soon, in one sentence."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from metamixer.bench.command import bench_command
from metamixer.bench.race import RaceTask
from metamixer.cli import VERBS, main
from metamixer.data.command import Check
from metamixer.deploy.export import export_command
from metamixer.limits import available_memory
from metamixer.printing import shown
from metamixer.tasks.evaluate import evaluate_command
from metamixer.tasks.predict import predict_command
from metamixer.train.config import TrainConfig
from metamixer.train.recipes import get_recipe

NON_FILES = runpy.run_path(str(Path(__file__).with_name("non_files.py")))["NON_FILES"]
MODEL = "casvit_nano.cifar10"
TRAINING = ["--epochs", "1", "--batch-size", "2", "--workers", "0", "--image-size", "32"]


def run(*arguments: object) -> int:
    """Exit code of the command, in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:  # tyro's way to end
        return int(stop.code or 0)


def picture(path: Path, colour: tuple[int, int, int] = (200, 10, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), colour).save(path)
    return path


def class_folders(root: Path, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for split in ("train", "val"):
        for i, name in enumerate(names):
            for j in range(2):
                picture(root / split / name / f"{j}.png", (40 * j, 100, 20 * i))
    return root


def class_maps(root: Path) -> Path:
    labels = np.arange(40, dtype=np.uint8) // 20 + np.zeros((40, 40), np.uint8)
    for split in ("train", "val"):
        picture(root / split / "images" / "0.png")
        (root / split / "labels").mkdir(parents=True)
        Image.fromarray(labels).save(root / split / "labels" / "0.png")
    return root


def yolo(root: Path) -> Path:
    for split in ("train", "val"):
        picture(root / "images" / split / "a.png")
        (root / "labels" / split).mkdir(parents=True)
    (root / "data.yaml").write_text("names: [a, b]\ntrain: images/train\nval: images/val\n")
    return root


def check(root: Path) -> list[object]:
    return ["data", "check", root, "--workers", 0]


def train(data: Path, out: Path, *more: object) -> list[object]:
    return ["train", "casvit_nano", "--data", data, "--out", out / "run", *TRAINING, *more]


def points(root: Path, part: str) -> list[object]:
    return [
        "train",
        "s3dis",
        "--data",
        root,
        "--train",
        part,
        "--val",
        part,
        "--classes",
        "a",
        "b",
        "--out",
        root / "o",
    ]


# What a path can name: the place of the file, and the command that comes upon it.
Case = Callable[[Path], tuple[Path, list[object]]]
CASES: dict[str, Case] = {
    "predict PICTURE": lambda d: (d / "x.png", ["predict", MODEL, d / "x.png"]),
    "predict, in a folder": lambda d: (d / "x" / "x.png", ["predict", MODEL, d / "x"]),
    "predict MODEL": lambda d: (d / "x.pth", ["predict", d / "x.pth", d / "a.png"]),
    "evaluate MODEL": lambda d: (d / "x.safetensors", ["evaluate", d / "x.safetensors", "--data", d]),
    "evaluate --data": lambda d: (d / "x", ["evaluate", MODEL, "--data", d / "x"]),
    "evaluate, in a folder": lambda d: (
        class_folders(d) / "val" / "cat" / "x.png",
        ["evaluate", MODEL, "--data", d, "--workers", 0],
    ),
    "convert": lambda d: (d / "x.pth", ["convert", d / "x.pth", d / "y.safetensors"]),
    "export MODEL": lambda d: (d / "x.safetensors", ["export", d / "x.safetensors", "--to", "torch", "--out", d / "e"]),
    "export --pictures": lambda d: (
        d / "x",
        ["export", MODEL, "--to", "torch", "--out", d / "e", "--pictures", d / "x"],
    ),
    "bench MODEL": lambda d: (d / "x.safetensors", ["bench", d / "x.safetensors", "--runtimes", "torch"]),
    "race --data": lambda d: (d / "x", ["race", "--data", d / "x", "--mixers", "pooling", "--out", d / "r", *TRAINING]),
    "train --data": lambda d: (d / "x", train(d / "x", d)),
    "train, in a folder": lambda d: (class_folders(d / "c") / "val" / "cat" / "x.png", train(d / "c", d)),
    "train --checkpoint": lambda d: (d / "x.pth", train(class_folders(d / "c"), d, "--checkpoint", d / "x.pth")),
    "train --teacher": lambda d: (d / "x.pth", train(class_folders(d / "c"), d, "--teacher", d / "x.pth")),
    "train --resume": lambda d: (d / "x.pt", train(class_folders(d / "c"), d, "--resume", d / "x.pt")),
    "shard": lambda d: (d / "s" / "train-0.tar", train(d / "s", d)),
    "table": lambda d: (d / "x.csv", ["train", "etth1", "--data", d / "x.csv", "--out", d / "o"]),
    "compressed table": lambda d: (d / "x.csv.gz", ["train", "etth1", "--data", d / "x.csv.gz", "--out", d / "o"]),
    "cloud .npz": lambda d: (d / "x.npz", points(d, "x.npz")),
    "cloud .pth": lambda d: (d / "x" / "x.pth", points(d, "x")),
    "cloud .npy": lambda d: (d / "x" / "s" / "coord.npy", points(d, "x")),
    "saved data set": lambda d: (d / "h" / "dataset_info.json", train(_saved(d / "h"), d)),
    "check DIR": lambda d: (d / "x", check(d / "x")),
    "check, in a folder": lambda d: (class_folders(d) / "train" / "cat" / "x.png", check(d)),
    "check, class names": lambda d: (class_maps(d) / "classes.txt", check(d)),
    "check, colours": lambda d: (class_maps(d) / "class_dict.csv", check(d)),
    "check, ADE20K's names": lambda d: (class_maps(d) / "objectInfo150.txt", check(d)),
    "check, class map": lambda d: (class_maps(d) / "train" / "labels" / "x.png", check(d)),
    "check, list": lambda d: (_voc_maps(d) / "ImageSets" / "Segmentation" / "train.txt", check(d)),
    "check, YAML": lambda d: (yolo(d) / "more.yaml", check(d)),
    "check, labels": lambda d: (yolo(d) / "labels" / "train" / "a.txt", check(d)),
    "check, COCO": lambda d: (picture(d / "a.png").with_name("instances_train.json"), check(d)),
    "check, VOC": lambda d: (picture(d / "JPEGImages" / "a.png").parents[1] / "Annotations" / "a.xml", check(d)),
}


def _saved(root: Path) -> Path:
    root.mkdir()
    (root / "state.json").write_text("{}")
    return root


def _voc_maps(root: Path) -> Path:
    picture(root / "JPEGImages" / "a.png")
    picture(root / "SegmentationClass" / "a.png")
    return root


# What is passed over, as no file of that name is meant: an unused folder, or what a search for files leaves out.
PASSED_OVER = ("folder",)


def _meets(case: str, kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, arguments = CASES[case](folder)
    place.parent.mkdir(parents=True, exist_ok=True)
    NON_FILES[kind](place)
    code = run(*arguments)
    said = capsys.readouterr()
    if code == 0:
        assert kind in PASSED_OVER, said.out
        return
    assert code == 1
    if arguments[0] == "data" and not said.err:  # a report of what is wrong
        assert "problem: " in said.out
        return
    assert said.err.startswith("metamixer: ")
    lines = said.err.splitlines()
    assert len(lines) == 1 or all(str(place.parent) in line for line in lines)  # one for each picture


@pytest.mark.promise("bad input", "a pipe in any file's place, for any verb and inside any data set, is one sentence")
@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", CASES)
def test_a_pipe_in_a_files_place(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _meets(case, "pipe", tmp_path, capsys)


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [kind for kind in NON_FILES if kind != "pipe"])
@pytest.mark.parametrize("case", CASES)
def test_anything_in_a_files_place(case: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _meets(case, kind, tmp_path, capsys)


def test_every_verb_that_reads_is_tried() -> None:
    assert {name.split()[0].rstrip(",") for name in CASES} >= VERBS.keys() - {"models", "demo", "data"}


# --- Flags -----------------------------------------------------------------------------------------------------------

# Where a verb's flags come from, and a call of it that lacks nothing but them.
FLAGS: dict[str, tuple[Any, list[str]]] = {
    "predict": (predict_command, ["predict", MODEL, "nowhere.png"]),
    "evaluate": (evaluate_command, ["evaluate", MODEL, "--data", "nowhere"]),
    "export": (export_command, ["export", MODEL, "--to", "torch", "--out", "nowhere/exported"]),
    "bench": (bench_command, ["bench", MODEL, "--runtimes", "torch"]),
    "data check": (Check, ["data", "check", "nowhere"]),
    "train": (TrainConfig, ["train", "cifar10", "--data", "nowhere"]),
    "race's task": (RaceTask, ["race", "--data", "nowhere"]),
    **{
        recipe: (type(get_recipe(recipe).task), ["train", recipe, "--data", "nowhere"])
        for recipe in ("cifar10", "small_detection", "small_segmentation", "etth1", "s3dis", "sr_nano")
    },
}
BAD_NUMBERS = {int: ("-1", "9" * 20), float: ("nan", "1e39")}
NO_NUMBERS = ("9" * 5000, "nan", "1.5", "")


def _numbers(owner: Any, prefix: str = "") -> dict[str, tuple[type, int]]:
    """The flags of a function or dataclass that take numbers: of which type, and how many of them."""
    found: dict[str, tuple[type, int]] = {}
    for name, hint in get_type_hints(owner, include_extras=True).items():
        inner = get_args(hint)[0] if get_args(hint) else hint
        if is_dataclass(inner if isinstance(inner, type) else hint):
            found |= _numbers(inner if is_dataclass(inner) else hint, f"{prefix}{name}.")
        elif name != "return" and (kind := _kind(hint)) is not None:
            found[f"--{prefix}{name}".replace("_", "-")] = kind, 2 if "tuple" in str(hint) else 1
    return found


def _kind(hint: Any) -> type | None:
    if hint in (int, float):
        return hint
    return next((kind for inner in get_args(hint) if (kind := _kind(inner)) is not None), None)


def test_all_flags_are_found() -> None:
    assert {"--topk", "--image-size", "--score"} == _numbers(predict_command).keys()
    assert {"--seed", "--workers", "--lr", "--epochs", "--batch-size", "--sizes"} <= _numbers(TrainConfig).keys()
    assert {"--augment.drop", "--augment.elastic", "--grid"} <= _numbers(type(get_recipe("s3dis").task)).keys()


@pytest.mark.promise("bad input", "every number of every verb has a range: none gives a traceback or a huge job")
@pytest.mark.parametrize("verb", FLAGS)
def test_numbers_out_of_range_are_wrong_usage(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    owner, arguments = FLAGS[verb]
    for flag, (kind, count) in _numbers(owner).items():
        if flag == "--augment.elastic":
            continue  # pairs of pairs, which the test of its task tries
        for number in BAD_NUMBERS[kind]:
            assert run(*arguments, flag, *[number] * count) == 2, (flag, number[:20])
            said = capsys.readouterr()
            named = flag.strip("-").replace("-", "_").rpartition(".")[2]
            assert named in said.err.replace("-", "_"), (flag, said.err)
            assert "Traceback" not in said.err
            assert said.out == ""


@pytest.mark.parametrize("number", NO_NUMBERS, ids=["digits", "nan", "half", "nothing"])
@pytest.mark.parametrize("verb", ["predict", "train", "data check"])
def test_what_is_no_whole_number(verb: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    flag = "--topk" if verb == "predict" else "--workers"
    assert run(*FLAGS[verb][1], flag, number) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["predict", MODEL, "x.png", "--image-size", "100000"], "--image-size must be a whole number from 1 to 8192"),
        (["predict", MODEL, "x.png", "--topk", "0"], "--topk must be a whole number from 1"),
        (["bench", MODEL, "--threads", "0"], "--threads must be a whole number from 1"),
        (["race", "--data", "x", "--seeds", "99999999999999999999"], "--seeds must be a whole number from 1"),
        (["export", MODEL, "--image-size", "100000", "--to", "torch"], "--image-size must be a whole number from 1"),
    ],
)
def test_the_sentence_names_the_flag(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "x.png")
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"metamixer: {sentence}")
    assert f"see metamixer {arguments[0]} --help" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "verb", ["predict", "evaluate", "convert", "export", "bench", "train", "race", "data", "models"]
)
def test_empty_arguments_are_wrong_usage(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "") == 2
    assert capsys.readouterr().err == "metamixer: an argument is empty; leave out what is not meant\n"


@pytest.mark.promise("bad input", "what cannot fit into memory is refused with what it needs and what there is")
def test_more_than_fits_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert available_memory() is None or available_memory() > 0
    class_folders(tmp_path / "data")
    monkeypatch.setattr("metamixer.limits.available_memory", lambda: 10**8)
    jobs = {
        "4 pictures of 4000 × 4000": ["evaluate", MODEL, "--data", tmp_path / "data", "--image-size", 4000],
        "1 picture of 8000 × 8000": ["predict", MODEL, picture(tmp_path / "x.png"), "--image-size", 8000],
        "2 pictures of 8000 × 8000": ["bench", MODEL, "--runtimes", "torch", "--image-size", 8000, "--batch", 2],
        "50 pictures of 4000 × 4000": ["export", MODEL, "--to", "torch", "--image-size", 4000, "--out", tmp_path / "e"],
        "2 pictures of 8000 × 8000 ": [*train(tmp_path / "data", tmp_path), "--image-size", 8000],
    }
    for what, arguments in jobs.items():
        assert run(*arguments) == 1
        said = capsys.readouterr().err
        assert f"too little memory for {what.strip()} pixels" in said
        assert "are needed, and 100 MB are free" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "there is too little memory; smaller pictures or batches take less"),
        (MemoryError("Unable to allocate 9 GiB"), "there is too little memory (Unable to allocate 9 GiB); smaller"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "too little memory"),
    ],
)
def test_what_the_machine_refuses(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def models() -> None:
        raise error

    monkeypatch.setattr("metamixer.model_table.models_command", models)
    assert run("models") == 1
    shown_error = capsys.readouterr().err
    assert said in shown_error
    assert shown_error.count("\n") == 1


@pytest.mark.promise("bad input", "arguments of networks on the command line keep to the ranges that files keep to")
@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("depths=(1000000,2,2,2)", "model_args: depths must be a whole number from 0 to"),
        (f"depths=({'9' * 5000},2,2,2)", "model_args: depths"),
        ("dims=(1e9,)", "model_args: dims"),
        ("global_pool=nothing", "model_args: global_pool cannot be 'nothing'"),
        ("x=" + "(" * 10_000, "model-args: x is no entry that is known there"),
    ],
    ids=["blocks", "digits", "channels", "words", "brackets"],
)
def test_arguments_of_networks(argument: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*train(class_folders(tmp_path / "d"), tmp_path, "--model-args", argument)) == 1
    shown_error = capsys.readouterr().err
    assert said in shown_error
    assert shown_error.count("\n") == 1


# --- Names -----------------------------------------------------------------------------------------------------------

NAMES = ("[b]x", "[red]", "a\nb", "e\x1b[2Jf", "\u202egpj", "a:smile:", "=1+1", "ä ö")


@pytest.mark.promise("bad input", "folders, classes and pictures may have any name, and are printed by it")
def test_names_through_every_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # of whoever runs the tests: tables would be folded
    data = class_folders(tmp_path / "[b]d", NAMES)
    odd = data / "val" / NAMES[0] / "\udcff[i]\n.png"
    (data / "val" / NAMES[0] / "0.png").rename(odd)
    assert run(*train(data, tmp_path / "[o]")) == 0
    best = tmp_path / "[o]" / "run" / "best.safetensors"
    assert str(best) in capsys.readouterr().out
    assert run("predict", best, data / "val", "--out", tmp_path / "p", "--topk", 99) == 0
    said = capsys.readouterr().out
    assert shown(odd) in said.splitlines()
    assert all(shown(name) in said for name in NAMES)
    sources = [entry["source"] for entry in json.loads((tmp_path / "p" / "predictions.json").read_text())]
    assert str(odd).replace("\udcff", "\\udcff") in sources
    json.dumps(sources, ensure_ascii=False).encode()  # which a half of a surrogate pair would forbid
    assert run("evaluate", best, "--data", data, "--workers", 0) == 0
    assert str(best) in capsys.readouterr().out
    assert run(*check(data)) == 1
    said = capsys.readouterr().out
    assert all(shown(name) in said for name in NAMES)
    assert "\x1b" not in said


def test_a_class_whose_name_no_text_can_hold_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = class_folders(tmp_path / "d", ("a", "b\udcff"))
    assert run(*train(data, tmp_path)) == 1
    assert capsys.readouterr().err.endswith("the name of the class 'b\\\\udcff' is no UTF-8 text; rename it\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-here/x.pth", "a\0b", "\ud800", "/root/none/" * 20, "-"])
def test_paths_that_cannot_be(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate = ["evaluate", MODEL, "--data", name]
    for arguments in (["predict", name, "a.png"], ["predict", MODEL, name], evaluate, ["data", "check", name]):
        assert run(*arguments) in (1, 2)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert said.err.startswith("metamixer: ") or "help" in said.err
