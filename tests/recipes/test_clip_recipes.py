"""EVA-CLIP's recipes against the paper and the published command, and two steps of every one."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.toy import CPU
from tests.tasks.toy_pairs import ToyPairs
from unveil.build import find_machine, train_clip
from unveil.config import ContrastiveConfig, LAMBConfig
from unveil.config.resolve import Machine, batch_arithmetic, resolve
from unveil.recipes import CONTRASTIVE
from unveil.recipes.eva_clip import eva_clip_giant, eva_clip_giant_plus


def test_table_10a() -> None:
    """The row of EVA CLIP-g: float16, 224 px, patch 14, 11 B samples in batches of 41k on 256 GPUs."""
    config = eva_clip_giant()
    optimization = config.optimization
    assert optimization.steps is not None
    assert config.engine.precision == "fp16"
    assert (config.model.vision.image_size, config.model.vision.patch_size) == (224, 14)
    assert optimization.steps * optimization.global_batch_size == pytest.approx(11e9, rel=1e-4)
    assert round(optimization.global_batch_size, -3) == 41_000
    gpus = Machine(device="cuda", world_size=256, cores=8, memory_gib=40.0, precision="bf16")
    assert batch_arithmetic(resolve(config, images=400_000_000, machine=gpus), gpus).startswith(
        "global 40960 = 256 GPUs x "
    )


def test_the_successor_s_command() -> None:
    """README of EVA-CLIP: --lr 5e-4 --visual-lr 4e-4 --text-lr 4e-5 --visual-ld 0.85 --text-ld 0.75 and so on."""
    config = eva_clip_giant_plus()
    optimization = config.optimization
    assert optimization.optimizer == LAMBConfig(
        learning_rate=5e-4, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05, trust_ratio=(0.01, 10.0)
    )
    assert (config.visual.learning_rate, config.visual.layer_decay) == (4e-4, 0.85)
    assert (config.text.learning_rate, config.text.layer_decay) == (4e-5, 0.75)
    assert (optimization.warmup_steps, optimization.clip_gradient_norm, optimization.layer_decay) == (2000, 5.0, None)
    assert optimization.global_batch_size == 112 * 1024
    assert optimization.steps == 100 * 40_000_000 // (112 * 1024)
    assert (config.patch_dropout, config.local_loss, config.engine.seed) == (0.5, True, 4096)
    assert config.engine.loss_scale_window == 1000
    text = config.model.text
    assert (text.width, text.heads, text.depth, text.context_length) == (1024, 16, 24, 77)
    first = eva_clip_giant()
    assert replace(first.optimization, global_batch_size=1, steps=1) == replace(
        optimization, global_batch_size=1, steps=1
    )
    assert (first.visual, first.text, first.patch_dropout) == (config.visual, config.text, 0.0)


@pytest.mark.parametrize("recipe", CONTRASTIVE, ids=lambda recipe: recipe.__name__)
def test_two_steps(recipe: Callable[[], ContrastiveConfig], tmp_path: Path) -> None:
    config = recipe()
    model = config.model
    config = replace(
        config,
        model=replace(
            model,
            vision=replace(model.vision, width=32, depth=2, heads=2, mlp_width=64),
            text=replace(model.text, width=32, depth=2, heads=2, mlp_width=64),
            embedding_width=16,
        ),
        data=replace(config.data, workers=0),
        optimization=replace(config.optimization, global_batch_size=4, micro_batch_size=2, steps=2, epochs=None),
        engine=replace(config.engine, trackers=()),
    )
    config = resolve(config, images=12, machine=find_machine(CPU))
    task, outcome = train_clip(config, ToyPairs(12), out=tmp_path / "run", parallel=CPU, validation=ToyPairs(4))
    assert (outcome.step, outcome.stopped) == (2, False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert all(0.0 < row["loss"] < 5.0 for row in rows)
    assert math.isfinite(rows[-1]["validation_loss"]) and 0.0 <= rows[-1]["validation_text_to_image_r1"] <= 1.0
    assert all(parameter.isfinite().all() for parameter in task.parameters())
