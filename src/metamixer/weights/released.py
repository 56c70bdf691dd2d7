"""Key maps from the authors' layouts to ours: the backbones and classifiers of AFFNet, CAS-ViT and FFNet, and FFNet's
networks for super-resolution, forecasting and point clouds.

A layout is a table of (pattern, replacement) rules, applied one after the other to every key; a key of which nothing is
left belongs to layers that the release carries and never runs. Facts come from
microsoft/TokenMixers (99dbe38), Tianfang-Zhang/CAS-ViT (041d2d6) and ysj9909/FFNet (f3c3e4c).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

# CVNets counts layers from 1; in layers 3 to 5, part 0 downsamples and part 1 holds the AFF blocks.
AFFNET: Rules = (
    (r"^conv_1\.", "stem."),
    (r"^conv_1x1_exp\.", "final."),
    (r"^classifier\.fc\.", "head.fc."),
    (r"^layer_(\d)\.", lambda m: f"stages.{int(m[1]) - 1}."),
    (r"^(stages\.\d)\.1\.global_rep\.\d+\.(weight|bias)$", r"\1.norm.\2"),  # the last entry is a norm
    (r"^(stages\.\d)\.1\.global_rep\.", r"\1.blocks."),
    (r"^(stages\.\d)\.1\.conv_proj\.", r"\1.project."),
    (r"^(stages\.\d)\.1\.fusion\.", r"\1.fuse_maps."),
    (r"^(stages\.\d)\.0\.", r"\1.downsample."),
    (r"^(stages\.\d)\.(\d+)\.", lambda m: f"{m[1]}.blocks.{int(m[2]) - 1}."),
    (r"\.filter\.", ".mixer."),
    (r"\.mlp\.", ".local."),
    (r"\.exp_1x1\.", ".expand."),
    (r"\.conv_3x3\.", ".depthwise."),
    (r"\.red_1x1\.", ".project."),
    (r"\.block(?=\.)", ""),
)

# network.0, 2, 4, 6 are stages, network.1, 3, 5 the downsampling layers between them.
CASVIT: Rules = (
    (r"^patch_embed\.0\.", "stem.0.conv."),
    (r"^patch_embed\.1\.", "stem.0.norm."),
    (r"^patch_embed\.3\.", "stem.1.conv."),
    (r"^patch_embed\.4\.", "stem.1.norm."),
    (r"^network\.([0246])\.", lambda m: f"stages.{int(m[1]) // 2}.blocks."),
    (r"^network\.([135])\.", lambda m: f"stages.{int(m[1]) // 2 + 1}.downsample."),
    (r"\.downsample\.proj\.", ".downsample.conv."),
    (r"\.local_perception\.network\.0\.", ".local_perception.expand.conv."),
    (r"\.local_perception\.network\.1\.", ".local_perception.expand.norm."),
    (r"\.local_perception\.network\.2\.", ".local_perception.depthwise."),
    (r"\.local_perception\.network\.4\.", ".local_perception.project."),
    (r"\.attn\.", ".mixer."),
    (r"\.oper_q\.", ".query_context."),
    (r"\.oper_k\.", ".key_context."),
    (r"_context\.0\.block\.0\.", "_context.0.depthwise.conv."),
    (r"_context\.0\.block\.1\.", "_context.0.depthwise.norm."),
    (r"_context\.0\.block\.3\.", "_context.0.gate."),
    (r"_context\.1\.block\.1\.", "_context.1.gate."),
    (r"\.mixer\.dwc\.", ".mixer.activate."),
    (r"\.mixer\.proj\.", ".mixer.project."),
    (r"^norm([0246])\.", lambda m: f"feature_norms.{int(m[1]) // 2}."),
    (r"^norm\.", "final."),
    (r"^head\.", "head.fc."),
    (r"^dist_head\.", "head.fc_dist."),
)

# From stage 1 on, entry 0 of a stage is its downsampling, so that block numbers are one too high.
FFNET: Rules = (
    (r"^patch_embed\.0\.", "stem.0."),
    (r"^patch_embed\.2\.", "stem.1."),
    (r"^(stages\.[1-9])\.0\.proj\.0\.", r"\1.downsample.0."),
    (r"^(stages\.[1-9])\.0\.proj\.1\.conv\.", r"\1.downsample.1."),
    (r"^(stages\.[1-9])\.(\d+)\.", lambda m: f"{m[1]}.blocks.{int(m[2]) - 1}."),
    (r"^stages\.0\.", "stages.0.blocks."),
    (r"\.token_mixer\.0\.", ".token_mixer."),
    (r"\.token_mixer\.main\.fc\.", ".token_mixer.mixer.query."),
    (r"\.token_mixer\.main\.conv1\.", ".token_mixer.mixer.interact."),
    (r"\.token_mixer\.main\.conv2\.", ".token_mixer.mixer.aggregate."),
    (r"\.channel_mixer\.main\.conv\.", ".channel_mixer.mixer.query."),
    (r"\.channel_mixer\.main\.fc1\.", ".channel_mixer.mixer.interact."),
    (r"\.channel_mixer\.main\.fc2\.", ".channel_mixer.mixer.aggregate."),
    (r"\.conv\.(?=(c|bn)\.)", ".branches.0."),  # the large kernel
    (r"\.conv1\.(?=(c|bn)\.)", ".branches.1."),  # the small one beside it
    (r"\.c\.", ".conv."),
    (r"\.bn\.", ".norm."),
    (r"^norm(\d)\.", r"feature_norms.\1."),
    (r"^norm\.", "final."),
    (r"^head\.", "head.fc."),
)

# BasicSR's network: entries of the mixers count the activation.
FFNET_SR: Rules = (
    (r"^proj\.", "first."),
    (r"^conv_bef_up\.", "last."),
    (r"_mixer\.0\.", "_mixer.query."),
    (r"_mixer\.1\.", "_mixer.interact."),
    (r"_mixer\.3\.", "_mixer.aggregate."),
)

FFNET_TSF: Rules = (
    (r"^model\.(downsample_layers\.[1-9]|te_patch|lat_layer|smooth_layer|up_sample_conv)\..*", ""),  # never run
    (r"^model\.downsample_layers\.0\.0\.", "stem.conv."),
    (r"^model\.downsample_layers\.0\.1\.", "stem.norm."),
    (r"^model\.stages\.0\.", ""),
    (r"^model\.head\.linear\.", "output."),
    (r"_mixer\.ffnpw1\.", "_mixer.mix.spread."),
    (r"_mixer\.ffnpw2\.", "_mixer.mix.gather."),
    (r"\.token_mixer\.dw1\.", ".token_mixer.interact."),
    (r"\.token_mixer\.dw2\.", ".token_mixer.aggregate."),
    (r"\.dw\.lkb_origin\.", ".query.branches.0."),  # the large kernel
    (r"\.dw\.small_conv\.", ".query.branches.1."),  # the small one beside it
    (r"\.bn\.", ".norm."),
)

# Pointcept's network, alone or inside a segmentor.
FFNET_POINTS: Rules = (
    (r"^backbone\.", ""),
    (r"^seg_head\.", "head.fc."),
    (r"^embedding\.stem\.", "embedding."),
    (r"^enc\.enc(\d+)\.", r"encoder.\1."),
    (r"^dec\.dec(\d+)\.", r"decoder.\1."),
    (r"\.block(\d+)\.", r".blocks.\1."),
    (r"\.down\.norm\.0\.", ".down.norm."),
    (r"\.up\.proj\.", ".up.coarse."),
    (r"\.up\.proj_skip\.", ".up.skip."),
    (r"\.norm([12])\.0\.", r".norm\1."),
    (r"\.token_mixer\.0\.", ".query."),
    (r"\.token_mixer\.1\.", ".interact.conv."),
    (r"\.token_mixer\.2\.", ".interact.norm."),
    (r"\.token_mixer\.4\.", ".aggregate.conv."),
    (r"\.token_mixer\.5\.", ".aggregate.norm."),
    (r"\.channel_mixer\.0\.", ".local.conv."),
    (r"\.channel_mixer\.1\.", ".local.norm."),
    (r"\.channel_mixer\.2\.", "."),
)

# Family → (a key by which its layout is known, its rules).
LAYOUTS: dict[str, tuple[str, Rules]] = {
    "affnet": (r"^conv_1\.block\.", AFFNET),
    "casvit": (r"^network\.0\.0\.local_perception\.", CASVIT),
    "ffnet": (r"^stages\.0\.0\.token_mixer\.0\.main\.", FFNET),
    "ffnet_sr": (r"^body\.0\.token_mixer\.0\.", FFNET_SR),
    "ffnet_tsf": (r"^model\.stages\.0\.blocks\.0\.token_mixer\.ffnpw1\.", FFNET_TSF),
    "ffnet_points": (r"^(backbone\.)?embedding\.stem\.conv\.", FFNET_POINTS),
}


def released_layout(keys: Mapping[str, Tensor]) -> str | None:
    """The family, one of ``LAYOUTS``, for keys in the layout of its release, None for any other."""
    for family, (mark, _) in LAYOUTS.items():
        if any(re.match(mark, key) for key in keys):
            return family
    return None


def rename(key: str, rules: Rules) -> str:
    """The key in our layout."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def to_our_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in a released layout, renamed to ours; any other comes back as it is."""
    family = released_layout(state)
    if family is None:
        return dict(state)
    rules = LAYOUTS[family][1]
    renamed = {rename(key, rules): tensor for key, tensor in state.items()}
    renamed.pop("", None)
    return renamed
