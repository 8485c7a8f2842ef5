"""Our own recipes, for data and machines that people have."""

import dataclasses

from unveil.config import (
    AdamWConfig,
    BlockMasking,
    ClipTarget,
    DataConfig,
    EmaTarget,
    EmbeddedTarget,
    EngineConfig,
    FeatureDistillation,
    HogTarget,
    MaskedRegression,
    OptimizationConfig,
    PretrainConfig,
    RandomResizedCrop,
    ViTConfig,
)
from unveil.config.model import vit_base, vit_small


def tiny_cpu() -> PretrainConfig:
    """Seconds on any folder of images and any processor: is everything in place? Logs every step.

    Hardware: one CPU core. Expected: the loss falls in 20 steps; nothing useful is learned.
    """
    return PretrainConfig(
        recipe="tiny_cpu",
        model=ViTConfig(image_size=32, patch_size=8, width=64, depth=2, heads=2, mlp_width=128),
        masking=BlockMasking(ratio=0.4),
        target=EmbeddedTarget(),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.2, 1.0)), workers=1),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3),
            global_batch_size=8,
            steps=20,
            warmup_steps=2,
        ),
        engine=EngineConfig(log_every=1, checkpoint_every=10),
    )


def small_cpu() -> PretrainConfig:
    """A small network on small images (32 px, patch 4), embedded teacher, for a laptop and some 10,000 images.

    Hardware: 2 CPU cores. Expected: at its own length not run. An eighth of it (4,000 steps of 32, centre crops,
    random masks of 40 %) gives 67.6 % in the linear probe of CIFAR-10-JPEG-12k, 61.9 % with 1,000 labels
    (docs/lab_book.md).
    """
    return PretrainConfig(
        recipe="small_cpu",
        model=ViTConfig(
            image_size=32,
            patch_size=4,
            width=192,
            depth=6,
            heads=3,
            mlp_width=768,
            init_std=0.1,
            position_init="sine_cosine",
        ),
        masking=BlockMasking(ratio=0.4),
        target=EmbeddedTarget(),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.2, 1.0))),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3, epsilon=1e-8),
            global_batch_size=64,
            epochs=100.0,
            warmup_epochs=5.0,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=500),
    )


def distillation_small_cpu() -> PretrainConfig:
    """small_cpu with nothing hidden: the student distils the teacher's features of whole images (Table 2b, small).

    Hardware: 2 CPU cores. Expected: at its own length not run; 12 epochs of a narrower one: docs/lab_book.md.
    The network is small_cpu's, so that the two differ in the pretext task alone. What FD's authors change in it is had
    with --set model.relative_positions=shared --set model.drop_path=0.2.
    """
    return dataclasses.replace(small_cpu(), recipe="distillation_small_cpu", objective=FeatureDistillation())


def maskfeat_small_cpu() -> PretrainConfig:
    """small_cpu without a teacher: the hidden patches' histograms of oriented gradients (MaskFeat).

    Hardware: 2 CPU cores. Expected: not run yet.
    Squared differences, as in MaskFeat; one cell a patch, since half of 4 pixels holds no direction.
    """
    return dataclasses.replace(
        small_cpu(),
        recipe="maskfeat_small_cpu",
        objective=MaskedRegression(loss="squared"),
        target=HogTarget(cells=1),
    )


def data2vec_small_cpu() -> PretrainConfig:
    """small_cpu taught by its own running average, which sees the whole image: no other network (data2vec).

    Hardware: 2 CPU cores. Expected: not run yet.
    60 % hidden, smooth L1, half of the blocks averaged, as in data2vec; the average looks back some 500 steps, where
    data2vec's (0.9998) looks back 5,000.
    """
    return dataclasses.replace(
        small_cpu(),
        recipe="data2vec_small_cpu",
        objective=MaskedRegression(loss="smooth_l1"),
        masking=BlockMasking(ratio=0.6),
        target=EmaTarget(decay=0.998, layers=3),
    )


def small_one_gpu() -> PretrainConfig:
    """ViT-S/14 on one GPU, OpenAI CLIP-L/14 teacher: 10,000 to some 100,000 images of one's own.

    Hardware: one GPU, 12 GB by estimate. Expected: not run yet.
    """
    return PretrainConfig(
        recipe="small_one_gpu",
        model=vit_small(drop_path=0.05),
        masking=BlockMasking(ratio=0.4, count=105, min_block=16),
        target=ClipTarget(name="ViT-L-14/openai"),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.2, 1.0))),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3),
            global_batch_size=512,
            epochs=300.0,
            warmup_epochs=10.0,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=500),
    )


def base_one_gpu() -> PretrainConfig:
    """ViT-B/14 on one GPU, OpenAI CLIP-L/14 teacher: some 100,000 images or more.

    Hardware: one GPU, 24 GB by estimate. Expected: not run yet.
    """
    return PretrainConfig(
        recipe="base_one_gpu",
        model=vit_base(drop_path=0.1),
        masking=BlockMasking(ratio=0.4, count=105, min_block=16),
        target=ClipTarget(name="ViT-L-14/openai"),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.2, 1.0))),
        optimization=OptimizationConfig(
            optimizer=AdamWConfig(learning_rate=1e-3),
            global_batch_size=1024,
            epochs=150.0,
            warmup_epochs=5.0,
        ),
        engine=EngineConfig(log_every=10, checkpoint_every=1000),
    )
