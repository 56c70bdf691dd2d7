"""Key maps from the authors' layouts to ours, for the backbones and classifiers of AFFNet, CAS-ViT and FFNet.

A layout is a table of (pattern, replacement) rules, applied one after the other to every key. Facts come from
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

# Family → (a key by which its layout is known, its rules).
LAYOUTS: dict[str, tuple[str, Rules]] = {
    "affnet": (r"^conv_1\.block\.", AFFNET),
    "casvit": (r"^network\.0\.0\.local_perception\.", CASVIT),
    "ffnet": (r"^stages\.0\.0\.token_mixer\.0\.main\.", FFNET),
}


def released_layout(keys: Mapping[str, Tensor]) -> str | None:
    """``"affnet"``, ``"casvit"`` or ``"ffnet"`` for keys in the layout of that release, None for any other."""
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
    return {rename(key, rules): tensor for key, tensor in state.items()}
