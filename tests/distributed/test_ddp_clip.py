"""Two gloo processes train a CLIP as one does: the loss is over the global batch."""

from typing import Any

import pytest
import torch

from tests.distributed.processes import together
from tests.engine.toy import CPU, Record
from tests.tasks.toy_pairs import ToyPairs, config
from unveil.build import train_clip
from unveil.config import LAMBConfig, TowerOptimization
from unveil.engine import Parallel

LOOKED_AT = {
    "clip.visual.patch_embed.proj.weight",
    "clip.visual.blocks.1.mlp.fc1.weight",
    "clip.text.blocks.0.attn.qkv.weight",
    "clip.visual_projection.weight",
    "clip.logit_scale",
}
"""A few, because the pipe through which they come from other processes is narrow."""


def trained(parallel: Parallel, micro_batch_size: int, local_loss: bool = True, kind: str = "ddp") -> dict[str, Any]:
    settings = config(
        optimization={
            "micro_batch_size": micro_batch_size,
            "optimizer": LAMBConfig(learning_rate=1e-2),
            "clip_gradient_norm": 1.0,
        },
        engine={"evaluate_every": 2, "parallel": kind},
        local_loss=local_loss,
        visual=TowerOptimization(learning_rate=5e-3, layer_decay=0.8),
        text=TowerOptimization(learning_rate=1e-3, locked=1),
    )
    record = Record()
    task, outcome = train_clip(settings, ToyPairs(24), parallel=parallel, watchers=(record,), validation=ToyPairs(7))
    return {
        "rows": [(step, {name: row[name] for name in row if name != "images_per_second"}) for step, row in record.rows],
        "weights": {name: value.detach().clone() for name, value in task.state_dict().items() if name in LOOKED_AT},
        "step": outcome.step,
    }


def trained_here(*arguments: Any) -> list[dict[str, Any]]:
    """Several trainings in one go, since starting processes takes longer than the trainings."""
    torch.set_num_threads(1)
    with Parallel.start("cpu") as parallel:
        return [trained(parallel, *each) for each in arguments]


def assert_same(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    assert ours["step"] == reference["step"]
    for (at, found), (step, expected) in zip(ours["rows"], reference["rows"], strict=True):
        assert at == step and found == pytest.approx(expected, abs=1e-4, rel=1e-4)
    for name, value in reference["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value, atol=1e-4, rtol=1e-4)


def test_two_processes_equal_one_however_the_batch_is_split() -> None:
    alone = trained(CPU, 8)
    assert alone["rows"][-1][1].keys() >= {"loss", "logit_scale", "validation_loss", "validation_image_to_text_r1"}
    assert len(alone["weights"]) == len(LOOKED_AT)
    assert_same(trained(CPU, 2), alone)
    first, second = together(2, trained_here, (4, True), (4, False), (2, True), (2, True, "zero1"))
    assert len(first) == 4
    for found, twin in zip(first, second, strict=True):
        assert_same(found, alone)
        assert all(torch.equal(twin["weights"][name], value) for name, value in found["weights"].items())
