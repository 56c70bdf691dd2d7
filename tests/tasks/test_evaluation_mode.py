"""The mode of a model around what is computed with it."""

from __future__ import annotations

import pytest
from torch import nn

from metamixer.tasks.evaluation_mode import evaluation_mode


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("failing", [True, False])
def test_the_mode_comes_back_whatever_happens(training: bool, failing: bool) -> None:
    model = nn.Sequential(nn.Dropout()).train(training)
    try:
        with evaluation_mode(model):
            assert not model.training
            assert not model[0].training
            if failing:
                raise RuntimeError
    except RuntimeError:
        assert failing
    assert model.training == model[0].training == training
