"""Every recipe trains two steps on generated images; only width, depth and batch are made small."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from unveil.build import build_source, find_machine, pretrain
from unveil.config import ClipTarget, FashionScenes, ImageFiles, PretrainConfig, ViTConfig
from unveil.config.resolve import resolve
from unveil.engine import Parallel
from unveil.models.vit import ViT
from unveil.recipes import PRETRAINING
from unveil.recipes.quickstart import quickstart_pretraining
from unveil.weights.openai_clip import openai_from_tower

IMAGES = 16


def write_images(folder: Path) -> None:
    folder.mkdir()
    waves = torch.linspace(0, 6.28, 60)
    for number in range(IMAGES):
        rows, columns = torch.sin(waves * (1 + number % 4))[:, None], torch.cos(waves * (1 + number // 4))[None, :]
        pixels = torch.stack([rows.expand(60, 60), columns.expand(60, 60), rows * columns], dim=2)
        Image.fromarray(((pixels + 1) * 127).to(torch.uint8).numpy()).save(folder / f"{number}.jpg")


def write_clip(file: Path, patch_size: int) -> None:
    """A tiny CLIP with random weights, as OpenAI lays it out."""
    torch.manual_seed(0)
    tower = ViT(
        ViTConfig(
            image_size=224,
            patch_size=patch_size,
            width=64,
            depth=1,
            heads=1,
            mlp_width=64,
            qkv_bias="all",
            activation="quick_gelu",
            norm_epsilon=1e-5,
            patch_bias=False,
            norm_before_blocks=True,
        )
    )
    state = openai_from_tower(tower.state_dict(), torch.randn(64, 24), prefix="visual.")
    torch.save(state | {"input_resolution": torch.tensor(224)}, file)


def small(config: PretrainConfig, tmp_path: Path) -> PretrainConfig:
    target, source = config.target, config.data.source
    if isinstance(target, ClipTarget):
        write_clip(tmp_path / "clip.pt", config.model.patch_size)
        target = replace(target, name=str(tmp_path / "clip.pt"))
    if isinstance(source, FashionScenes):
        source = replace(source, count=IMAGES)
    else:
        write_images(tmp_path / "images")
        source = ImageFiles(paths=(str(tmp_path / "images"),))
    return replace(
        config,
        model=replace(config.model, width=32, depth=2, heads=2, mlp_width=64),
        target=target,
        data=replace(config.data, source=source),
        optimization=replace(config.optimization, global_batch_size=4, micro_batch_size=2, steps=2, epochs=None),
    )


@pytest.mark.parametrize("recipe", [*PRETRAINING, quickstart_pretraining], ids=lambda recipe: recipe.__name__)
def test_two_steps(recipe: Callable[[], PretrainConfig], tmp_path: Path) -> None:
    parallel = Parallel(torch.device("cpu"))
    config = small(recipe(), tmp_path)
    source = build_source(config.data.source)
    assert len(source) == IMAGES
    config = resolve(config, images=len(source), machine=find_machine(parallel))
    task, outcome = pretrain(config, source, out=tmp_path / "run", parallel=parallel)
    assert (outcome.step, outcome.stopped) == (2, False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and all(math.isfinite(row["loss"]) and abs(row["loss"]) <= 1 for row in rows)
    assert all(parameter.isfinite().all() for parameter in task.parameters())
