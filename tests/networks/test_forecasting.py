"""The forecasting network against its formula written out with grouped convolutions, and its bad inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import metamixer as mm
from metamixer import MetamixerError
from metamixer.networks import FFNetTSF
from metamixer.networks.forecasting import TwoMixes


def small(**kwargs: Any) -> FFNetTSF:
    sizes = dict(
        channels=3, lookback=20, horizon=5, ffn_ratio=3, dim=4, patch=4, stride=2, kernel_size=11, small_kernel=3
    )
    return mm.create_model("ffnet_tsf", **sizes | kwargs).double()


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, TwoMixes):
            module.drop_rates = (0.0, 0.0)
    return model


def plain(model: FFNetTSF, x: Tensor) -> Tensor:
    """The formula with convolutions in the usual layout, B × (M D) × N, and copies where groups change."""
    batch, _, variables = x.shape
    mean, deviation = x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    series = ((x - mean) / deviation).mT.reshape(batch * variables, 1, -1)
    stem = model.stem
    missing = stem.conv.kernel_size[0] - stem.conv.stride[0]
    h = stem.norm(stem.conv(torch.cat([series, series[..., -1:].expand(-1, -1, missing)], dim=2)))
    dim, patches = h.shape[1:]

    def convolve(conv: nn.Conv1d, h: Tensor) -> Tensor:
        return F.conv1d(h, conv.weight, conv.bias, padding=conv.padding, groups=conv.groups)

    def normed(norm: nn.BatchNorm1d, h: Tensor) -> Tensor:
        return norm(h.reshape(-1, dim, patches)).reshape(batch, -1, patches)

    def swapped(h: Tensor, first: int) -> Tensor:
        """Channels ordered (first, second) become (second, first)."""
        return h.reshape(batch, first, -1, patches).transpose(1, 2).reshape(batch, -1, patches)

    h = h.reshape(batch, -1, patches)
    for block in model.blocks:
        token, channel = block.token_mixer, block.channel_mixer
        hidden = F.gelu(convolve(token.mix.spread, swapped(h, variables)))
        query = normed(token.norm, convolve(token.mix.gather, swapped(hidden, dim)))
        h = h + convolve(token.aggregate, F.gelu(convolve(token.interact, query)))
        query = sum(branch.norm(convolve(branch.conv, h)) for branch in channel.query.branches)
        hidden = F.gelu(convolve(channel.mix.spread, normed(channel.norm, query)))
        h = h + swapped(convolve(channel.mix.gather, swapped(hidden, variables)), dim)
    forecast = model.output(h.reshape(batch, variables, -1)).mT
    return forecast * deviation + mean


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"depth": 2, "channels": 1}, {"lookback": 21, "patch": 2}, {"lookback": 300, "kernel_size": 3, "dim": 2}],
    ids=["small", "deep", "odd window", "convolutions"],
)
def test_equals_the_formula_with_gradients(training: bool, kwargs: dict[str, int]) -> None:
    """In training too, where the norms' statistics depend on what is counted together."""
    model = without_dropout(small(**kwargs)).train(training)
    for module in model.modules():  # norms that do something
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)
            module.momentum = 0.0  # both passes read the same running statistics
    window = torch.randn(4, model.lookback, model.channels, dtype=torch.float64)
    found, expected = model(window), plain(model, window)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    parameters, cotangent = list(model.parameters()), torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, parameters, cotangent),
        torch.autograd.grad(expected, parameters, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_merging_leaves_no_norm_and_the_same_forecast() -> None:
    model = small(depth=2)
    window = torch.randn(8, 20, 3, dtype=torch.float64)
    for _ in range(3):  # running statistics that are not 0 and 1
        model.train()(3 * window + 1)
    model.eval()
    merged = mm.merge(model)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in merged.modules())
    assert any(isinstance(module, nn.BatchNorm1d) for module in model.modules())  # the original is left as it was
    torch.testing.assert_close(merged(window), model(window), rtol=0, atol=1e-10)
    torch.testing.assert_close(mm.merge(merged)(window), model(window), rtol=0, atol=1e-10)


def test_forecasts_move_with_the_series() -> None:
    model, window = small().eval(), torch.randn(2, 20, 3, dtype=torch.float64)
    # Exact but for the 1e-5 that is added to a variance of about 100.
    torch.testing.assert_close(model(70 * window - 300), 7 * model(10 * window) - 300, rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    model, window = small(drop_rate=0.9), torch.randn(2, 20, 3, dtype=torch.float64)
    assert not torch.equal(model.train()(window), model(window))
    assert torch.equal(model.eval()(window), model(window))


def test_constant_series_are_forecast_finitely() -> None:
    assert small().eval()(torch.full((1, 20, 3), 5.0, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 21, 3), (2, 20, 4), (20, 3), (2, 3, 20)])
def test_windows_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(MetamixerError, match=r"batch × 20 time steps × 3 variables, got \("):
        small()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # of no windows, to which it does not matter
def test_a_batch_of_none():
    network = FFNetTSF()
    for training in (False, True):
        network.train(training)
        assert network(torch.zeros(0, 96, 7)).shape == (0, 96, 7)
    assert all(b.isfinite().all() for b in network.buffers())
