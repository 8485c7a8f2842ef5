"""Our own CLIPs, for data and machines that people have. Each image tower fits what small_data.py pre-trains."""

import dataclasses

from unveil.config import (
    AdamWConfig,
    ClipModelConfig,
    ContrastiveConfig,
    DataConfig,
    EngineConfig,
    OptimizationConfig,
    RandomResizedCrop,
    TextConfig,
)
from unveil.config.clip import clip_base
from unveil.config.revcolv2 import require_vit
from unveil.recipes.small_data import base_one_gpu, small_cpu, tiny_cpu


def clip_tiny_cpu() -> ContrastiveConfig:
    """Seconds on any captioned images and any processor: is everything in place? Logs every step.

    Hardware: one CPU core. Expected: the loss begins somewhat above the logarithm of the batch (2.08 for 8) and falls
    below it; 20 steps teach nothing useful. From tiny_cpu, or from scratch.
    """
    return ContrastiveConfig(
        recipe="clip_tiny_cpu",
        model=ClipModelConfig(
            vision=require_vit(tiny_cpu().model, "a CLIP"),
            text=TextConfig(width=64, heads=2, depth=2, mlp_width=128),
            embedding_width=64,
            projection_bias=False,
        ),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.9, 1.0)), flip=False, workers=1),
        optimization=_adamw(batch=8, learning_rate=1e-3, steps=20, warmup_steps=2),
        engine=EngineConfig(log_every=1, checkpoint_every=10),
    )


def clip_small() -> ContrastiveConfig:
    """A small CLIP on small images (32 px, patch 4), for a laptop and some 10,000 pairs. From small_cpu.

    Hardware: 2 CPU cores. Expected: at its own length not run. 300 steps of 64 on class names of
    CIFAR-10-JPEG-12k give 60.7 % zero-shot from an eighth of small_cpu, 35.8 % from scratch (docs/lab_book.md).
    Crops keep half of the image or more and are mirrored: few pairs are seen often. On captions that tell left from
    right give --set data.flip=false.
    """
    return ContrastiveConfig(
        recipe="clip_small",
        model=ClipModelConfig(
            vision=dataclasses.replace(require_vit(small_cpu().model, "a CLIP"), drop_path=0.1),
            text=TextConfig(width=192, heads=3, depth=4, mlp_width=768),
            embedding_width=192,
            projection_bias=False,
        ),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.5, 1.0)), flip=True),
        optimization=_adamw(batch=256, learning_rate=1e-3, epochs=30.0, warmup_epochs=3.0),
        engine=EngineConfig(log_every=10, checkpoint_every=500, evaluate_every=500),
    )


def clip_base_one_gpu() -> ContrastiveConfig:
    """ViT-B/14 and a text tower 512 wide on one GPU: some 100,000 pairs or more. From base_one_gpu.

    Hardware: one GPU, 24 GB by estimate. Expected: not run yet.
    Of micro-batches all features are computed twice, so that a batch of 1,024 needs the memory of a small one.
    """
    return ContrastiveConfig(
        recipe="clip_base_one_gpu",
        model=dataclasses.replace(clip_base(), vision=require_vit(base_one_gpu().model, "a CLIP")),
        data=DataConfig(crop=RandomResizedCrop(scale=(0.9, 1.0)), flip=False),
        optimization=_adamw(batch=1024, learning_rate=5e-4, epochs=32.0, warmup_epochs=2.0),
        engine=EngineConfig(log_every=10, checkpoint_every=1000, evaluate_every=1000),
    )


def _adamw(
    *,
    batch: int,
    learning_rate: float,
    steps: int | None = None,
    epochs: float | None = None,
    warmup_steps: int | None = None,
    warmup_epochs: float | None = None,
) -> OptimizationConfig:
    """Betas, epsilon and weight decay of OpenAI's CLIP (Radford et al. 2021, Table 18)."""
    return OptimizationConfig(
        optimizer=AdamWConfig(learning_rate=learning_rate, betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.2),
        global_batch_size=batch,
        steps=steps,
        epochs=epochs,
        warmup_steps=warmup_steps,
        warmup_epochs=warmup_epochs,
        min_learning_rate=0.0,
        clip_gradient_norm=1.0,
    )
