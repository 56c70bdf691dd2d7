"""Recipes for class maps.

Metrics are fractions here: a mIoU of 37.1 in a paper is 0.371. The releases count steps; here they are turned into
epochs of the data set's training part (ADE20K 20,210 pictures, Cityscapes 2,975, VOC with its extra labels 10,582).
Their learning rates fall polynomially to zero, with a power of 0.9 or 1.
"""

from __future__ import annotations

from metamixer.tasks.segmentation import SemanticSegmentation
from metamixer.train.config import TrainConfig
from metamixer.train.recipes.registry import recipe

CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
CAMVID = (*("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),)


@recipe
def ade20k_semantic_fpn_40k() -> TrainConfig:
    """Semantic FPN on CAS-ViT-XS, ADE20K, 40,000 steps of 32 pictures.

    Source: the release's configuration (AdamW 2e-4, weight decay 1e-4, 8 GPUs of 4 pictures, polynomial; the backbone
    starts from ImageNet weights). Reported: mIoU 0.371 (S 0.413, M 0.436, T 0.450).
    Command: ``metamixer train ade20k_semantic_fpn_40k --data ADEChallengeData2016``.
    """
    return TrainConfig(
        SemanticSegmentation(head="semantic_fpn", backbone="casvit_xs", zero_is_void=True),
        epochs=63,
        batch_size=32,
        lr=2e-4,
        weight_decay=1e-4,
        warmup_epochs=0,
        min_lr=0.0,
        sched="poly",
        sched_args=("decay_rate=0.9",),  # the power
        clip_grad=0.0,
        ema_decay=0.0,
    )


@recipe
def ade20k_upernet_160k() -> TrainConfig:
    """UPerNet on FFNet-2, ADE20K, 160,000 steps of 16 pictures.

    Source: the release's configuration (AdamW 1e-4, weight decay 0.05, 1,500 steps of warm-up, linear, drop path 0.2).
    Reported: mIoU 0.471, with several scales and mirroring 0.478 (FFNet-3 0.496 / 0.502, FFNet-4 0.507 / 0.517).
    Command: ``metamixer train ade20k_upernet_160k --data ADEChallengeData2016``, with several GPUs ``--sync-bn``.
    """
    return TrainConfig(
        SemanticSegmentation(head="upernet", backbone="ffnet_2", zero_is_void=True, drop_path_rate=0.2),
        epochs=127,
        batch_size=16,
        lr=1e-4,
        weight_decay=0.05,
        warmup_epochs=1.2,
        min_lr=0.0,
        sched="poly",
        sched_args=("decay_rate=1.0",),  # the power
        clip_grad=0.0,
        ema_decay=0.0,
    )


@recipe
def ade20k_ffnet_seg_160k() -> TrainConfig:
    """FFNet_seg, ADE20K, 160,000 steps of 16 pictures.

    Source: the release's configuration (AdamW 6e-5, weight decay 0.05, drop path 0.3, 1,500 steps of warm-up). The
    release gives the head ten times the learning rate; here all layers have the same.
    Reported: mIoU 0.501, with several scales and mirroring 0.512.
    Command: ``metamixer train ade20k_ffnet_seg_160k --data ADEChallengeData2016``.
    """
    return TrainConfig(
        SemanticSegmentation(head="ffnet_seg", zero_is_void=True, drop_path_rate=0.3),
        epochs=127,
        batch_size=16,
        lr=6e-5,
        weight_decay=0.05,
        warmup_epochs=1.2,
        min_lr=0.0,
        sched="poly",
        sched_args=("decay_rate=1.0",),  # the power
        clip_grad=0.0,
        ema_decay=0.0,
    )


@recipe
def cityscapes_ffnet_seg_160k() -> TrainConfig:
    """FFNet_seg, Cityscapes, 160,000 steps of 16 crops of 1024 pixels; validated on windows of 1024, stride 768.

    Source: the release's configuration (AdamW 6e-5, weight decay 0.02, drop path 0.35, 1,500 steps of warm-up, the head
    of depth 5 and expansion 1 with ten times the learning rate, which here is that of all layers).
    Reported: mIoU 0.832, with several scales and mirroring 0.841.
    Command: ``metamixer train cityscapes_ffnet_seg_160k --data cityscapes``, with ``leftImg8bit/`` and ``gtFine/``
    (``*_gtFine_labelTrainIds.png``).
    """
    return TrainConfig(
        SemanticSegmentation(
            head="ffnet_seg",
            model_args=("depth=5", "expansion=1.0"),
            image_size=1024,
            classes=CITYSCAPES,
            drop_path_rate=0.35,
            inference="slide",
            window=1024,
            stride=768,
        ),
        epochs=860,
        batch_size=16,
        lr=6e-5,
        weight_decay=0.02,
        warmup_epochs=8,
        min_lr=0.0,
        sched="poly",
        sched_args=("decay_rate=1.0",),  # the power
        clip_grad=0.0,
        ema_decay=0.0,
    )


@recipe
def voc_deeplabv3() -> TrainConfig:
    """DeepLabv3 on AFFNet-ET, Pascal VOC 2012, 21 classes.

    The release holds no configuration: rate, decay and length are ours.
    Reported: mIoU 0.761 (T 0.778, base model 0.805), which such networks reach with VOC's extra labels and COCO.
    Command: ``metamixer train voc_deeplabv3 --data VOCdevkit/VOC2012``.
    """
    return TrainConfig(
        SemanticSegmentation(head="deeplabv3", backbone="affnet_et", model_args=("auxiliary=True",), classes=VOC),
        epochs=50,
        batch_size=32,
        lr=5e-4,
        weight_decay=0.05,
        ema_decay=0.9995,
    )


@recipe
def ade20k_deeplabv3() -> TrainConfig:
    """DeepLabv3 on AFFNet-ET, ADE20K.

    The release holds no configuration: rate, decay and length are ours.
    Reported: mIoU 0.330 (T 0.369, base model 0.384).
    Command: ``metamixer train ade20k_deeplabv3 --data ADEChallengeData2016``.
    """
    return TrainConfig(
        SemanticSegmentation(head="deeplabv3", backbone="affnet_et", model_args=("auxiliary=True",), zero_is_void=True),
        epochs=120,
        batch_size=32,
        lr=5e-4,
        weight_decay=0.05,
        ema_decay=0.9995,
    )


@recipe
def camvid_semantic_fpn() -> TrainConfig:
    """Semantic FPN on the nano backbone that comes with the package, CamVid, 11 classes of 480 × 360 pixels.

    At the pictures' own height, where poles and signs are still there. Rare classes weigh more in the loss, by the root
    of their share. Class 11 is void. Ours; docs/dense_prediction.md has a figure.
    Command: ``metamixer train camvid_semantic_fpn --data camvid``, with ``train/images`` and ``train/labels`` and the
    same for ``val`` and ``test``.
    """
    return TrainConfig(
        SemanticSegmentation(
            head="semantic_fpn",
            backbone="casvit_nano.tiny_in",
            model_args=("channels=64",),
            image_size=360,
            crop=256,
            scale=(0.7, 1.5),
            classes=CAMVID,
            void=11,
            class_weights=(0.9, 0.75, 3.5, 0.65, 1.7, 1.2, 3.5, 3.5, 1.5, 4.5, 6.0),
        ),
        epochs=12,
        batch_size=4,
        lr=2e-3,
        opt="muon",
        warmup_epochs=0.5,
        ema_decay=0.99,
    )


@recipe
def small_segmentation() -> TrainConfig:
    """Semantic FPN on the nano backbone that comes with the package, for some hundred pictures of your own.

    The first stage keeps its weights. Ours; no figure is reported.
    Command: ``metamixer train small_segmentation --data DIR`` with ``train/images`` and ``train/labels``.
    """
    return TrainConfig(
        SemanticSegmentation(
            head="semantic_fpn",
            backbone="casvit_nano.tiny_in",
            model_args=("channels=128",),
            image_size=320,
            scale=(0.75, 1.75),
            frozen_stages=1,
        ),
        epochs=60,
        batch_size=8,
        lr=1e-3,
        warmup_epochs=2,
        ema_decay=0.995,
    )
