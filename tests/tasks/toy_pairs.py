"""Pairs that cost nothing to read, and a CLIP that costs nothing to train on them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from unveil.config import (
    AdamWConfig,
    ClipModelConfig,
    ContrastiveConfig,
    DataConfig,
    EngineConfig,
    OptimizationConfig,
    RandomResizedCrop,
    TextConfig,
    ViTConfig,
)
from unveil.data.sources.base import Sample
from unveil.engine import Batch

MODEL = ClipModelConfig(
    vision=ViTConfig(image_size=28, patch_size=7, width=32, depth=2, heads=2, mlp_width=64, drop_path=0.2),
    text=TextConfig(width=32, heads=2, depth=2, mlp_width=64),
    embedding_width=16,
)

COLOURS = ("red", "green", "blue", "white")
SHAPES = ("stripes", "columns", "squares")


class ToyPairs:
    """A pattern in a colour, and two captions that name both."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        colour, shape = index % len(COLOURS), index // len(COLOURS) % len(SHAPES)
        rows, columns = np.indices((30, 30)) // 4 % 2
        pattern = (rows, columns, rows ^ columns)[shape]
        pixels = np.random.default_rng(index).integers(0, 60, (30, 30, 3), dtype=np.uint8)
        for channel in range(3) if colour == 3 else (colour,):
            pixels[..., channel] += (pattern * 190).astype(np.uint8)
        words = f"{COLOURS[colour]} {SHAPES[shape]}"
        return Sample(
            image=Image.fromarray(pixels),
            name=f"pair {index}",
            label=None,
            index=index,
            captions=(f"{words}, number {index}", f"number {index}: {words}"),
        )

    def digest(self) -> dict[str, dict[str, Any]]:
        return {"toy": {"count": self.count, "sha256": "0"}}


def batch_of(numbers: range) -> Batch:
    """Images and texts that are functions of their numbers."""
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    tokens = torch.stack([torch.randint(1, 49406, (12,), generator=generator) for generator in generators])
    tokens[:, -1] = 49407
    return {
        "image": torch.stack(
            [torch.randint(0, 256, (3, 28, 28), generator=generator, dtype=torch.uint8) for generator in generators]
        ),
        "tokens": tokens,
        "caption_id": torch.tensor(list(numbers)),
        "sample_numbers": torch.tensor(list(numbers)),
        "names": [f"pair {number}" for number in numbers],
    }


def config(
    *, optimization: dict[str, Any] | None = None, engine: dict[str, Any] | None = None, **changes: Any
) -> ContrastiveConfig:
    """A few resolved steps of the toy."""
    return replace(
        ContrastiveConfig(
            recipe="test",
            model=MODEL,
            data=DataConfig(crop=RandomResizedCrop(scale=(0.9, 1.0)), flip=False, workers=0),
            optimization=OptimizationConfig(
                **(
                    {
                        "optimizer": AdamWConfig(learning_rate=3e-3),
                        "global_batch_size": 8,
                        "micro_batch_size": 8,
                        "steps": 4,
                        "warmup_steps": 1,
                    }
                    | (optimization or {})
                )
            ),
            engine=EngineConfig(
                **(
                    {"seed": 1, "precision": "fp32", "log_every": 1, "checkpoint_every": 2, "trackers": ()}
                    | (engine or {})
                )
            ),
            patch_dropout=0.25,
        ),
        **changes,
    )
