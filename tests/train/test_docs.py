"""The commands and the Python of docs/training.md are understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import metamixer as mm
from metamixer.cli import main
from metamixer.train import TrainResult

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
COMMANDS = re.findall(r"^(?:torchrun .* --no-python )?metamixer train (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[mm.TrainConfig] = []

    def train(config: mm.TrainConfig) -> TrainResult:
        configs.append(config)
        return TrainResult("top1", {"top1": 1.0}, 1, Path(), Path())

    monkeypatch.setattr("metamixer.train.command.train", train)
    monkeypatch.setattr("metamixer.train.command.estimate", lambda config: configs.append(config))
    monkeypatch.setattr("metamixer.train.command.report", lambda config, found: "")
    assert main(["train", *shlex.split(command)]) == 0
    assert len(configs) == 1


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 12


def test_the_python_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    first, *_ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.setattr(
        mm, "train", lambda config: TrainResult("top1", {"top1": 1.0}, 1, Path(), Path()), raising=False
    )
    names: dict[str, object] = {}
    exec(first, names)
    assert isinstance(names["config"], mm.TrainConfig)
