"""One small network of each family, made as a program makes it that knows nothing of this package."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

import metamixer  # noqa: F401  registers with timm


@pytest.fixture(params=["affnet_nano", "casvit_nano", "dsm_nano", "ffnet_nano", "metaformer_nano"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(family: str) -> Callable[..., nn.Module]:
    """Creates the family's network, with seven classes unless told otherwise, in evaluation mode."""

    def create(**kwargs) -> nn.Module:
        return timm.create_model(family, **{"num_classes": 7, **kwargs}).eval()

    return create


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(2, 3, 64, 64)
