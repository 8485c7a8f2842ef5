"""Our own classification recipes, for data and machines that people have. Each fits what small_data.py pre-trains."""

import dataclasses

from unveil.config import (
    AdamWConfig,
    AugmentationConfig,
    BackboneConfig,
    CenterCrop,
    ClassificationConfig,
    DataConfig,
    EngineConfig,
    OptimizationConfig,
    ProbeConfig,
    RandomResizedCrop,
)
from unveil.recipes.revcolv2 import revcolv2_small_cpu
from unveil.recipes.small_data import base_one_gpu, small_cpu, small_one_gpu, tiny_cpu

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"


def finetune_tiny_cpu() -> ClassificationConfig:
    """Seconds on any class folder and any processor: is everything in place? Logs every step.

    Hardware: one CPU core. Expected: the loss begins at the logarithm of the number of classes (2.30 for ten) and stays
    near it; 20 steps teach nothing useful. From tiny_cpu, or from scratch.
    """
    return ClassificationConfig(
        recipe="finetune_tiny_cpu",
        model=tiny_cpu().model,
        data=DataConfig(crop=RandomResizedCrop(scale=(0.5, 1.0)), workers=1),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3, betas=(0.9, 0.999), epsilon=1e-8),
            global_batch_size=8,
            steps=20,
            warmup_steps=2,
            min_learning_rate=1e-6,
        ),
        engine=EngineConfig(log_every=1, checkpoint_every=10),
    )


def finetune_small() -> ClassificationConfig:
    """A small network on small images (32 px, patch 4), for a laptop and 100 to 10,000 labels. From small_cpu.

    Hardware: 2 CPU cores. Expected: at its own length not run. After an eighth of small_cpu, 400 steps give
    57.5 % on CIFAR-10-JPEG-12k with 1,000 labels, 61.5 % without RandAugment, Mixup and CutMix; 35.6 % is the best
    from scratch (docs/lab_book.md).
    The average of the weights looks back some hundred steps, so that it is of use in runs of a few hundred; of long
    runs a slower one (ema_decay 0.999, 0.9999) shows more.
    """
    return ClassificationConfig(
        recipe="finetune_small",
        model=dataclasses.replace(small_cpu().model, drop_path=0.1),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.5, 1.0))),
        augmentation=AugmentationConfig(rand_augment=RAND_AUGMENT, mixup=0.8, cutmix=1.0),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=5e-4, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05),
            global_batch_size=32,
            epochs=100.0,
            warmup_epochs=5.0,
            min_learning_rate=1e-6,
            clip_gradient_norm=1.0,
            layer_decay=0.75,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=500, evaluate_every=500),
        label_smoothing=0.1,
        ema_decay=0.99,
    )


def finetune_revcolv2_small() -> ClassificationConfig:
    """A small reconstruction of RevColV2 on small images, settings as finetune_small's. From revcolv2_small_cpu.

    Hardware: 2 CPU cores. Expected: not run at its own length; short runs are in docs/lab_book.md.
    """
    small = finetune_small()
    return dataclasses.replace(
        small,
        recipe="finetune_revcolv2_small",
        model=dataclasses.replace(revcolv2_small_cpu().model, drop_path=0.1),
        data=dataclasses.replace(small.data, normalization="imagenet"),
    )


def finetune_small_one_gpu() -> ClassificationConfig:
    """ViT-S/14 on one GPU, some 1,000 labels or more. From small_one_gpu.

    Hardware: one GPU, 12 GB by estimate. Expected: not run yet.
    """
    return _one_gpu("finetune_small_one_gpu", dataclasses.replace(small_one_gpu().model, drop_path=0.1), 0.75)


def finetune_base_one_gpu() -> ClassificationConfig:
    """ViT-B/14 on one GPU, some 10,000 labels or more. From base_one_gpu.

    Hardware: one GPU, 24 GB by estimate. Expected: not run yet.
    """
    return _one_gpu("finetune_base_one_gpu", dataclasses.replace(base_one_gpu().model, drop_path=0.1), 0.65)


def probe_small() -> ProbeConfig:
    """Linear probe of a small network on small images (32 px, patch 4). From small_cpu.

    Hardware: 2 CPU cores. Expected: not run with AdamW (the L-BFGS probe of the same features: docs/lab_book.md).
    AdamW and not LARS, which is for batches of many thousands. The mean of the patches and not the cls token, which
    masked pre-training gives nothing to say. Centre crops, so that each image and its mirror image go through the
    network once.
    """
    return ProbeConfig(
        recipe="probe_small",
        model=small_cpu().model,
        data=DataConfig(crop=CenterCrop(), flip=True),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.0),
            global_batch_size=128,
            epochs=100.0,
            warmup_epochs=5.0,
            min_learning_rate=0.0,
            clip_gradient_norm=None,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=500),
        pooling="mean",
    )


def _one_gpu(recipe: str, model: BackboneConfig, layer_decay: float) -> ClassificationConfig:
    return ClassificationConfig(
        recipe=recipe,
        model=model,
        data=DataConfig(crop=RandomResizedCrop(scale=(0.2, 1.0))),
        augmentation=AugmentationConfig(rand_augment=RAND_AUGMENT, random_erasing=0.25, mixup=0.8, cutmix=1.0),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=5e-4, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05),
            global_batch_size=256,
            epochs=50.0,
            warmup_epochs=5.0,
            min_learning_rate=1e-6,
            clip_gradient_norm=1.0,
            layer_decay=layer_decay,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=500, evaluate_every=500),
        label_smoothing=0.1,
        ema_decay=0.99,
    )
