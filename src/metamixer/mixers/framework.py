"""The MetaMixer framework (arXiv 2406.02021, section 3): a token mixer in four steps with free sub-operations.

====================  ==========================================================================================
slot                  what it does
====================  ==========================================================================================
``query``             projects the input
``key``               a function of the input, F_K(X); None where the key is a weight held by ``interact``
``interact``          query–key interaction: ``interact(q, k)``, or ``interact(q)`` where ``key`` is None
``activate``          turns the interaction into coefficients
``value``             a function of the input, F_V(X); None where the value is a weight held by ``aggregate``
``aggregate``         coefficient–value interaction: ``aggregate(c, v)``, or ``aggregate(c)`` where ``value`` is None
``project``           output projection
====================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from metamixer.mixers.conv_norm import ConvNorm, fold_norm_before
from metamixer.ops.placement import placed

Slot = Callable[..., Any]
SLOTS = ("query", "key", "interact", "activate", "value", "aggregate", "project")


def _same(x: Any) -> Any:
    return x


@placed
class MetaMixer(nn.Module):
    """Query, key, value and their two interactions composed into a token mixer.

    Fill the slots by passing modules or functions, or by defining methods of those names in a subclass. Slots left
    open are the identity, except ``key`` and ``value``, which stay None: a learned weight inside ``interact`` or
    ``aggregate``. Every mixer maps ``B × C × H × W`` to the same shape, for any H and W.

    A subclass whose formula is clearer or faster in a straight line may override :meth:`forward`;
    :meth:`compose` keeps the four steps, and a test holds the two together.

    The constructors of all mixers also take ``device`` and ``dtype``.

    Raises:
        TypeError: if a slot is both passed and defined as a method, a key is left without ``interact`` or a value
            without ``aggregate`` to take it.
    """

    key: Slot | None
    value: Slot | None

    reads_input: tuple[str, ...] = ()
    """Attributes that are 1×1 convolutions and alone read the input: a norm before the mixer folds into them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            placed(cls)

    def __init__(
        self,
        *,
        query: Slot | None = None,
        key: Slot | None = None,
        interact: Slot | None = None,
        activate: Slot | None = None,
        value: Slot | None = None,
        aggregate: Slot | None = None,
        project: Slot | None = None,
    ) -> None:
        super().__init__()
        given = dict(zip(SLOTS, (query, key, interact, activate, value, aggregate, project), strict=True))
        filled = {name for name, slot in given.items() if slot is not None or callable(getattr(type(self), name, None))}
        for giver, taker in (("key", "interact"), ("value", "aggregate")):
            if giver in filled and taker not in filled:
                raise TypeError(f"{type(self).__name__} has a {giver}, but no {taker} that takes it")
        for name, slot in given.items():
            if callable(getattr(type(self), name, None)):
                if slot is not None:
                    raise TypeError(f"{type(self).__name__} defines {name!r} as a method and was given another one")
            elif slot is not None or name in ("key", "value"):
                setattr(self, name, slot)
            else:
                setattr(self, name, _same)

    def compose(self, x: Tensor) -> Tensor:
        """The four steps, slot by slot: ``B × C × H × W`` to the same shape."""
        query = self.query(x)
        key = () if self.key is None else (self.key(x),)
        coefficients = self.activate(self.interact(query, *key))
        value = () if self.value is None else (self.value(x),)
        return self.project(self.aggregate(coefficients, *value))

    def forward(self, x: Tensor) -> Tensor:
        return self.compose(x)

    def init_weights(self) -> None:
        """Called once by a network around the mixer, when all parts are made: draw weights anew, as it draws its own.

        A mixer keeps those that its constructor drew unless it overrides this.
        """

    def absorb_norm(self, norm: nn.BatchNorm2d) -> bool:
        """Fold a batch norm that stands before this mixer into it; False where that is not exact."""
        for name in self.reads_input:
            reader = getattr(self, name)
            conv = reader.fuse() if isinstance(reader, ConvNorm) else reader
            setattr(self, name, fold_norm_before(norm, conv))
        return bool(self.reads_input)
