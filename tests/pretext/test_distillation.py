"""Feature distillation: the loss by hand, what gradients reach, sums and counts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unveil.config import FeatureDistillation, ViTConfig
from unveil.data.normalization import normalize
from unveil.engine import Task
from unveil.models.vit import ViT
from unveil.pretext.distillation import Distillation
from unveil.pretext.targets.base import Target

TINY = ViTConfig(
    image_size=32, patch_size=8, width=24, depth=2, heads=2, mlp_width=48, init_std=0.1, relative_positions="shared"
)


class PatchColours:
    """A frozen teacher that can be computed by hand: a fixed map of each patch's mean colour, far from whitened."""

    name, dim, grid, image_size = "patch colours", 10, (4, 4), 32

    def __init__(self) -> None:
        self.map = nn.Linear(3, 10)
        nn.init.normal_(self.map.weight, std=3.0, generator=torch.Generator().manual_seed(1))
        nn.init.constant_(self.map.bias, 5.0)

    def to(self, place: torch.device | str) -> "PatchColours":
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        side = images.shape[2] // 4
        return self.map(F.avg_pool2d(images.float() - 128, side).flatten(2).transpose(1, 2) / 64)


def task_of(
    config: ViTConfig = TINY, objective: FeatureDistillation = FeatureDistillation(), *, seed: int = 0
) -> Distillation:
    torch.manual_seed(3)
    return Distillation(ViT(config), PatchColours(), seed=seed, normalization="clip", objective=objective)


def batch_of(count: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    return {
        "image": torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "flipped": torch.zeros(count, dtype=torch.bool),
        "sample_numbers": torch.arange(100, 100 + count),
        "indices": torch.arange(count),
        "valid": torch.ones(count, dtype=torch.bool),
    }


def rows_of(batch: dict[str, Any], places: list[int]) -> dict[str, Any]:
    return {name: value[places] for name, value in batch.items()}


@pytest.mark.parametrize("objective", [FeatureDistillation(), FeatureDistillation(whiten=False, beta=5.0)])
def test_the_loss_by_hand(objective: FeatureDistillation) -> None:
    """Wei et al., section 3: half the square over beta below beta, the distance less half of beta above."""
    task, batch = task_of(objective=objective), batch_of()
    wanted = PatchColours()(batch["image"])
    if objective.whiten:
        deviation = (wanted.var(dim=2, keepdim=True, correction=0) + 1e-5).sqrt()
        wanted = (wanted - wanted.mean(dim=2, keepdim=True)) / deviation
    answers = task.predictor(task.backbone(normalize(batch["image"], "clip")).patches)
    distance = (answers - wanted).abs()
    beta = objective.beta
    losses = torch.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)
    assert (distance < beta).any() and (distance > beta).any(), "both branches must be tried"
    total, count = task(batch)["loss"]
    assert count.item() == 4 * 16
    torch.testing.assert_close(total / count, losses.mean(), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_student_and_nothing_else() -> None:
    task, batch = task_of(), batch_of()
    assert isinstance(task, Task) and isinstance(task.target, Target)
    total, _ = task(batch)["loss"]
    total.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None and parameter.grad.norm() > 0, name
    assert task.target.map.weight.grad is None
    assert {name.split(".")[0] for name in task.state_dict()} == {"backbone", "predictor"}


def test_gradients_by_finite_differences() -> None:
    """Of the loss in double precision, along a random direction of each parameter."""
    task, batch = task_of().double(), batch_of(1)
    images = normalize(batch["image"], "clip").double()
    targets = PatchColours()(batch["image"]).double()

    def loss() -> Tensor:
        # The same as `forward`, in double precision: the loss itself is taken in float32 there.
        wanted = F.layer_norm(targets, (10,))
        return F.smooth_l1_loss(task.predictor(task.backbone(images).patches), wanted, beta=2.0, reduction="sum") / 10

    loss().backward()
    exact = {name: parameter.grad.clone() for name, parameter in task.named_parameters()}
    task.zero_grad()
    task.regress(images, targets, None).sum().backward()
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter.grad, exact[name], atol=1e-5, rtol=1e-4)
        direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter.add_(sign * step * direction)
                values.append(loss().item())
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx((exact[name] * direction).sum().item(), rel=1e-4, abs=1e-7), name


def test_micro_batches_add_up() -> None:
    task, batch = task_of(replace(TINY, drop_path=0.5)), batch_of()
    whole = task(batch)["loss"]
    parts = [task(rows_of(batch, places))["loss"] for places in ([3], [1, 0, 2])]
    for place in range(2):
        torch.testing.assert_close(parts[0][place] + parts[1][place], whole[place], atol=1e-5, rtol=1e-5)


def test_drop_path_is_the_student_s_in_training_alone() -> None:
    batch = batch_of()
    steady, dropping = task_of(), task_of(replace(TINY, drop_path=0.5))
    assert not torch.isclose(steady(batch)["loss"][0], dropping(batch)["loss"][0])
    torch.testing.assert_close(steady.eval().evaluate(batch), dropping.eval().evaluate(batch))
    torch.testing.assert_close(steady.targets(batch), dropping.train().targets(batch))


def test_evaluation_leaves_padding_out() -> None:
    task, batch = task_of().eval(), batch_of()
    sound = task.compute(task.evaluate(rows_of(batch, [0, 2, 3])))["loss"]
    batch["valid"] = torch.tensor([True, False, True, True])
    state = task.evaluate(batch)
    assert state["count"].item() == 3 * 16
    assert task.compute(state)["loss"] == pytest.approx(sound, abs=1e-6)


def test_layer_groups_hold_every_parameter_once() -> None:
    task = task_of()
    listed = [name for group in task.layer_groups() for name, _ in group]
    assert sorted(listed) == sorted(name for name, _ in task.named_parameters())
    table = "backbone.rel_pos_bias.relative_position_bias_table"
    assert table in [name for name, _ in task.layer_groups()[0]] and table in task.no_weight_decay()
