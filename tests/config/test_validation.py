"""Values that cannot be are refused where they are written; and the room stays light."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from unveil.config import (
    AdamWConfig,
    BlockMasking,
    CenterCrop,
    DataConfig,
    EngineConfig,
    OptimizationConfig,
    PatchAggregation,
    RandomMasking,
    RandomResizedCrop,
    UnveilError,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.model import vit_base, vit_giant, vit_large, vit_small, vit_tiny


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (ViTConfig, {"image_size": 225}, "image_size 225 is not a multiple of model.patch_size 14; try 224"),
        (ViTConfig, {"image_size": 8}, "try 14"),
        (ViTConfig, {"width": 100}, "width 100 is not a multiple of model.heads 16"),
        (ViTConfig, {"patch_size": 0}, "at least 1"),
        (ViTConfig, {"heads": 0}, "at least 1"),
        (ViTConfig, {"depth": 0}, "at least 1"),
        (ViTConfig, {"drop_path": 1.0}, r"not in \[0, 1\)"),
        (BlockMasking, {"ratio": 1.0}, "between 0 and 1"),
        (BlockMasking, {"count": 0}, "hides nothing"),
        (BlockMasking, {"min_block": 0}, "min_block is 0"),
        (BlockMasking, {"min_aspect": 0.0}, "min_aspect"),
        (RandomMasking, {"ratio": 0.0}, "between 0 and 1"),
        (VectorQuantizedDistillation, {"codes": 1}, "codes must be at least 2"),
        (VectorQuantizedDistillation, {"decoder_depth": 0}, "decoder_depth at least 1"),
        (VectorQuantizedDistillation, {"codebook_decay": 1.0}, "codebook_decay 1.0 must lie between 0 and 1"),
        (VectorQuantizedDistillation, {"revive_below": -0.1}, r"revive_below -0.1 is not in \[0, 1\)"),
        (VectorQuantizedDistillation, {"commitment": -1.0}, "commitment -1.0 must not be less than 0"),
        (PatchAggregation, {"after_block": 0}, "at least 1"),
        (RandomResizedCrop, {"scale": (0.5, 0.2)}, "least <= most"),
        (RandomResizedCrop, {"scale": (0.0, 1.0)}, "0 < least"),
        (RandomResizedCrop, {"ratio": (0.0, 1.0)}, "crop.ratio"),
        (CenterCrop, {"share": 1.5}, "crop.share"),
        (DataConfig, {"workers": -1}, "data.workers is -1"),
        (DataConfig, {"max_unreadable_share": 2.0}, "max_unreadable_share"),
        (OptimizationConfig, {"steps": 3, "epochs": 3.0}, "both steps and epochs"),
        (OptimizationConfig, {"warmup_steps": 3, "warmup_epochs": 3.0}, "both warmup_steps and warmup_epochs"),
        (OptimizationConfig, {"steps": 0}, "steps is 0"),
        (OptimizationConfig, {"epochs": -1.0}, "epochs is -1.0"),
        (OptimizationConfig, {"global_batch_size": 0}, "global_batch_size is 0"),
        (OptimizationConfig, {"micro_batch_size": -2}, "micro_batch_size is -2"),
        (OptimizationConfig, {"warmup_steps": -1}, "warmup_steps is -1"),
        (OptimizationConfig, {"min_learning_rate": -1.0}, "min_learning_rate is -1.0"),
        (OptimizationConfig, {"clip_gradient_norm": 0.0}, "clip_gradient_norm is 0.0"),
        (OptimizationConfig, {"layer_decay": 0.0}, "layer_decay is 0.0"),
        (AdamWConfig, {"learning_rate": -1e-3}, "learning_rate"),
        (AdamWConfig, {"betas": (0.9, 1.0)}, "betas"),
        (EngineConfig, {"log_every": 0}, "log_every is 0"),
        (EngineConfig, {"keep_last": 0}, "keep_last is 0"),
        (EngineConfig, {"parallel": "fsdp", "shard_group": 0}, "shard_group is 0"),
        (EngineConfig, {"parallel": "zero1", "shard_group": 8}, "engine.parallel is zero1; give --parallel fsdp"),
        (EngineConfig, {"timeout_minutes": 0.0}, "timeout_minutes is 0.0"),
        (EngineConfig, {"evaluate_every": 0}, "evaluate_every is 0"),
    ],
)
def test_impossible_values(kind: Callable[..., Any], values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnveilError, match=sentence):
        kind(**values)


def test_what_is_allowed_at_the_edge() -> None:
    OptimizationConfig(warmup_steps=0, clip_gradient_norm=None, min_learning_rate=0.0, layer_decay=1.0)
    EngineConfig(evaluate_every=None, checkpoint_every=1)
    DataConfig(workers=0, max_unreadable_share=0.0)
    CenterCrop(share=1.0)


def test_named_sizes_are_the_usual_ones() -> None:
    """DeiT's tiny and small, ViT's base and large, EVA's giant (Table 3a)."""
    sizes = {(c.width, c.depth, c.heads, c.mlp_width) for c in (vit_tiny(), vit_small(), vit_base(), vit_large())}
    assert sizes == {(192, 12, 3, 768), (384, 12, 6, 1536), (768, 12, 12, 3072), (1024, 24, 16, 4096)}
    giant = vit_giant(drop_path=0.1)
    assert (giant.width, giant.depth, giant.heads, giant.mlp_width, giant.grid) == (1408, 40, 16, 6144, (16, 16))
    assert (giant.init_std, giant.drop_path, vit_base(image_size=384, patch_size=16).grid) == (0.015, 0.1, (24, 24))


def test_configurations_and_recipes_import_nothing_heavy() -> None:
    """Listing recipes must answer at once."""
    program = (
        "import sys, unveil.config, unveil.config.teacher, unveil.config.override, unveil.config.resolve, "
        "unveil.recipes; [recipe() for recipe in unveil.recipes.PRETRAINING]; "
        "print(sorted({'torch', 'numpy', 'timm', 'PIL', 'open_clip'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
