"""From a recipe through the training loop to a file's prediction: super-resolution, forecasting, point clouds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from metamixer import MetamixerError
from metamixer.models import load_model
from metamixer.networks import about
from metamixer.tasks.other_networks import evaluate_data, predict_file
from metamixer.train import TrainConfig, train
from metamixer.train.recipes import get_recipe


def pictures(folder: Path) -> TrainConfig:
    random = np.random.default_rng(0)
    for name in ("train/a", "train/b", "val/c"):
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 26, 3), dtype=np.uint8)).save(path)
    config = get_recipe("sr_nano")
    return replace(config, task=replace(config.task, data=str(folder), dim=4, depth=1, crop=16, repeats=2))


def series(folder: Path) -> TrainConfig:
    lines = ["date,a,b"]
    for day in range(80):
        date = np.datetime64("2020-01-01") + day
        lines.append(f"{date},{np.sin(day)},{day % 7 + np.cos(3 * day)}")
    (folder / "s.csv").write_text("\n".join(lines))
    config = get_recipe("exchange")
    task = replace(
        config.task, data=str(folder / "s.csv"), lookback=8, horizon=3, dim=4, kernel_size=5, small_kernel=3
    )  # fmt: skip
    return replace(config, task=task)


def scans(folder: Path) -> TrainConfig:
    random = np.random.default_rng(0)
    for name, count in (("train", 3), ("val", 2)):
        label = random.integers(0, 3, (count, 8, 16))
        xyz = random.uniform(-4, 4, (count, 3, 8, 16)).astype(np.float32)
        xyz[:, 2] = label
        np.savez(folder / f"semantickitti_{name}.npz", xyz=xyz, remission=label / 3, label=label)
    config = get_recipe("semantickitti_samples")
    return replace(config, task=replace(config.task, data=str(folder), classes=("low", "high"), repeats=1))


CASES: dict[str, tuple[Callable[[Path], TrainConfig], str, str]] = {
    "super-resolution": (pictures, "val", "c_comparison.png"),
    "forecasting": (series, "s.csv", "s.csv"),
    "point clouds": (scans, "semantickitti_val.npz", "semantickitti_val_001.npy"),
}


@pytest.mark.parametrize("case", CASES)
def test_from_a_recipe_to_a_prediction(case: str, tmp_path: Path) -> None:
    prepare, data, written = CASES[case]
    config = replace(prepare(tmp_path), epochs=1, batch_size=2, warmup_epochs=0.0, workers=0, out=str(tmp_path / "run"))
    if case == "forecasting":
        config = replace(config, batch_size=16)
    result = train(config)
    network = load_model(result.best).eval()
    assert np.isfinite(result.metrics[result.metric])

    metrics = evaluate_data(network, tmp_path / data)
    assert all(isinstance(value, float | int) for value in metrics.values())
    if case == "super-resolution":  # the others validate on other rows or in another way
        assert metrics["psnr"] == pytest.approx(result.metrics["psnr"], abs=1e-3)
    elif case == "point clouds":
        assert metrics["miou"] == pytest.approx(result.metrics["miou"])
        assert about(network)["classes"] == ["low", "high"]
    else:
        assert about(network)["columns"] == ["a", "b"]
        assert metrics["season"] == 7

    (tmp_path / "out").mkdir()
    for name, made in predict_file(network, tmp_path / data):
        assert json.dumps(made.to_dict())
        made.save(tmp_path / "out", name)
        assert made.draw().mode == "RGB"
    assert (tmp_path / "out" / written).stat().st_size > 0


def test_networks_of_other_kinds(tmp_path: Path) -> None:
    for use in (lambda: list(predict_file(nn.Identity(), tmp_path)), lambda: evaluate_data(nn.Identity(), tmp_path)):
        with pytest.raises(MetamixerError, match="Identity is none of FFNetSR, FFNetTSF, FFNetPoints"):
            use()
    from metamixer.networks import create_network

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(MetamixerError, match="empty holds no pictures"):
        next(predict_file(create_network("ffnet_sr_nano"), empty))


def test_a_saved_network_keeps_its_arguments_and_facts(tmp_path: Path) -> None:
    from metamixer.networks import create_network, save_network

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
