"""Settings: their ranges, sizes that grow, and how they are written down."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import metamixer as mm
from metamixer.tasks.classification import Classification
from metamixer.tasks.task import key_values

TASK = Classification("metaformer_nano", "data")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("accumulate", 0),
        ("lr", 0.0),
        ("lr", math.nan),
        ("min_lr", -1.0),
        ("warmup_epochs", -1.0),
        ("cooldown_epochs", 20),
        ("weight_decay", -0.1),
        ("layer_decay", 1.5),
        ("sched", "cosin"),
        ("ema_decay", 1.0),
        ("clip_grad", -1.0),
        ("sizes", (8, 32)),
        ("progressive", (0, 32)),
        ("repeats", 0),
        ("save_every", -1),
        ("workers", -1),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(mm.MetamixerError, match=field) as caught:
        mm.TrainConfig(TASK, **{field: value})
    assert isinstance(caught.value, ValueError)  # which the command line takes for wrong usage


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 8),
        ("crop_scale", (0.8, 0.5)),
        ("crop_scale", (0.0, 1.0)),
        ("crop_ratio", (2.0, 1.0)),
        ("smoothing", 1.0),
        ("drop_path_rate", 1.0),
        ("magnitude", 11.0),
        ("magnitude_std", -1.0),
        ("colour_jitter", 2.0),
        ("erase", 1.5),
        ("mixup", -1.0),
        ("cutmix", -1.0),
        ("mix_probability", 2.0),
        ("alpha", -0.1),
        ("temperature", 0.0),
    ],
)
def test_a_tasks_values_out_of_range_too(field: str, value: object) -> None:
    with pytest.raises(mm.MetamixerError, match=field):
        replace(TASK, **{field: value})


def test_what_excludes_each_other() -> None:
    with pytest.raises(mm.MetamixerError, match="sizes and progressive exclude each other"):
        mm.TrainConfig(TASK, sizes=(32,), progressive=(32, 64))
    with pytest.raises(mm.MetamixerError, match="resume and overwrite exclude each other"):
        mm.TrainConfig(TASK, resume="auto", overwrite=True)


def test_sizes_grow_in_steps_of_sixteen_and_end_at_the_full_size() -> None:
    config = mm.TrainConfig(TASK, epochs=11, progressive=(32, 64))
    sizes = [config.sizes_at(epoch) for epoch in range(11)]
    assert sizes == [(size,) for size in (32, 32, 32, 48, 48, 48, 64, 64, 64, 64, 64)]
    assert replace(config, progressive=(32, 100)).sizes_at(10) == (100,)
    assert replace(config, epochs=1).sizes_at(0) == (64,)
    assert replace(config, progressive=None).sizes_at(0) == (None,)
    assert replace(config, progressive=None, sizes=(64, 32)).sizes_at(3) == (64, 32)


def test_arguments_as_key_and_value() -> None:
    assert key_values(["betas=(0.9, 0.95)", "nesterov=True", "mixer=pooling", "eps=1e-8", "a=b=c"]) == {
        "betas": (0.9, 0.95),
        "nesterov": True,
        "mixer": "pooling",
        "eps": 1e-8,
        "a": "b=c",
    }
    for wrong in ("eps", "=3"):
        with pytest.raises(mm.MetamixerError, match="must be written as key=value"):
            mm.TrainConfig(TASK, opt_args=(wrong,))


def test_all_settings_stand_side_by_side_in_json() -> None:
    settings = mm.TrainConfig(TASK, opt_args=("eps=1",)).as_read()
    assert settings["task"] == "Classification"
    assert (settings["model"], settings["data"], settings["opt_args"]) == ("metaformer_nano", "data", ["eps=1"])
    assert settings["epochs"] == 20
