"""Recipes for point clouds: the released settings (configs of ysj9909/FFNet, on Pointcept), and a small one.

The release gives blocks a tenth of the learning rate and uses one cycle of it with a warm-up of a twentieth; a cosine
with that warm-up stands for it here, at a learning rate between the two.
"""

from __future__ import annotations

from metamixer.data.clouds import CloudAugmentation
from metamixer.tasks.point_clouds import PointSegmentation
from metamixer.train.config import TrainConfig
from metamixer.train.recipes.registry import recipe

S3DIS = (
    *("ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board"),
    "clutter",
)
SCANNET = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter"),
    *("desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "other furniture"),
)
SEMANTICKITTI = (
    *("car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road"),
    *("parking", "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole"),
    "traffic-sign",
)


def _released(task: PointSegmentation, epochs: int) -> TrainConfig:
    """AdamW with 12 clouds a step."""
    return TrainConfig(
        task,
        epochs=epochs,
        batch_size=12,
        lr=2e-3,
        weight_decay=0.05,
        warmup_epochs=epochs / 20,
        clip_grad=0.0,
        ema_decay=0.0,
        channels_last=False,
        sync_bn=True,
        mixed_precision="bf16",
    )


@recipe
def s3dis() -> TrainConfig:
    """S3DIS, five areas to train with and the fifth to validate, in Pointcept's preprocessing with normals.

    Source: configs/s3dis/s3dis-ffnet.py (3000 epochs over the rooms, cells of 2 cm, at most 60 % of a room's cells and
    204,800; 30 runs over the rooms count as one epoch here). Reported: mIoU 77.1, with votes over ten views.
    Command: ``metamixer train s3dis --data s3dis``; a day on four large GPUs.
    """
    areas = tuple(f"Area_{i}" for i in (1, 2, 3, 4, 6))
    task = PointSegmentation(
        classes=S3DIS, train=areas, val=("Area_5",), points=204800, share=0.6, passes=30,
        augment=CloudAugmentation(elastic=()),
    )  # fmt: skip
    return _released(task, epochs=100)


@recipe
def scannet() -> TrainConfig:
    """ScanNet v2, 20 classes, in Pointcept's preprocessing.

    Source: configs/scannet/scannet-ffnet.py (800 epochs, cells of 2 cm, 102,400 cells a scene; 8 runs over the scenes
    count as one epoch here). Reported: mIoU 76.5.
    Command: ``metamixer train scannet --data scannet``; a day on four large GPUs.
    """
    return _released(PointSegmentation(classes=SCANNET, points=102400, passes=8), epochs=100)


@recipe
def semantickitti_samples() -> TrainConfig:
    """Our tiny network on a few scans of SemanticKITTI as range images, for a laptop.

    The files are those of ika-rwth-aachen/PCLSegmentation's samples as two archives of ``xyz``, ``remission`` and
    ``label``. Sensor coordinates and remission are read; scans keep their scale and are turned, mirrored and jittered.
    Command: ``metamixer train semantickitti_samples --data FOLDER``.
    """
    task = PointSegmentation(
        model="ffnet_points_tiny",
        classes=SEMANTICKITTI,
        features=("coord", "strength"),
        train=("semantickitti_train.npz",),
        val=("semantickitti_val.npz",),
        grid=0.2,
        centre=False,
        points=40000,
        passes=2,
        augment=CloudAugmentation(tilt=0.0, scale=(0.95, 1.05), jitter=0.02, elastic=()),
        drop_path_rate=0.0,
    )
    return TrainConfig(
        task, epochs=30, batch_size=2, lr=3e-3, warmup_epochs=1.0, ema_decay=0.99, channels_last=False, workers=0
    )
