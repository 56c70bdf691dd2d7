"""The slots of MetaMixer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metamixer.mixers import MetaMixer, create_mixer, list_mixers, register_mixer, registry


class Scaled(MetaMixer):
    """A mixer whose query is a method."""

    def query(self, x: Tensor) -> Tensor:
        return 2 * x


def test_without_any_slot_it_is_the_identity():
    mixer, x = MetaMixer(), torch.randn(1, 2, 3, 3)
    assert torch.equal(mixer(x), x)
    assert mixer.key is None
    assert mixer.value is None


def test_every_slot_is_called_with_what_the_paper_says():
    calls = []

    def slot(name, result):
        def call(*arguments):
            calls.append((name, arguments))
            return result

        return call

    mixer = MetaMixer(
        query=slot("query", "q"), key=slot("key", "k"), interact=slot("interact", "s"), activate=slot("activate", "c"),
        value=slot("value", "v"), aggregate=slot("aggregate", "a"), project=slot("project", "out"),
    )  # fmt: skip
    assert mixer("x") == "out"
    assert calls == [
        ("query", ("x",)), ("key", ("x",)), ("interact", ("q", "k")), ("activate", ("s",)),
        ("value", ("x",)), ("aggregate", ("c", "v")), ("project", ("a",)),
    ]  # fmt: skip


def test_learned_keys_and_values_leave_one_argument():
    mixer = MetaMixer(interact=lambda q: q + 1, aggregate=lambda c: c * 10)
    assert mixer.compose(torch.tensor(1.0)) == 20


def test_slots_may_be_methods_or_arguments():
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(Scaled()(x), 2 * x)
    assert torch.equal(Scaled(project=lambda y: y + 1)(x), 2 * x + 1)


def test_filling_a_slot_twice_is_an_error():
    with pytest.raises(TypeError, match="Scaled defines 'query' as a method and was given another one"):
        Scaled(query=nn.Identity())


@pytest.mark.parametrize(("giver", "taker"), [("key", "interact"), ("value", "aggregate")])
def test_what_is_given_must_be_taken(giver, taker):
    with pytest.raises(TypeError, match=f"Scaled has a {giver}, but no {taker} that takes it"):
        Scaled(**{giver: nn.Identity()})

    class Giver(MetaMixer):
        pass

    setattr(Giver, giver, lambda self, x: x)
    with pytest.raises(TypeError, match=f"Giver has a {giver}, but no {taker} that takes it"):
        Giver()
    assert Giver(**{taker: torch.add})(torch.ones(1)) == 2


def test_modules_in_slots_are_submodules():
    mixer = MetaMixer(query=nn.Conv2d(4, 4, 1), value=nn.Conv2d(4, 4, 1), aggregate=lambda c, v: c * v)
    names = {name for name, _ in mixer.named_parameters()}
    assert names == {"query.weight", "query.bias", "value.weight", "value.bias"}


def test_attention_is_a_filling_of_slots():
    """The framework's claim on its best-known instance: slots alone give F.scaled_dot_product_attention."""
    attention = create_mixer("attention", 8, head_dim=4).eval()

    def heads(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, 4, x.shape[2] * x.shape[3]).mT

    rebuilt = MetaMixer(
        query=attention.query,
        key=attention.key,
        interact=lambda q, k: heads(q) @ heads(k).mT / 2,
        activate=nn.Softmax(-1),
        value=attention.value,
        aggregate=lambda c, v: (c @ heads(v)).mT.reshape(v.shape),
        project=attention.project,
    )
    x = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(rebuilt(x), attention(x))


def test_registering_makes_a_mixer_known(monkeypatch):
    monkeypatch.setattr(registry, "_mixers", dict(registry._mixers))

    @register_mixer("shift")
    class Shift(MetaMixer):
        def __init__(self, dim: int, steps: int = 1) -> None:
            super().__init__(aggregate=lambda x: x.roll(steps, dims=-1))

    assert "shift" in list_mixers()
    with pytest.raises(ValueError, match=r"a mixer 'aff' is registered already \(metamixer.mixers.aff.AdaptiveFreq"):
        register_mixer("aff")(Shift)
    assert type(create_mixer("aff", 8)).__name__ == "AdaptiveFrequencyFilter"
    register_mixer("shift")(
        type("Shift", (Shift,), {"__qualname__": Shift.__qualname__, "__module__": Shift.__module__})
    )
    register_mixer("aff", replace=True)(Shift)
    assert isinstance(create_mixer("aff", 8), Shift)
    x = torch.randn(1, 2, 3, 4)
    assert torch.equal(create_mixer("shift", 2, steps=2)(x), x.roll(2, dims=-1))
