"""Recipes for super-resolution: the released settings (options of ysj9909/FFNet), and a small one for one core.

The release counts 500,000 steps; here they are epochs of its training pictures. Reported are PSNR / SSIM on luma at
scale 2 without a border of 2 pixels.
"""

from __future__ import annotations

from metamixer.tasks.super_resolution import SuperResolution
from metamixer.train.config import TrainConfig
from metamixer.train.recipes.registry import recipe


def _released(task: SuperResolution, epochs: int) -> TrainConfig:
    """Adam 1e-3 to 1e-5 along a cosine, 64 crops of 192 pixels a step, no weight decay."""
    return TrainConfig(
        task,
        epochs=epochs,
        batch_size=64,
        lr=1e-3,
        min_lr=1e-5,
        opt="adam",
        opt_args=("betas=(0.9,0.99)",),
        weight_decay=0.0,
        warmup_epochs=0.0,
        clip_grad=0.0,
        ema_decay=0.0,
    )


@recipe
def sr_light_div2k() -> TrainConfig:
    """The light network on DIV2K (800 pictures, each 40 times an epoch), 500,000 steps.

    Source: options/train/FFNetSR_light_DIV2K.yaml. Reported: Set5 38.23 / .9613, Set14 33.75 / .9204, B100 32.34 /
    .9018, Urban100 32.81 / .9344, Manga109 39.23 / .9781.
    Command: ``metamixer train sr_light_div2k --data DIV2K_train_HR --validation DIV2K_valid_HR``; days on four GPUs.
    ``--small DIV2K_train_LR_bicubic/X2`` reads the small pictures that DIV2K brings.
    """
    return _released(SuperResolution(model="ffnet_sr_light", passes=40), epochs=1000)


@recipe
def sr_df2k() -> TrainConfig:
    """The full network on DIV2K and Flickr2K together (3450 pictures, each 10 times an epoch), 500,000 steps.

    Source: options/train/FFNetSR_DF2K.yaml. Reported: Set5 38.32 / .9618, Set14 34.28 / .9235, B100 32.43 / .9029,
    Urban100 33.23 / .9382, Manga109 39.76 / .9793.
    Command: ``metamixer train sr_df2k --data DF2K_HR --validation DIV2K_valid_HR --scale 2``; days on four GPUs.
    """
    return _released(SuperResolution(model="ffnet_sr", passes=10), epochs=928)


@recipe
def sr_nano() -> TrainConfig:
    """Our nano network (0.05 M parameters) on T91 and BSD200, for one CPU core.

    The losses of the release; smaller crops and batches, and Muon, which needs fewer steps than Adam. Bicubic
    enlargement has 33.68 / .9305 on Set5.
    Command: ``metamixer train sr_nano --data FOLDER --validation Set5``.
    """
    return TrainConfig(
        SuperResolution(model="ffnet_sr_nano", crop=32, passes=16),
        epochs=24,
        batch_size=16,
        lr=5e-3,
        min_lr=5e-5,
        opt="muon",
        weight_decay=0.0,
        warmup_epochs=0.2,
        clip_grad=0.5,
        ema_decay=0.995,
        workers=0,
    )
