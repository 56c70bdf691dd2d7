"""Key maps from the authors' dense-prediction networks to ours.

Backbones go through the tables of :mod:`metamixer.weights.released`; the heads and FFNet_seg's own backbone have theirs
here. Facts come from running microsoft/TokenMixers (99dbe38), and Tianfang-Zhang/CAS-ViT (041d2d6) and ysj9909/FFNet
(f3c3e4c) under mmsegmentation 0.30 and mmdetection 2.28.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from metamixer.weights.load import BACKBONES
from metamixer.weights.released import Rules, released_layout, rename, to_our_layout

# mmcv's ConvModule calls its norm bn.
_NORM: Rules = ((r"\.bn\.", ".norm."),)

_NECK: Rules = (
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"neck.laterals.\1."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"neck.outputs.\1."),
)

_FFNET_SEG_MIXERS: Rules = (
    (r"\.c\.", ".conv."),
    (r"\.main\.fc\.", ".mixer.query."),
    (r"\.token_mixer\.main\.conv1\.", ".token_mixer.mixer.interact."),
    (r"\.token_mixer\.main\.conv2\.", ".token_mixer.mixer.aggregate."),
    (r"\.channel_mixer\.main\.conv\.", ".channel_mixer.mixer.query."),
    (r"\.channel_mixer\.main\.fc1\.", ".channel_mixer.mixer.interact."),
    (r"\.channel_mixer\.main\.fc2\.", ".channel_mixer.mixer.aggregate."),
)


def _branches(kernel: int) -> Rules:
    """Order of the parallel depthwise kernels; 3×3 has no smaller square beside it."""
    names = ("conv1", "conv2", "strip_conv1", "strip_conv2") if kernel > 3 else ("conv1", "strip_conv1", "strip_conv2")
    return tuple((rf"\.(query|interact|aggregate)\.{name}\.", rf".\1.branches.{i}.") for i, name in enumerate(names))


# The second stem layers are numbered with the activations between them.
_FFNET_SEG_BACKBONE: Rules = (
    (r"^patch_embed\.0\.", "stem.0."),
    (r"^patch_embed\.2\.", "stem.1."),
    (r"^patch_embed\.4\.", "stem.2."),
    (r"^patch_embed\.5\.", "stem.3."),
    (r"^stages\.0\.(\d+)\.", r"stages.0.blocks.\1."),
    (r"^(stages\.[1-3])\.0\.proj\.0\.", r"\1.downsample.0."),
    (r"^(stages\.[1-3])\.0\.proj\.2\.", r"\1.downsample.1."),
    (r"^(stages\.[1-3])\.(\d+)\.", lambda m: f"{m[1]}.blocks.{int(m[2]) - 1}."),
    (r"\.token_mixer\.0\.", ".token_mixer."),
    *_FFNET_SEG_MIXERS,
    *_NORM,
)

# Inside a head's block a GELU follows each of the two mixers.
_FFNET_SEG_HEAD: Rules = (
    (r"^decode_head\.squeeze\.0\.", "head.squeeze.0."),
    (r"^decode_head\.squeeze\.2\.", "head.squeeze.1."),
    (r"^decode_head\.align\.0\.", "head.expand."),
    *_FFNET_SEG_MIXERS,
    *_branches(9),
    (r"^decode_head\.head_blocks\.(\d+)\.token_mixer\.", r"head.blocks.\1.0."),
    (r"^decode_head\.head_blocks\.(\d+)\.channel_mixer\.", r"head.blocks.\1.2."),
)

_AUXILIARY: Rules = (
    (r"^auxiliary_head\.convs\.0\.", "aux_head.conv."),
    (r"^auxiliary_head\.conv_seg\.", "aux_head.classifier."),
)

MMSEGMENTATION: Rules = (
    *_NECK,
    *_AUXILIARY,
    (r"^decode_head\.scale_heads\.", "head.levels."),
    (r"^decode_head\.psp_modules\.(\d)\.1\.", r"head.pooled.\1."),
    (r"^decode_head\.bottleneck\.", "head.bottleneck."),
    (r"^decode_head\.lateral_convs\.", "head.laterals."),
    (r"^decode_head\.fpn_convs\.", "head.outputs."),
    (r"^decode_head\.fpn_bottleneck\.", "head.merge_levels."),
    (r"^decode_head\.conv_seg\.", "head.classifier."),
    *_FFNET_SEG_HEAD,
    *_NORM,
)

MMDETECTION: Rules = (
    *_NECK,
    (r"^bbox_head\.cls_convs\.(\d)\.conv\.", r"head.class_tower.\1."),
    (r"^bbox_head\.reg_convs\.(\d)\.conv\.", r"head.box_tower.\1."),
    (r"^bbox_head\.retina_cls\.", "head.classifier."),
    (r"^bbox_head\.retina_reg\.", "head.regressor."),
    (r"^rpn_head\.rpn_conv\.", "proposal_head.conv."),
    (r"^rpn_head\.rpn_cls\.", "proposal_head.classifier."),
    (r"^rpn_head\.rpn_reg\.", "proposal_head.regressor."),
    (r"^roi_head\.(bbox|mask)_head\.(?!\d)", r"roi_head.\1_head.0."),  # one stage is not numbered
    (r"^roi_head\.bbox_head\.", "box_heads."),
    (r"^roi_head\.mask_head\.", "mask_heads."),
    (r"^(mask_heads\.\d\.convs\.\d)\.conv\.", r"\1."),
    (r"\.conv_logits\.", ".classifier."),
    (r"\.shared_convs\.", ".convs."),
    (r"\.shared_fcs\.", ".layers."),
    (r"\.fc_cls\.", ".classifier."),
    (r"\.fc_reg\.", ".regressor."),
    *_NORM,
)

_SSD_LEVELS = {"64": 0, "128": 1, "256": 2, "-1": 3}  # by stride; -1 is the whole picture

CVNETS: Rules = (
    (r"^seg_head\.aux_head\.0\.block\.", "aux_head.conv."),
    (r"^seg_head\.aux_head\.2\.block\.conv\.", "aux_head.classifier."),
    (r"^seg_head\.classifier\.block\.conv\.", "head.classifier."),
    (r"^seg_head\.aspp\.aspp_layer\.convs\.4\.aspp_pool\.conv_1x1\.block\.", "head.branches.4."),
    (r"^seg_head\.aspp\.aspp_layer\.convs\.(\d)\.block\.", r"head.branches.\1."),
    (r"^seg_head\.aspp\.aspp_layer\.project\.block\.", "head.project."),
    (r"^seg_head\.psp_layer\.psp_branches\.(\d)\.1\.block\.", r"head.branches.\1."),
    (r"^seg_head\.psp_layer\.fusion\.0\.block\.", "head.project."),
    (r"^extra_layers\.os_(-?\d+)\.", lambda m: f"extra_levels.{_SSD_LEVELS[m[1]]}."),
    (r"^(extra_levels\.\d)\.dw_conv\.block\.", r"\1.0."),
    (r"^(extra_levels\.\d)\.pw_conv\.block\.", r"\1.1."),
    (r"^(extra_levels\.\d\.1)\.block\.conv\.", r"\1."),
    (r"^ssd_heads\.", "predictors."),
    (r"\.proj_layer\.block\.", ".project."),
    (r"\.loc_cls_layer\.dw_conv\.block\.", ".depthwise."),
    (r"\.loc_cls_layer\.(pw_conv\.)?block\.conv\.", ".predict."),
)


def dense_to_our_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole network in a released layout, renamed to ours; any other comes back as it is.

    Our backbones stand inside timm's feature extractor, so their keys begin with ``backbone.model.``.
    """
    prefix = next((prefix for prefix in BACKBONES if any(key.startswith(prefix) for key in state)), None)
    if prefix is None:
        return dict(state)
    backbone = {key[len(prefix) :]: tensor for key, tensor in state.items() if key.startswith(prefix)}
    if released_layout(backbone) is None:
        return dict(state)
    if any(".strip_conv1." in key for key in backbone):  # FFNet_seg
        small, large = (_FFNET_SEG_BACKBONE + _branches(kernel) for kernel in (3, 9))
        renamed = {
            "backbone." + rename(key, small if re.match(r"(patch_embed|stages\.[01])\.", key) else large): tensor
            for key, tensor in backbone.items()
        }
    else:
        renamed = {f"backbone.model.{key}": tensor for key, tensor in to_our_layout(backbone).items()}
    rules = CVNETS if prefix == "encoder." else MMSEGMENTATION if _segments(state) else MMDETECTION
    return renamed | {rename(key, rules): tensor for key, tensor in state.items() if not key.startswith(prefix)}


def _segments(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("decode_head.") for key in state)
