"""Write a token mixer, put it into a network and train it: see docs/add_a_mixer.md.

Run it with: python examples/new_mixer.py
"""

from __future__ import annotations

import torch
from torch import nn

import metamixer as mm


@mm.register_mixer("strip")
class StripMixer(mm.MetaMixer):
    """Every pixel is weighed by what lies in its row and in its column."""

    def __init__(self, dim: int, length: int = 7) -> None:
        row, column = (1, length), (length, 1)
        super().__init__(
            query=nn.Conv2d(dim, dim, row, padding="same", groups=dim),
            key=nn.Conv2d(dim, dim, column, padding="same", groups=dim),
            interact=torch.add,
            activate=nn.Sigmoid(),
            value=nn.Conv2d(dim, dim, 1),
            aggregate=torch.mul,
            project=nn.Conv2d(dim, dim, 1),
        )


def stripes(count: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy pictures of horizontal (class 0) and vertical (class 1) stripes."""
    labels = torch.randint(2, (count,))
    phase = torch.rand(count, 1, 1) * 6.28
    rows = torch.sin(torch.arange(size)[:, None] * 1.5 + phase).expand(count, size, size)
    pictures = torch.where(labels[:, None, None] == 0, rows, rows.mT)
    return pictures[:, None] + 0.5 * torch.randn(count, 3, size, size), labels


def train(steps: int = 20) -> list[float]:
    """Loss at every step of a short training."""
    model = mm.create_model("metaformer_nano", mixer=["strip", "strip", "aff", "attention"], num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        pictures, labels = stripes(32)
        loss = nn.functional.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    losses = train()
    print(f"loss {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last")
