"""Every family learns 32 pictures by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import metamixer as mm
from metamixer.tasks.classification import Classification


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 pictures of noise in four classes that have nothing in common; the same for training and validation."""
    root = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    for i in range(32):
        pixels = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        picture = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
        for split in ("train", "val"):
            folder = root / split / f"class {i % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{i:02}.png")
    return root


ADAMW = dict(opt="adamw", lr=0.005, batch_size=16, epochs=30)
MUON = dict(opt="muon", lr=0.01, batch_size=8, epochs=24)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param("affnet_nano", ADAMW, id="affnet_nano"),
        pytest.param("ffnet_nano", ADAMW, id="ffnet_nano", marks=pytest.mark.slow),
        pytest.param("casvit_nano", MUON, id="casvit_nano", marks=pytest.mark.slow),
        pytest.param("dsm_nano", MUON, id="dsm_nano", marks=pytest.mark.slow),
    ],
)
def test_32_pictures_by_heart(model: str, settings: dict[str, Any], noise: Path, tmp_path: Path) -> None:
    task = Classification(model, str(noise), image_size=32, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), smoothing=0.0)
    config = mm.TrainConfig(
        task,
        out=str(tmp_path / "run"),
        weight_decay=0.0,
        warmup_epochs=0,
        ema_decay=0.0,
        workers=0,
        **settings,
    )
    result = mm.train(config)
    assert result.metrics["top1"] > 99
    assert result.metrics["count"] == 32
