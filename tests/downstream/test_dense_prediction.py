"""Others' decoders and detectors on our backbones."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign


@pytest.mark.promise("clients", "segmentation_models_pytorch takes every family as a `tu-` encoder")
def test_encoders_of_segmentation_models_pytorch(family, pictures):
    model = smp.Unet(f"tu-{family}", encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8), classes=3)
    model(pictures).sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert model.eval()(pictures).shape == (2, 3, 64, 64)


class Pyramid(nn.Module):
    """A feature extractor of timm's kind and torchvision's pyramid, as its detectors ask for."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.out_channels = body, 16
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): x for i, x in enumerate(self.body(x))})


@pytest.mark.promise("clients", "torchvision's Faster R-CNN is trained and evaluated on every family")
def test_detectors_of_torchvision(make):
    backbone = Pyramid(make(features_only=True, out_indices=(-2, -1)))
    detector = FasterRCNN(
        backbone, 3, min_size=64, max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
        box_roi_pool=MultiScaleRoIAlign(["0", "1"], 7, 2),
    )  # fmt: skip
    target = {"boxes": torch.tensor([[3.0, 3.0, 30.0, 30.0]]), "labels": torch.tensor([1])}
    losses = detector([torch.rand(3, 64, 64)] * 2, [target] * 2)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in backbone.body.parameters())
    [found] = detector.eval()([torch.rand(3, 50, 60)])
    assert found["boxes"].shape[1] == 4
