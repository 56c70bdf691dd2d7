"""Recipes for boxes and instance masks.

Metrics are fractions here: a box AP of 36.5 in a paper is ``mAP`` 0.365.
"""

from __future__ import annotations

from metamixer.tasks.detection import Detection
from metamixer.train.config import TrainConfig
from metamixer.train.recipes.registry import recipe


@recipe
def coco_retinanet_1x() -> TrainConfig:
    """RetinaNet on CAS-ViT-XS, COCO, 12 epochs.

    Source: the release's configuration (AdamW 2e-4, weight decay 1e-4, 4 pictures a GPU, taken as 8 GPUs; the backbone
    starts from ImageNet weights; the rate falls to a tenth after epochs 8 and 11).
    Reported: box AP 0.365 (S 0.386, M 0.409, T 0.419 with their backbones).
    Command: ``metamixer train coco_retinanet_1x --data COCO``, COCO with ``annotations/`` and ``train2017/``.
    """
    return TrainConfig(
        Detection(head="retinanet", backbone="casvit_xs"),
        epochs=12,
        batch_size=32,
        lr=2e-4,
        weight_decay=1e-4,
        warmup_epochs=0.15,  # 500 steps
        sched="multistep",
        sched_args=("decay_milestones=(8,11)", "decay_rate=0.1"),
        clip_grad=0.0,
        ema_decay=0.0,
    )


@recipe
def coco_mask_rcnn_1x() -> TrainConfig:
    """Mask R-CNN on CAS-ViT-XS, COCO, 12 epochs.

    Source: the release's configuration, as for ``coco_retinanet_1x``.
    Reported: box AP 0.374, mask AP 0.349 (S 0.398 / 0.367, M 0.423 / 0.389, T 0.435 / 0.396).
    Command: ``metamixer train coco_mask_rcnn_1x --data COCO``.
    """
    return TrainConfig(
        Detection(head="mask_rcnn", backbone="casvit_xs"),
        epochs=12,
        batch_size=32,
        lr=2e-4,
        weight_decay=1e-4,
        warmup_epochs=0.15,
        sched="multistep",
        sched_args=("decay_milestones=(8,11)", "decay_rate=0.1"),
        clip_grad=0.0,
        ema_decay=0.0,
    )


@recipe
def coco_cascade_mask_rcnn_3x() -> TrainConfig:
    """Cascade Mask R-CNN on FFNet-2, COCO, 36 epochs.

    Source: the release's configuration (AdamW 1e-4, batches of 16, weight decay 0.05, layer decay 0.8, drop path 0.35,
    several scales and crops; the backbone starts from ImageNet weights; the rate falls to a tenth after epochs 27 and
    33). Its layers for the decay are groups of blocks, here single blocks.
    Reported: box AP 0.518, mask AP 0.449 (FFNet-3 0.528 / 0.456, FFNet-4 0.534 / 0.459).
    Command: ``metamixer train coco_cascade_mask_rcnn_3x --data COCO``, with several GPUs ``--sync-bn``.
    """
    return TrainConfig(
        Detection(head="cascade_mask_rcnn", backbone="ffnet_2", augmentation="crop", drop_path_rate=0.35),
        epochs=36,
        batch_size=16,
        lr=1e-4,
        weight_decay=0.05,
        layer_decay=0.8,
        warmup_epochs=0.07,
        sched="multistep",
        sched_args=("decay_milestones=(27,33)", "decay_rate=0.1"),
        clip_grad=0.0,
        ema_decay=0.0,
    )


@recipe
def coco_ssdlite() -> TrainConfig:
    """SSDLite on AFFNet-ET, COCO, pictures of 320 × 320 pixels.

    The paper reports SSDLite results, but its release holds no configuration and the figures are not at hand: rate,
    decay and length are ours, in the habit of such networks.
    Command: ``metamixer train coco_ssdlite --data COCO``.
    """
    return TrainConfig(
        Detection(head="ssdlite", backbone="affnet_et", augmentation="ssd"),
        epochs=200,
        batch_size=128,
        lr=9e-4,
        weight_decay=0.01,
        warmup_epochs=0.5,
        ema_decay=0.9995,
    )


@recipe
def small_detection() -> TrainConfig:
    """RetinaNet on the nano backbone that comes with the package, for some hundred pictures of your own.

    The first stage keeps its weights; many small steps of Muon learn the head, so that a processor is enough.
    Objects of very different sizes want ``--augmentation jitter`` and more epochs. Ours; docs/dense_prediction.md has
    a figure.
    Command: ``metamixer train small_detection --data DIR`` with COCO's, VOC's or YOLO's layout.
    """
    return TrainConfig(
        Detection(
            head="retinanet",
            backbone="casvit_nano.cifar10",
            model_args=("channels=64",),
            image_size=320,
            augmentation="flip",
            frozen_stages=1,
        ),
        epochs=16,
        batch_size=4,
        lr=2e-3,
        opt="muon",
        warmup_epochs=1,
        clip_grad=10.0,
        ema_decay=0.99,
    )


@recipe
def small_instances() -> TrainConfig:
    """Mask R-CNN on the nano backbone that comes with the package, for some hundred pictures of your own with masks.

    As ``small_detection``, with a slimmer second step. Ours; docs/dense_prediction.md has a figure.
    Command: ``metamixer train small_instances --data DIR`` with COCO's layout, or YOLO's with polygons.
    """
    return TrainConfig(
        Detection(
            head="mask_rcnn",
            backbone="casvit_nano.cifar10",
            model_args=("channels=64", "hidden=256", "samples=64"),
            image_size=288,
            augmentation="multiscale",
            frozen_stages=1,
        ),
        epochs=20,
        batch_size=4,
        lr=2e-3,
        opt="muon",
        warmup_epochs=1,
        clip_grad=10.0,
        ema_decay=0.99,
    )
