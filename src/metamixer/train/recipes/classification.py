"""Recipes for classifiers.

A batch size is that of one step of the optimiser, over all GPUs and accumulated parts. Where the releases train in fp16
the recipes use bf16, which needs no scaling of the loss. None of the sources states GPU-hours.
"""

from __future__ import annotations

from typing import Any

from metamixer.tasks.classification import Classification
from metamixer.train.config import TrainConfig
from metamixer.train.recipes.registry import recipe

#: timm's usual training on ImageNet-1k: crops, bicubic, ``rand-m9-mstd0.5``.
_IMAGENET_CROPS: dict[str, Any] = dict(
    crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3), interpolation="bicubic", smoothing=0.1
)
_RAND_AUGMENT: dict[str, Any] = dict(policy="rand", magnitude=9.0, magnitude_std=0.5)
_TAUGHT: dict[str, Any] = dict(teacher="regnety_160.deit_in1k", distillation="hard", alpha=0.5)


def _affnet(model: str) -> TrainConfig:
    """CVNets' settings for MobileViT (version 0.2, config/classification/imagenet/mobilevit.yaml).

    Two things differ: norms and biases are not decayed here, and the recipes' bf16 is fp16 there.
    """
    task = Classification(
        model,
        model_args=("drop_rate=0.1",),
        image_size=256,
        crop_scale=(0.08, 1.0),
        crop_ratio=(3 / 4, 4 / 3),
        interpolation="bilinear",
        smoothing=0.1,
    )
    return TrainConfig(
        task,
        epochs=300,
        batch_size=1024,
        sizes=(256, 160, 192, 288, 320),  # five from 160 to 320, in multiples of 32
        lr=2e-3,
        min_lr=2e-4,
        warmup_lr=2e-4,
        warmup_epochs=2.4,  # 3000 steps
        weight_decay=0.01,
        clip_grad=0.0,
        ema_decay=0.9995,
        mixed_precision="bf16",
    )


@recipe
def affnet_et_imagenet() -> TrainConfig:
    """AFFNet-ET on ImageNet-1k.

    Source: the release holds no configurations (its read-me links them on a drive); these are CVNets' for MobileViT
    (arXiv 2110.02178, mobilevit.yaml of version 0.2), on whose code the release is built.
    Expected: 73.0 % top-1 (arXiv 2307.14008), if the authors' settings are these.
    GPU-hours: not stated (8 A100).
    Command: torchrun --nproc-per-node 8 --no-python metamixer train affnet_et_imagenet --data imagenet
    """
    return _affnet("affnet_et")


@recipe
def affnet_t_imagenet() -> TrainConfig:
    """AFFNet-T on ImageNet-1k.

    Source: as ``affnet_et_imagenet``.
    Expected: 77.0 % top-1 (arXiv 2307.14008), if the authors' settings are these.
    GPU-hours: not stated (8 A100).
    Command: torchrun --nproc-per-node 8 --no-python metamixer train affnet_t_imagenet --data imagenet
    """
    return _affnet("affnet_t")


@recipe
def affnet_imagenet() -> TrainConfig:
    """AFFNet on ImageNet-1k.

    Source: as ``affnet_et_imagenet``.
    Expected: 79.8 % top-1 (arXiv 2307.14008), if the authors' settings are these.
    GPU-hours: not stated (8 A100).
    Command: torchrun --nproc-per-node 8 --no-python metamixer train affnet_imagenet --data imagenet
    """
    return _affnet("affnet")


def _casvit(model: str) -> TrainConfig:
    task = Classification(model, image_size=224, drop_path_rate=0.1, **_IMAGENET_CROPS, **_RAND_AUGMENT)
    return TrainConfig(
        task,
        epochs=300,
        batch_size=2048,
        accumulate=2,
        sizes=(224, 160, 192, 256, 288, 320),
        lr=6e-3,
        min_lr=1e-6,
        warmup_lr=0.0,
        warmup_epochs=20,
        weight_decay=0.05,
        clip_grad=0.0,
        ema_decay=0.9995,
        mixed_precision="bf16",
    )


def _casvit_384(model: str) -> TrainConfig:
    task = Classification(model, image_size=384, pretrained=True, **_IMAGENET_CROPS, **_RAND_AUGMENT)
    return TrainConfig(
        task,
        epochs=30,
        batch_size=1024,
        accumulate=2,
        sizes=(384, 160, 192, 256, 288, 320),
        lr=5e-5,
        min_lr=5e-5,
        warmup_lr=0.0,
        warmup_epochs=20,
        weight_decay=0.05,
        clip_grad=0.0,
        ema_decay=0.9995,
        mixed_precision="bf16",
    )


@recipe
def casvit_xs_imagenet() -> TrainConfig:
    """CAS-ViT-XS on ImageNet-1k.

    Source: read-me and defaults of the release's main.py (commit 041d2d6), on 8 GPUs with 128 pictures in two parts.
    Expected: 78.3 % top-1 (arXiv 2408.03703).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train casvit_xs_imagenet --data imagenet
    """
    return _casvit("casvit_xs")


@recipe
def casvit_s_imagenet() -> TrainConfig:
    """CAS-ViT-S on ImageNet-1k.

    Source: as ``casvit_xs_imagenet``.
    Expected: 80.9 % top-1 (arXiv 2408.03703).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train casvit_s_imagenet --data imagenet
    """
    return _casvit("casvit_s")


@recipe
def casvit_m_imagenet() -> TrainConfig:
    """CAS-ViT-M on ImageNet-1k.

    Source: as ``casvit_xs_imagenet``.
    Expected: 82.8 % top-1 (arXiv 2408.03703).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train casvit_m_imagenet --data imagenet
    """
    return _casvit("casvit_m")


@recipe
def casvit_t_imagenet() -> TrainConfig:
    """CAS-ViT-T on ImageNet-1k.

    Source: as ``casvit_xs_imagenet``.
    Expected: 83.9 % top-1 (arXiv 2408.03703).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train casvit_t_imagenet --data imagenet
    """
    return _casvit("casvit_t")


@recipe
def casvit_xs_384() -> TrainConfig:
    """CAS-ViT-XS, trained at 224, tuned at 384.

    Source: the read-me's fine-tuning command; the warm-up of 20 epochs is the script's default, which it leaves alone.
    Expected: 78.7 % top-1 at 384 (the release's model zoo).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train casvit_xs_384 --data imagenet
        --checkpoint rcvit_xs.pth
    """
    return _casvit_384("casvit_xs")


@recipe
def casvit_s_384() -> TrainConfig:
    """CAS-ViT-S, trained at 224, tuned at 384.

    Source: as ``casvit_xs_384``.
    Expected: 81.1 % top-1 at 384 (the release's model zoo).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train casvit_s_384 --data imagenet
        --checkpoint rcvit_s.pth
    """
    return _casvit_384("casvit_s")


@recipe
def casvit_m_384() -> TrainConfig:
    """CAS-ViT-M, trained at 224, tuned at 384.

    Source: as ``casvit_xs_384``.
    Expected: 83.0 % top-1 at 384 (the release's model zoo).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train casvit_m_384 --data imagenet
        --checkpoint rcvit_m.pth
    """
    return _casvit_384("casvit_m")


@recipe
def casvit_t_384() -> TrainConfig:
    """CAS-ViT-T, trained at 224, tuned at 384.

    Source: as ``casvit_xs_384``.
    Expected: 84.1 % top-1 at 384 (the release's model zoo).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train casvit_t_384 --data imagenet
        --checkpoint rcvit_t.pth
    """
    return _casvit_384("casvit_t")


def _ffnet(model: str, drop_path_rate: float, mixup: float, **changes: Any) -> TrainConfig:
    task = Classification(
        model,
        **{
            **_IMAGENET_CROPS,
            **_RAND_AUGMENT,
            **dict(image_size=256, erase=0.25, mixup=mixup, cutmix=1.0, drop_path_rate=drop_path_rate),
            **changes,
        },
    )
    return TrainConfig(
        task,
        epochs=320,
        cooldown_epochs=20,
        batch_size=1024,
        lr=1e-3,
        min_lr=1e-5,
        warmup_lr=1e-6,
        warmup_epochs=5,
        weight_decay=0.05,
        clip_grad=0.0,
        ema_decay=0.9995,
        mixed_precision="bf16",
    )


def _ffnet_384(model: str, drop_path_rate: float) -> TrainConfig:
    base = _ffnet(model, drop_path_rate, mixup=0.8, image_size=384, pretrained=True)
    return TrainConfig(
        base.task,
        epochs=30,
        batch_size=512,
        lr=5e-6,
        warmup_epochs=0,
        sched="constant",
        weight_decay=1e-8,
        clip_grad=0.0,
        ema_decay=0.9995,
        mixed_precision="bf16",
    )


@recipe
def ffnet_1_imagenet() -> TrainConfig:
    """FFNet-1 on ImageNet-1k at 256.

    Source: read-me and defaults of the release's train.py (commit f3c3e4c): 300 epochs, then 20 at the lowest rate.
    Expected: 81.3 % top-1 (arXiv 2406.02021).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_1_imagenet --data imagenet
    """
    return _ffnet("ffnet_1", 0.1, mixup=0.2)


@recipe
def ffnet_2_imagenet() -> TrainConfig:
    """FFNet-2 on ImageNet-1k at 256.

    Source: as ``ffnet_1_imagenet``.
    Expected: 82.9 % top-1 (arXiv 2406.02021).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_2_imagenet --data imagenet
    """
    return _ffnet("ffnet_2", 0.15, mixup=0.2)


@recipe
def ffnet_3_imagenet() -> TrainConfig:
    """FFNet-3 on ImageNet-1k at 256.

    Source: as ``ffnet_1_imagenet``, with the script's Mixup.
    Expected: 83.9 % top-1 (arXiv 2406.02021).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_3_imagenet --data imagenet
    """
    return _ffnet("ffnet_3", 0.35, mixup=0.8)


@recipe
def ffnet_4_imagenet() -> TrainConfig:
    """FFNet-4 on ImageNet-1k at 256, before ``ffnet_4_384``.

    Source: the release has no command for it; this is FFNet-3's with the drop path of FFNet-4's fine-tuning.
    Expected: not stated.
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_4_imagenet --data imagenet
    """
    return _ffnet("ffnet_4", 0.5, mixup=0.8)


@recipe
def ffnet_1_distilled() -> TrainConfig:
    """FFNet-1 on ImageNet-1k at 256, taught by RegNetY-160.

    Source: the read-me's command with ``--distillation-type hard``; teacher, weight and Mixup are the script's.
    Expected: 82.1 % top-1 (the release's read-me).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_1_distilled --data imagenet
    """
    return _ffnet("ffnet_1", 0.02, mixup=0.8, **_TAUGHT)


@recipe
def ffnet_2_distilled() -> TrainConfig:
    """FFNet-2 on ImageNet-1k at 256, taught by RegNetY-160.

    Source: as ``ffnet_1_distilled``.
    Expected: 83.7 % top-1 (the release's read-me).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_2_distilled --data imagenet
    """
    return _ffnet("ffnet_2", 0.08, mixup=0.8, **_TAUGHT)


@recipe
def ffnet_3_distilled() -> TrainConfig:
    """FFNet-3 on ImageNet-1k at 256, taught by RegNetY-160.

    Source: as ``ffnet_1_distilled``.
    Expected: 84.5 % top-1 (the release's read-me).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_3_distilled --data imagenet
    """
    return _ffnet("ffnet_3", 0.2, mixup=0.8, **_TAUGHT)


@recipe
def ffnet_3_384() -> TrainConfig:
    """FFNet-3, trained at 256, tuned at 384.

    Source: the read-me's fine-tuning command.
    Expected: 84.5 % top-1 at 384 (arXiv 2406.02021).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_3_384 --data imagenet
        --checkpoint ffnet_3.pth.tar
    """
    return _ffnet_384("ffnet_3", 0.4)


@recipe
def ffnet_4_384() -> TrainConfig:
    """FFNet-4, trained at 256, tuned at 384.

    Source: the read-me's fine-tuning command; the checkpoint to start from is not released.
    Expected: 85.3 % top-1 at 384 (arXiv 2406.02021).
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train ffnet_4_384 --data imagenet
        --checkpoint runs/ffnet_4/best.safetensors
    """
    return _ffnet_384("ffnet_4", 0.5)


def _dsm(model: str, drop_path_rate: float) -> TrainConfig:
    task = Classification(
        model,
        image_size=224,
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        drop_path_rate=drop_path_rate,
        **_IMAGENET_CROPS,
        **_RAND_AUGMENT,
    )
    return TrainConfig(
        task,
        epochs=300,
        batch_size=1024,
        lr=1e-3,
        min_lr=1e-5,
        warmup_lr=1e-6,
        warmup_epochs=5,
        weight_decay=0.05,
        clip_grad=1.0,
        ema_decay=0.9999,
        mixed_precision="bf16",
    )


@recipe
def dsm_t_imagenet() -> TrainConfig:
    """DSM-T, this project's reconstruction, on ImageNet-1k.

    Source: no code was released (arXiv 2309.06721); these are the settings usual since DeiT (arXiv 2012.12877).
    Expected: not known; the paper reports 83.8 % for its best network.
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train dsm_t_imagenet --data imagenet
    """
    return _dsm("dsm_t", 0.1)


@recipe
def dsm_s_imagenet() -> TrainConfig:
    """DSM-S, this project's reconstruction, on ImageNet-1k.

    Source: as ``dsm_t_imagenet``.
    Expected: not known; the paper reports 83.8 % for its best network.
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train dsm_s_imagenet --data imagenet
    """
    return _dsm("dsm_s", 0.3)


@recipe
def dsm_b_imagenet() -> TrainConfig:
    """DSM-B, this project's reconstruction, on ImageNet-1k.

    Source: as ``dsm_t_imagenet``.
    Expected: not known; the paper reports 83.8 % for its best network.
    GPU-hours: not stated.
    Command: torchrun --nproc-per-node 8 --no-python metamixer train dsm_b_imagenet --data imagenet
    """
    return _dsm("dsm_b", 0.5)


@recipe
def tiny_imagenet() -> TrainConfig:
    """A nano network on Tiny-ImageNet: 200 classes, 64 pixels; ``--model`` takes another of the families.

    Source: this project's.
    Expected: not measured yet.
    GPU-hours: not measured yet.
    Command: metamixer train tiny_imagenet --data tiny_imagenet --model affnet_nano
    """
    task = Classification(
        "casvit_nano", image_size=64, mixup=0.2, cutmix=1.0, mix_probability=0.5, erase=0.1, policy="trivial"
    )
    return TrainConfig(
        task, epochs=100, batch_size=256, lr=2e-3, warmup_epochs=5, ema_decay=0.999, mixed_precision="bf16"
    )


@recipe
def cifar10() -> TrainConfig:
    """A nano network on CIFAR-10, as the weights in the package were trained; ``--model`` takes another family.

    Source: this project's.
    Expected: 82.6 % top-1 with casvit_nano, 80.9 ffnet_nano, 79.9 affnet_nano, 78.5 dsm_nano (docs/results.md).
    GPU-hours: none; about half an hour on one core.
    Command: metamixer train cifar10 --data cifar10 --model affnet_nano
    """
    task = Classification("casvit_nano", image_size=48, crop_scale=(0.6, 1.0))
    return TrainConfig(task, epochs=8, batch_size=64, lr=0.004, opt="muon")


@recipe
def finetune() -> TrainConfig:
    """A network with weights, tuned on a small folder of pictures of your own.

    Values for hundreds to thousands of pictures: low learning rates, lowest in the first layers; few, strong
    augmentations; batches small enough for many steps.

    Source: this project's.
    Expected: depends on the pictures; more than from scratch.
    GPU-hours: minutes.
    Command: metamixer train finetune --data DIR --model casvit_xs --checkpoint rcvit_xs.pth --image-size 224
    """
    task = Classification(
        "casvit_nano",
        image_size=96,
        pretrained=True,
        crop_scale=(0.5, 1.0),
        policy="trivial",
        erase=0.1,
        drop_path_rate=0.05,
    )
    return TrainConfig(
        task, epochs=20, batch_size=32, lr=1e-3, warmup_epochs=2, layer_decay=0.8, weight_decay=0.05, ema_decay=0.99
    )


@recipe
def flowers() -> TrainConfig:
    """A network with weights, tuned on photographs of five kinds of flowers; ``--no-pretrained`` starts from scratch.

    Source: this project's; ``finetune`` with longer training.
    Expected: not measured as it stands; after 4 epochs at 64 pixels 75.3 % top-1, from scratch 64.9 (docs/training.md).
    GPU-hours: none; minutes on a CPU.
    Command: metamixer train flowers --data flowers
    """
    task = Classification(
        "casvit_nano", image_size=96, pretrained=True, crop_scale=(0.35, 1.0), policy="trivial", erase=0.1
    )
    return TrainConfig(task, epochs=30, batch_size=32, lr=2e-3, warmup_epochs=2, layer_decay=0.9, ema_decay=0.99)
