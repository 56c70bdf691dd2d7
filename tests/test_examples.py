"""The examples run and do what they say; the documentation quotes them word for word."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from metamixer.mixers import registry

ROOT = Path(__file__).parents[1]


@pytest.fixture
def new_mixer(monkeypatch):
    monkeypatch.setattr(registry, "_mixers", dict(registry._mixers))  # what the example registers stays in the test
    spec = spec_from_file_location("new_mixer", ROOT / "examples" / "new_mixer.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_new_mixer_trains(new_mixer):
    losses = new_mixer.train(steps=20)
    assert len(losses) == 20
    # Two classes, so guessing costs 0.69.
    assert sum(losses[:3]) / 3 > 0.4
    assert sum(losses[-5:]) / 5 < 0.2


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_a_new_mixer_is_a_mixer(new_mixer, size):
    mixer = registry.create_mixer("strip", 8, length=5)
    x = torch.randn(2, 8, *size)
    row, column = mixer.query(x), mixer.key(x)
    expected = mixer.project((row + column).sigmoid() * mixer.value(x))
    torch.testing.assert_close(mixer(x), expected)
    assert mixer(x).shape == x.shape


def test_the_documentation_quotes_the_example():
    example = (ROOT / "examples" / "new_mixer.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "add_a_mixer.md").read_text(), re.DOTALL)
    quoted = [block for block in blocks if block in example]
    assert quoted == blocks
    assert any("class StripMixer" in block for block in blocks)
    assert any("def train(" in block for block in blocks)
    class_lines = re.search(r"^@mm.register_mixer.*?\n(?=\n\n)", example, re.DOTALL | re.MULTILINE)[0].splitlines()
    assert len([line for line in class_lines if line.strip()]) <= 18
