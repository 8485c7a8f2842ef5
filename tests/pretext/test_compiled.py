"""What is compiled in a pre-training step: whole graphs, made once, with the values and gradients of the originals."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STEPS = """
    import torch
    from torch._dynamo.utils import counters
    from unveil.config import ViTConfig
    from unveil.models.vit import ViT
    from unveil.pretext.masked_modelling import MaskedModelling, pad_hidden
    from unveil.pretext.targets.clip import ClipTeacher
    from unveil.weights.openai_clip import ClipTower

    original = torch.compile
    torch.compile = lambda function, **settings: original(function, backend="aot_eager", fullgraph=True, **settings)

    def task_of():
        torch.manual_seed(0)
        student = ViTConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2, mlp_width=48, drop_path=0.3)
        tower = ViTConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2, mlp_width=32, qkv_bias="all",
                          activation="quick_gelu", norm_before_blocks=True)
        teacher = ClipTeacher(ClipTower(tower, ViT(tower).state_dict(), torch.randn(16, 12)), name="t", grid=(4, 4))
        return MaskedModelling(ViT(student, mask_token=True), teacher.to("cpu"), seed=0, normalization="clip").train()

    def batch_of(step):
        generator = torch.Generator().manual_seed(step)
        mask = torch.rand(3, 16, generator=generator) < 0.2 + 0.1 * step
        hidden, weight = pad_hidden(mask, 9)
        image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)
        numbers = torch.arange(3 * step, 3 * step + 3)
        return {"image": image, "mask": mask, "hidden": hidden, "hidden_weight": weight, "sample_numbers": numbers}

    for autocast, tolerance in ((False, 1e-4), (True, 2e-2)):
        torch._dynamo.reset()
        counters.clear()
        plain, compiled = task_of(), task_of()
        compiled.compile_()
        for step in range(4):
            losses = []
            for task in (plain, compiled):
                task.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    total, count = task(batch_of(step))["loss"]
                losses.append(total / count)
                losses[-1].backward()
            torch.testing.assert_close(*losses, atol=tolerance, rtol=tolerance)
            for ours, theirs in zip(plain.parameters(), compiled.parameters(), strict=True):
                torch.testing.assert_close(theirs.grad, ours.grad, atol=tolerance, rtol=tolerance)
        assert not counters["graph_break"], counters["graph_break"]
        print(counters["stats"]["unique_graphs"])
"""
"""Run in a process of its own: the run-time shape checks of the tests are not what is compiled."""


@pytest.mark.slow
def test_teacher_and_student_are_one_graph_each_and_never_made_again() -> None:
    """Masks, noise and numbers change from step to step; no graph breaks, which `fullgraph` makes an error. In fp32 and
    under autocast."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(STEPS)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]
