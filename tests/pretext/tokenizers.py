"""Tiny tokenisers, their batches, and runs that hold them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.config import (
    DataConfig,
    ImageFiles,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.serialize import to_json
from unveil.engine import CheckpointFolder
from unveil.models.vit import ViT
from unveil.pretext.targets.pixels import PixelPatches
from unveil.pretext.tokenizer import TokenizerTraining

TINY = ViTConfig(
    image_size=16,
    patch_size=4,
    width=24,
    depth=3,
    heads=2,
    mlp_width=48,
    init_std=0.2,
    position_init="sine_cosine",
)
OBJECTIVE = VectorQuantizedDistillation(codes=20, code_dim=6, decoder_depth=1, codebook_decay=0.9)
BATCH = 4


def tokenizer_of(
    config: ViTConfig = TINY,
    objective: VectorQuantizedDistillation = OBJECTIVE,
    *,
    seed: int = 0,
    global_batch_size: int = BATCH,
) -> TokenizerTraining:
    torch.manual_seed(3)
    target = PixelPatches(config.grid, patch_size=config.patch_size, normalize=True)
    return TokenizerTraining(
        ViT(config),
        target,
        seed=seed,
        normalization="half",
        objective=objective,
        global_batch_size=global_batch_size,
    )


def samples(numbers: range) -> dict[str, Any]:
    """A batch of pictures that are pure functions of their numbers."""
    pictures = [
        torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        for number in numbers
    ]
    return {
        "image": torch.stack(pictures),
        "sample_numbers": torch.tensor(list(numbers)),
        "valid": torch.ones(len(numbers), dtype=torch.bool),
        "names": [f"sample {number}" for number in numbers],
    }


def alone(sums: dict[str, Tensor]) -> None:
    """The sums over all processes where there is one."""


def save_tokenizer(run: Path, task: TokenizerTraining | None = None, step: int = 3) -> Path:
    """The run folder of a tokeniser."""
    config = PretrainConfig(
        recipe="tiny",
        model=TINY,
        objective=OBJECTIVE,
        target=PixelTarget(),
        data=DataConfig(source=ImageFiles(paths=("photos",)), normalization="half"),
        optimization=OptimizationConfig(),
    )
    CheckpointFolder(run / "checkpoints").save(step, (task or tokenizer_of()).state_dict(), {})
    (run / "config.json").write_text(json.dumps(to_json(config)))
    return run
