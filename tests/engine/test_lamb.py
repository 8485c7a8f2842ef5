"""LAMB against its published algorithm, and against timm's where that knows the same."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.toy import Regression, batch_of
from unveil.config import LAMBConfig
from unveil.engine import build_optimizer
from unveil.engine.optimizer import set_learning_rate


class Awkward(Regression):
    """The last matrix begins as zeros, whose norm says nothing about the size of a step; the first is huge."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.last.weight)
        with torch.no_grad():
            self.first.weight.mul_(1e4)


def test_steps_are_lamb_by_its_algorithm() -> None:
    """You et al. 2020, algorithm 2, in numpy, with the ratio between bounds."""
    task = Awkward()
    config = LAMBConfig(learning_rate=1e-2, betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.1, trust_ratio=(0.2, 3.0))
    optimizer = build_optimizer(task, config, layer_decay=0.5)
    values = {name: parameter.detach().double().numpy().copy() for name, parameter in task.named_parameters()}
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    layer_scale = {"cls_token": 0.25, "first": 0.5, "norm": 1.0, "last": 1.0}
    ratios = set()
    for step in range(1, 6):
        rate = 0.01 * step
        set_learning_rate(optimizer, rate)
        total, count = task(batch_of(range(step * 8, step * 8 + 4)))["loss"]
        (total / count).backward()
        for name, parameter in task.named_parameters():
            gradient = parameter.grad.double().numpy()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient**2
            update = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.98**step)) + 1e-6)
            # Positions and the like are spared in the task's words, vectors always.
            update = update + (0.1 if name in ("first.weight", "last.weight") else 0.0) * values[name]
            length, step_length = np.linalg.norm(values[name]), np.linalg.norm(update)
            ratio = float(np.clip(length / step_length, 0.2, 3.0)) if length > 0 and step_length > 0 else 1.0
            ratios.add(round(ratio, 6))
            values[name] = values[name] - rate * layer_scale[name.split(".")[0]] * ratio * update
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in task.named_parameters():
        np.testing.assert_allclose(parameter.detach().double().numpy(), values[name], atol=2e-5, rtol=2e-5)
    assert {0.2, 1.0, 3.0} < ratios, "both bounds, no ratio, and some in between"


def test_it_is_timm_s_without_bounds() -> None:
    from timm.optim import Lamb

    task, other = Regression(), Regression()
    optimizer = build_optimizer(task, LAMBConfig(learning_rate=0.01, weight_decay=0.1, trust_ratio=(1e-9, 1e9)))
    decayed = [other.first.weight, other.last.weight]
    spared = [parameter for parameter in other.parameters() if all(parameter is not matrix for matrix in decayed)]
    theirs = Lamb(
        [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.999),
        eps=1e-8,
        max_grad_norm=None,
        always_adapt=True,
    )
    for step in range(4):
        for model, stepped in ((task, optimizer), (other, theirs)):
            stepped.zero_grad()
            model(batch_of(range(step * 8, step * 8 + 4)))["loss"][0].backward()
            stepped.step()
    for a, b in zip(task.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_parameter_without_gradient_stays() -> None:
    task = Regression()
    optimizer = build_optimizer(task, LAMBConfig())
    before = task.last.weight.detach().clone()
    task(batch_of(range(4)))["loss"][0].backward()
    task.last.weight.grad = None
    optimizer.step()
    assert torch.equal(task.last.weight, before)
    assert task.last.weight not in optimizer.state


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0)])
def test_bounds_that_cannot_be(bounds: tuple[float, float]) -> None:
    from unveil.config import UnveilError

    with pytest.raises(UnveilError, match="0 < least <= most"):
        LAMBConfig(trust_ratio=bounds)
