"""From a recipe through the training loop to a file's prediction: super-resolution, forecasting, point clouds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import metamixer as mm
from metamixer import MetamixerError
from metamixer.cli import main
from metamixer.models import load_model
from metamixer.networks import NETWORKS, about, create_network, save_network
from metamixer.tasks.forecasting import Forecasting
from metamixer.tasks.other_networks import evaluate_data, predict_file
from metamixer.tasks.point_clouds import VIEWS, label_points
from metamixer.train import TrainConfig
from metamixer.train.recipes import get_recipe, list_recipes


def pictures(folder: Path) -> tuple[object, ...]:
    random = np.random.default_rng(0)
    for name in ("train/a", "train/b", "val/c"):
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 26, 3), dtype=np.uint8)).save(path)
    sizes = "--dim 4 --depth 1 --crop 16 --passes 2 --batch-size 2"
    return "sr_nano", "--data", folder, *sizes.split()


def series(folder: Path) -> tuple[object, ...]:
    lines = ["date,a,b"]
    for day in range(80):
        date = np.datetime64("2020-01-01") + day
        lines.append(f"{date},{np.sin(day)},{day % 7 + np.cos(3 * day)}")
    (folder / "s.csv").write_text("\n".join(lines))
    sizes = "--lookback 8 --horizon 3 --dim 4 --kernel-size 5 --small-kernel 3 --batch-size 16"
    return "exchange", "--data", folder / "s.csv", *sizes.split()


def scans(folder: Path) -> tuple[object, ...]:
    random = np.random.default_rng(0)
    for name, count in (("train", 3), ("val", 2)):
        label = random.integers(0, 3, (count, 8, 16))
        xyz = random.uniform(-4, 4, (count, 3, 8, 16)).astype(np.float32)
        xyz[:, 2] = label
        np.savez(folder / f"semantickitti_{name}.npz", xyz=xyz, remission=label / 3, label=label)
    flags = "--classes low high --passes 1 --batch-size 2"
    return "semantickitti_samples", "--data", folder, *flags.split()


# By the task's name: what writes data and gives a recipe with its flags, data to predict, and a file that is written.
CASES: dict[str, tuple[Callable[[Path], tuple[object, ...]], str, str]] = {
    "super-resolution": (pictures, "val", "0001_c_comparison.png"),
    "forecasting": (series, "s.csv", "0001_s.csv"),
    "point clouds": (scans, "semantickitti_val.npz", "0002_semantickitti_val_001.npy"),
}


def run(*arguments: object) -> int:
    """Exit code of the command, in this process."""
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("case", CASES)
def test_from_a_recipe_to_a_prediction(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare, data, written = CASES[case]
    short = "--epochs 1 --warmup-epochs 0 --workers 0"
    assert run("train", *prepare(tmp_path), *short.split(), "--out", tmp_path / "run") == 0
    best = tmp_path / "run" / "best.safetensors"
    header, row = (line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines())
    trained = dict(zip(header, map(float, row), strict=True))

    metrics = mm.evaluate(best, tmp_path / data)
    assert all(isinstance(value, float | int) for value in metrics.values())
    facts = about(load_model(best))
    if case == "super-resolution":  # the others validate on other rows or in another way
        assert metrics["psnr"] == pytest.approx(trained["psnr"], abs=1e-3)
    elif case == "point clouds":
        assert metrics["miou"] == pytest.approx(trained["miou"], abs=1e-5)
        assert facts["classes"] == ["low", "high"]
    else:
        assert facts["columns"] == ["a", "b"]
        assert metrics["season"] == 7
    capsys.readouterr()
    assert run("evaluate", best, "--data", tmp_path / data) == 0
    shown = capsys.readouterr().out
    for name, value in metrics.items():
        assert name in shown
        assert (f"{value:.4f}" if isinstance(value, float) else str(value)) in shown

    assert run("predict", best, tmp_path / data, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / written).stat().st_size > 0
    assert str(tmp_path / "out" / written) in "".join(capsys.readouterr().out.split("\n"))
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(said) == (2 if case == "point clouds" else 1)
    assert run("predict", best, tmp_path / data) == 1
    assert "name it with --out" in capsys.readouterr().err


def test_prediction_of_one_file(tmp_path: Path) -> None:
    scans(tmp_path)
    series(tmp_path)
    picture = Image.new("RGB", (20, 12), "red")
    picture.save(tmp_path / "a.png")
    enlarging = create_network("ffnet_sr_nano", dim=4, depth=1, scale=3)
    assert mm.predict(enlarging, picture).picture.size == (60, 36)
    assert mm.predict(enlarging, tmp_path / "a.png").source == str(tmp_path / "a.png")
    forecasting = create_network("ffnet_tsf", channels=2, lookback=8, horizon=3, dim=4, kernel_size=5, small_kernel=3)
    assert mm.predict(forecasting, tmp_path / "s.csv").values.shape == (3, 2)
    with pytest.raises(MetamixerError, match="FFNetTSF reads files, not pictures"):
        mm.predict(forecasting, picture)
    points = create_network("ffnet_points_tiny", num_classes=2, in_channels=6)
    with pytest.raises(MetamixerError, match=r"semantickitti_val.npz holds 2 scenes, not one"):
        mm.predict(points, tmp_path / "semantickitti_val.npz")


def test_files_that_cannot_be_read_stop_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_network(create_network("ffnet_sr_nano", dim=4, depth=1), tmp_path / "x2.safetensors")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("no picture")
    Image.new("LA", (9, 7)).save(tmp_path / "pictures" / "b.png")
    assert run("predict", tmp_path / "x2.safetensors", tmp_path / "pictures", "--out", tmp_path / "out") == 1
    assert "a.png cannot be read as a picture" in capsys.readouterr().err
    with Image.open(tmp_path / "out" / "0001_b.png") as enlarged:
        assert enlarged.size == (18, 14)


@pytest.mark.parametrize("case", CASES)
def test_where_nothing_is_predicted_nothing_is_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {
        "super-resolution": lambda: create_network("ffnet_sr_nano", dim=4, depth=1),
        "forecasting": lambda: create_network("ffnet_tsf", channels=2, lookback=8, horizon=3, dim=4),
        "point clouds": lambda: create_network("ffnet_points_tiny", num_classes=2),
    }[case]()
    save_network(network, tmp_path / "a.safetensors")
    CASES[case][0](tmp_path)
    broken = tmp_path / f"broken{Path(CASES[case][1]).suffix or '.png'}"
    broken.write_bytes(b"\xff\xfe nothing")
    assert run("predict", tmp_path / "a.safetensors", broken, "--out", tmp_path / "out") == 1
    assert f"{broken} cannot be read as" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("predict", tmp_path / "a.safetensors", broken, "--out", broken) == 1
    assert capsys.readouterr().err == f"metamixer: {broken} is a file where a folder is needed\n"


def small_validation_picture(folder: Path) -> str:
    Image.new("RGB", (4, 4)).save(folder / "val" / "c.png")
    return "c.png has 4 × 4 pixels, nothing but border where 2 on each side do not count"


def missing_value(folder: Path) -> str:
    file = folder / "s.csv"
    file.write_text(re.sub(r"(?m)^(2020-03-01,).*?,", r"\1,", file.read_text()))
    return "s.csv, row 62, column a: the value is missing"


def unlabelled_scan(folder: Path) -> str:
    file = folder / "semantickitti_val.npz"
    arrays = dict(np.load(file))
    arrays["label"][1] = 0
    np.savez(file, **arrays)
    return "semantickitti_val.npz, scan 1 has no labels: all its points are marked as unlabelled"


@pytest.mark.parametrize(
    ("case", "spoil"),
    [
        ("super-resolution", small_validation_picture),
        ("forecasting", missing_value),
        ("point clouds", unlabelled_scan),
    ],
)
def test_data_that_cannot_be_trained_on_leave_no_folder(
    case: str, spoil: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = CASES[case][0](tmp_path)
    message = spoil(tmp_path)
    assert run("train", *arguments, "--epochs", 1, "--warmup-epochs", 0, "--out", tmp_path / "run") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def measured(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert run("evaluate", *arguments) == 0
    return capsys.readouterr().out


def test_parts_of_a_series_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, data, *_ = series(tmp_path)
    other = tmp_path / "ETTh1.csv"  # by its name it would be cut into months
    text = Path(str(data)).read_text().replace("date", "when")
    other.write_text("\n".join(f"{'n' if i == 0 else i * i},{line}" for i, line in enumerate(text.splitlines())))
    task = Forecasting(data=str(other), time_column="when", split="ratio", lookback=8, horizon=3, dim=4)
    task.open()
    task.save(task.create_model(), tmp_path / "a.safetensors")
    counts = {part: len(windows) for part, windows in task.windows.items()}
    assert len(set(counts.values())) == 3
    for part, count in counts.items():
        shown = measured(tmp_path / "a.safetensors", "--data", other, "--split", part, capsys=capsys)
        assert re.search(rf"count\W+{count}\W", shown)
    assert re.search(
        rf"count\W+{counts['test']}\W", measured(tmp_path / "a.safetensors", "--data", other, capsys=capsys)
    )
    assert run("predict", tmp_path / "a.safetensors", other, "--out", tmp_path / "out") == 0
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(other.read_text().replace("when", "then"))
    assert run("predict", tmp_path / "a.safetensors", renamed, "--out", tmp_path / "out") == 1
    assert "has no column 'when'" in capsys.readouterr().err
    then = ("--time-column", "then")
    assert run("predict", tmp_path / "a.safetensors", renamed, "--out", tmp_path / "out", *then) == 0
    assert measured(tmp_path / "a.safetensors", "--data", renamed, *then, capsys=capsys)


def test_small_pictures_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path)
    save_network(create_network("ffnet_sr_nano", dim=4, depth=1), tmp_path / "a.safetensors")
    (tmp_path / "small").mkdir()
    Image.new("RGB", (13, 15), "red").save(tmp_path / "small" / "cx2.png")
    made = evaluate_data(load_model(tmp_path / "a.safetensors"), tmp_path / "val")
    paired = evaluate_data(load_model(tmp_path / "a.safetensors"), tmp_path / "val", small=tmp_path / "small")
    assert paired["bicubic_psnr"] < made["bicubic_psnr"]
    shown = measured(
        tmp_path / "a.safetensors", "--data", tmp_path / "val", "--small", tmp_path / "small", capsys=capsys
    )
    assert f"{paired['bicubic_psnr']:.4f}" in shown


def test_votes_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scans(tmp_path)
    network = create_network("ffnet_points_tiny", num_classes=2)
    save_network(network, tmp_path / "a.safetensors", {"features": ["coord", "coord"], "grid": 0.5})
    data, asked = tmp_path / "semantickitti_val.npz", []
    monkeypatch.setattr("metamixer.tasks.point_clouds.LabelledCloud.save", lambda *a: [])  # drawing takes time
    monkeypatch.setattr("metamixer.tasks.point_clouds.vote", lambda *a: (asked.append(a[-1]), label_points(*a[:-1]))[1])
    assert run("evaluate", tmp_path / "a.safetensors", "--data", data) == 0
    assert not asked
    assert run("evaluate", tmp_path / "a.safetensors", "--data", data, "--views") == 0
    assert run("predict", tmp_path / "a.safetensors", data, "--out", tmp_path / "out", "--views") == 0
    assert asked == [VIEWS] * 4


@pytest.mark.parametrize(
    ("name", "verb", "flags", "message"),
    [
        ("ffnet_sr_nano", "evaluate", "--split val",
         "split is a setting for boxes, masks, class maps and forecasting, not for FFNetSR"),
        ("ffnet_tsf", "evaluate", "--small d", "small is a setting for super-resolution, not for FFNetTSF"),
        ("ffnet_tsf", "evaluate", "--views", "views is a setting for point clouds, not for FFNetTSF"),
        ("ffnet_points_tiny", "evaluate", "--time-column t",
         "time column is a setting for forecasting, not for FFNetPoints"),
        ("casvit_nano", "evaluate", "--split train", "split is a setting for boxes, masks, class maps and forecasting"),
        ("casvit_nano", "predict", "--views", "views is a setting for point clouds, not for"),
        ("ffnet_sr_nano", "predict", "--time-column t", "time column is a setting for forecasting, not for FFNetSR"),
    ],
)  # fmt: skip
def test_settings_of_other_networks_are_refused(
    name: str, verb: str, flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--data", tmp_path) if verb == "evaluate" else (tmp_path, "--out", tmp_path / "out")
    assert run(verb, name, *where, *flags.split()) == 1
    assert f"metamixer: {message}" in capsys.readouterr().err


def test_half_precision_keeps_what_the_file_says(tmp_path: Path) -> None:
    network = create_network("ffnet_sr_nano", dim=8, depth=1, scale=4).eval()
    save_network(network, tmp_path / "a.safetensors", {"note": "by a test"})
    assert run("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--half") == 0
    again = load_model(tmp_path / "b.safetensors").eval()
    assert (again.scale, about(again), again.first.weight.dtype) == (4, {"note": "by a test"}, torch.float32)
    assert torch.equal(again.first.weight, network.first.weight.half().float())
    sizes = [(tmp_path / name).stat().st_size for name in ("a.safetensors", "b.safetensors")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * sum(p.numel() for p in network.parameters()), abs=100)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_by_a_networks_name_names_its_recipes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", name, "--data", "d") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"metamixer: {name} is no picture classifier; recipes that train it: ")
    for recipe in said.strip().rpartition(": ")[2].split(", "):
        assert get_recipe(recipe).task.model == name  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list_recipes())
def test_no_setting_of_a_task_is_called_as_one_of_the_loop(name: str) -> None:
    """On the command line both stand side by side."""
    task = get_recipe(name).task
    assert not {f.name for f in fields(task)} & {f.name for f in fields(TrainConfig)}  # type: ignore[arg-type]


def test_networks_of_other_kinds(tmp_path: Path) -> None:
    for use in (lambda: list(predict_file(nn.Identity(), tmp_path)), lambda: evaluate_data(nn.Identity(), tmp_path)):
        with pytest.raises(MetamixerError, match="Identity is none of FFNetSR, FFNetTSF, FFNetPoints"):
            use()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MetamixerError, match="empty holds no pictures"):
        next(predict_file(create_network("ffnet_sr_nano"), empty))


def test_a_saved_network_keeps_its_arguments_and_facts(tmp_path: Path) -> None:
    network = create_network("ffnet_tsf", channels=2, lookback=8, horizon=3, dim=4, kernel_size=5, small_kernel=3)
    save_network(network, tmp_path / "a.safetensors", {"columns": ["x", "y"]})
    again = create_network("ffnet_tsf", tmp_path / "a.safetensors")
    assert (again.channels, again.lookback, about(again)) == (2, 8, {"columns": ["x", "y"]})
    save_network(again, tmp_path / "b.safetensors")  # facts stay with the network
    assert about(create_network("ffnet_tsf", tmp_path / "b.safetensors")) == {"columns": ["x", "y"]}
    longer = create_network("ffnet_tsf", tmp_path / "a.safetensors", drop_rate=0.5)
    assert torch.equal(longer.output.weight, network.output.weight)
    with pytest.raises(MetamixerError, match=r"a.safetensors belongs to ffnet_tsf, not to ffnet_sr"):
        create_network("ffnet_sr", tmp_path / "a.safetensors")
    with pytest.raises(MetamixerError, match=r"c.safetensors: no such file"):
        create_network("ffnet_sr", tmp_path / "c.safetensors")
    (tmp_path / "d.safetensors").write_bytes(b"nothing")
    with pytest.raises(MetamixerError, match=r"d.safetensors is cut short, damaged or no safetensors file"):
        create_network("ffnet_sr", tmp_path / "d.safetensors")
