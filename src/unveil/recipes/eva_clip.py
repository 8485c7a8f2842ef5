"""EVA-CLIP: the CLIP of Tables 10 and 11, and its published successor.

    eva_giant -> eva_clip_giant, eva_clip_giant_plus

Give the image tower's run, or released weights, to --vision-init, and a CLIP whose text tower is to be taken to
--text-init.
"""

import dataclasses

from unveil.config import (
    ClipModelConfig,
    ContrastiveConfig,
    DataConfig,
    EngineConfig,
    LAMBConfig,
    OptimizationConfig,
    RandomResizedCrop,
    TextConfig,
    TowerOptimization,
)
from unveil.config import clip as networks


def eva_clip_giant() -> ContrastiveConfig:
    """EVA CLIP-g: Table 10a, 1.1 B parameters, 11 B pairs of LAION-400M. From eva_giant and OpenAI CLIP-L/14's texts.

    Hardware: 256 A100 of 40 GB (Table 10a), 160 pairs each; fp16 with dynamic loss scaling, ZeRO-1.
    Expected: zero-shot on ImageNet-1K 78.5 % top-1 (Tables 10b and 11; section 2.3.5 says 78.2 in its text), 75.7 on
    average over the 12 sets of Table 10b (its caption says 72.7); 71.4 over 27 image sets by the release.
    Paper: architecture, data, batch (41k: 40,960 here), pairs seen (11 B in the table, 7 B in its caption), fp16, what
    both towers start from. Released: drop path 0.4, the bounds of the temperature, the image projection's first scale
    (0.001), GELU in a text tower that OpenAI trained with quick GELU.
    Unpublished: optimizer, learning rates, decays, warm-up, clipping. They are those of eva_clip_giant_plus, the
    closest command that is public, without its patch dropout, of which neither paper nor release says a word here.
    """
    return _giant(
        "eva_clip_giant",
        networks.eva_clip_giant(drop_path=0.4),
        batch=40_960,
        pairs=11_000_000_000,
        patch_dropout=0.0,
    )


def eva_clip_giant_plus() -> ContrastiveConfig:
    """EVA01-CLIP-g/14-plus, the published successor: 1.3 B parameters, Merged-2B. From eva_giant and CLIP-H/14's texts.

    Hardware: 112 A100 of 40 GB, 1,024 pairs each.
    Expected: zero-shot on ImageNet-1K 79.3 % top-1 by the release.
    Released command: LAMB, learning rates 4e-4 (images), 4e-5 (texts), 5e-4 (temperature), weight decay 0.05, layer
    decays 0.85 and 0.75, 2,000 steps of warm-up, clipping 5.0, patch dropout 0.5, seed 4096, 100 x 40 M pairs (the
    weights are called s11B, which would be 11 B), DeepSpeed's fp16 with a window of 1,000 steps. It names no betas and
    no epsilon: the code's for this model's name are 0.9, 0.999 and 1e-8. Its drop path is not given (0 here), and its
    warm-up begins at 1/2,000 of the rate, this one at 0.
    """
    giant = networks.eva_clip_giant(drop_path=0.0)
    return _giant(
        "eva_clip_giant_plus",
        dataclasses.replace(giant, text=TextConfig(width=1024, heads=16, depth=24, mlp_width=4096)),
        batch=114_688,
        pairs=4_000_000_000,
        patch_dropout=0.5,
    )


def _giant(recipe: str, model: ClipModelConfig, *, batch: int, pairs: int, patch_dropout: float) -> ContrastiveConfig:
    """The successor's settings."""
    checkpointed = dataclasses.replace(
        model,
        vision=dataclasses.replace(model.vision, activation_checkpointing=True),
        text=dataclasses.replace(model.text, activation_checkpointing=True),
    )
    return ContrastiveConfig(
        recipe=recipe,
        model=checkpointed,
        data=DataConfig(crop=RandomResizedCrop(scale=(0.9, 1.0)), flip=False, normalization="clip"),
        optimization=OptimizationConfig(
            optimizer=LAMBConfig(
                learning_rate=5e-4, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05, trust_ratio=(0.01, 10.0)
            ),
            global_batch_size=batch,
            steps=pairs // batch,
            warmup_steps=2000,
            min_learning_rate=0.0,
            clip_gradient_norm=5.0,
        ),
        engine=EngineConfig(seed=4096, precision="fp16", loss_scale_window=1000, log_every=10, checkpoint_every=1000),
        visual=TowerOptimization(learning_rate=4e-4, layer_decay=0.85),
        text=TowerOptimization(learning_rate=4e-5, layer_decay=0.75),
        local_loss=True,
        patch_dropout=patch_dropout,
    )
