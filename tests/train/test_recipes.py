"""Recipes: each stands for itself, says where it comes from, and can be printed; and the command around them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import metamixer as mm
from metamixer.cli import main
from metamixer.tasks.classification import Classification
from metamixer.train.recipes import get_recipe, list_recipes
from metamixer.train.recipes.registry import describe_recipe, recipe

IMAGENET = [
    name for name in list_recipes() if re.fullmatch(r"(affnet|casvit|ffnet|dsm).*_(imagenet|384|distilled)", name)
]


def run(*arguments: object) -> int:
    try:
        return main(["train", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_says_what_it_is(name: str) -> None:
    config = get_recipe(name)
    assert json.loads(json.dumps(config.to_dict()))["epochs"] == config.epochs
    description = describe_recipe(name)
    assert len(description.splitlines()[0]) > 15
    assert f"metamixer train {name}" in description
    if isinstance(config.task, Classification):
        assert config.task.model in mm.list_models()
        for word in ("Source:", "Expected:", "GPU-hours:", "Command:"):
            assert word in description, word


def test_every_variant_has_a_recipe_for_imagenet() -> None:
    variants = {"affnet_et", "affnet_t", "affnet", "casvit_xs", "casvit_s", "casvit_m", "casvit_t"}
    variants |= {"ffnet_1", "ffnet_2", "ffnet_3", "ffnet_4", "dsm_t", "dsm_s", "dsm_b"}
    assert {name.removesuffix("_imagenet") for name in IMAGENET if name.endswith("_imagenet")} == variants
    assert len(IMAGENET) == 14 + 6 + 3
    for name in IMAGENET:
        config = get_recipe(name)
        assert config.batch_size % (8 * config.accumulate) == 0
        assert isinstance(config.task, Classification)
        assert config.sizes[:1] in ((), (config.task.image_size,))


def test_facts_of_the_releases() -> None:
    casvit, ffnet = get_recipe("casvit_m_imagenet"), get_recipe("ffnet_2_distilled")
    assert (casvit.lr, casvit.warmup_epochs, casvit.epochs, casvit.ema_decay) == (6e-3, 20, 300, 0.9995)
    assert casvit.batch_size == 8 * 128 * 2
    assert isinstance(casvit.task, Classification)
    assert (casvit.task.policy, casvit.task.magnitude, casvit.task.mixup) == ("rand", 9.0, 0.0)
    assert (ffnet.lr, ffnet.epochs - ffnet.cooldown_epochs, ffnet.batch_size) == (1e-3, 300, 8 * 128)
    assert isinstance(ffnet.task, Classification)
    assert (ffnet.task.teacher, ffnet.task.distillation, ffnet.task.drop_path_rate) == (
        "regnety_160.deit_in1k",
        "hard",
        0.08,
    )


def test_names_that_are_wrong() -> None:
    with pytest.raises(mm.MetamixerError, match=r"unknown recipe 'ffnet_1_imagnet'; did you mean 'ffnet_1_imagenet'\?"):
        get_recipe("ffnet_1_imagnet")
    with pytest.raises(mm.MetamixerError, match="lists them"):
        get_recipe("?")
    with pytest.raises(ValueError, match="there is a recipe 'cifar10' already"):

        @recipe
        def cifar10() -> mm.TrainConfig:
            raise AssertionError


def test_a_recipe_changed_from_the_command_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", pictures, "--model", "metaformer_nano", "--model-args", "depths=(1,1,1,1)", "dims=(8,16,24,32)"]
    flags += ["--epochs", 1, "--batch-size", 16, "--image-size", 32, "--opt-args", "betas=(0.8,0.9)", "--opt", "adamw"]
    flags += ["--workers", 0, "--out", tmp_path / "run"]
    assert run("cifar10", *flags, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if line)
    assert lines["opt"] == "adamw"
    assert lines["crop_scale"] == "(0.6, 1.0)"  # the recipe's
    assert lines["steps"] == "3 with 16 samples at once in each process"
    model = mm.create_model("metaformer_nano", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    parameters = sum(weight.numel() for weight in model.parameters())
    assert f"parameters          {parameters / 1e6:.3f} M" in shown
    memory = re.search(
        r"memory, estimated   ([\d.]+) MiB .*\(weights ([\d.]+), gradients ([\d.]+), optimiser ([\d.]+)", shown
    )
    assert memory is not None
    total, weights, gradients, optimiser = map(float, memory.groups())
    assert weights == gradients == pytest.approx(4 * parameters / 2**20, abs=0.06)
    assert optimiser == pytest.approx(2 * weights, abs=0.2)
    assert total > 4 * weights

    assert run("cifar10", *flags) == 0
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["opt_args"], settings["smoothing"], settings["epochs"]) == (["betas=(0.8,0.9)"], 0.1, 1)


def test_the_estimate_counts_as_the_benchmark_does(pictures: Path) -> None:
    from metamixer.bench.macs import count_macs
    from metamixer.train.dry_run import estimate

    config = mm.TrainConfig(Classification("affnet_nano", str(pictures), image_size=64), batch_size=12, epochs=2)
    found = estimate(config)
    assert found.macs == count_macs(mm.create_model("affnet_nano", num_classes=3), 64)
    assert (found.samples, found.steps, found.part) == (48, 8, 12)
    half = estimate(mm.TrainConfig(config.task, batch_size=12, accumulate=2))
    assert half.memory["activations"] == pytest.approx(found.memory["activations"] / 2, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["cifar1", "--data", "d"], 1, "unknown recipe or model 'cifar1'; did you mean 'cifar10'?"),
        (["casvit_nan", "--data", "d"], 1, "did you mean 'casvit_nano'?"),
        (["cifar10", "--data", "d", "--epoch", "3"], 2, "--epochs"),
        (["cifar10"], 2, "--data"),
        (["cifar10", "--data", "d", "--epochs", "0"], 2, "epochs must be a whole number from 1"),
        (["cifar10", "--data", "d", "--smoothing", "2"], 2, "smoothing must be"),
        ([], 2, "RECIPE"),
    ],
)
def test_wrong_commands(arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == code
    shown = capsys.readouterr()
    assert sentence in " ".join((shown.err + shown.out).split())


def test_help_lists_the_recipes_and_their_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in list_recipes())
    assert run("ffnet_1_distilled", "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "taught by RegNetY-160" in shown
    assert "--temperature FLOAT" in shown
    assert "regnety_160.deit_in1k" in shown
