"""Pictures of one noisy colour per class, and a run on them that takes half a second."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import metamixer as mm
from metamixer.tasks.classification import Classification

SMALL = ("depths=(1,1,1,1)", "dims=(8,16,24,32)")
COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` with 16 and ``val`` with 4 pictures of 24 × 24 pixels per class."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in {"train": 16, "val": 4}.items():
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + random.integers(-30, 31, (24, 24, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name / f"{i:02}.png")
    return root


@pytest.fixture
def config(pictures: Path, tmp_path: Path) -> mm.TrainConfig:
    """Two epochs of six steps."""
    task = Classification("metaformer_nano", str(pictures), image_size=32, model_args=SMALL)
    return mm.TrainConfig(task, out=str(tmp_path / "run"), epochs=2, batch_size=8, workers=0)


@pytest.fixture(scope="session")
def every_task() -> SimpleNamespace:
    """A tiny training of every task: ``every_task.py``."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("every_task.py"))))


@pytest.fixture(scope="session")
def every_data(every_task: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of all of them."""
    root = tmp_path_factory.mktemp("every_data")
    every_task.write_data(root)
    return root


@pytest.fixture(scope="session")
def same_run() -> Callable[[Path, Path], None]:
    """Fails unless two runs left the same: ``same_run.py``."""
    return runpy.run_path(str(Path(__file__).with_name("same_run.py")))["assert_same_run"]


@pytest.fixture(autouse=True)
def on_the_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sums have one order, so that runs can be compared bit for bit."""
    if "gpu" not in request.keywords:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(autouse=True)
def one_thread():
    """These networks are too small to gain from more, and busy machines make more threads wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
