import copy

import pytest
import torch
from torch import nn

from tests.engine.toy import Regression, batch_of
from unveil.config import AdamWConfig
from unveil.engine import build_optimizer
from unveil.engine.optimizer import load_state_by_name, set_learning_rate, state_by_name

CONFIG = AdamWConfig(learning_rate=1e-2, betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.1)


def test_decayed_are_matrices_that_the_task_does_not_spare() -> None:
    groups = build_optimizer(Regression(), CONFIG).param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decay == {
        "cls_token": 0.0,
        "first.weight": 0.1,
        "first.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "last.weight": 0.1,
        "last.bias": 0.0,
    }


def test_layer_decay_slows_the_input_side() -> None:
    optimizer = build_optimizer(Regression(), CONFIG, layer_decay=0.5)
    set_learning_rate(optimizer, 0.8)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["cls_token"] == pytest.approx(0.2)
    assert rates["first.weight"] == rates["first.bias"] == pytest.approx(0.4)
    assert rates["norm.weight"] == rates["last.weight"] == pytest.approx(0.8)


def test_steps_are_adamw_by_its_formula() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, in float64 by hand."""
    task = Regression()
    optimizer = build_optimizer(task, CONFIG)
    values = {name: parameter.detach().double().clone() for name, parameter in task.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in values.items()}
    second = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in range(1, 4):
        rate = 0.01 * step
        set_learning_rate(optimizer, rate)
        task(batch_of(range(step * 8, step * 8 + 4)))["loss"][0].backward()
        for name, parameter in task.named_parameters():
            gradient = parameter.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.98 * second[name] + 0.02 * gradient**2
            decay = 0.1 if name in ("first.weight", "last.weight") else 0.0
            corrected = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.98**step)).sqrt() + 1e-6)
            values[name] = values[name] * (1 - rate * decay) - rate * corrected
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in task.named_parameters():
        torch.testing.assert_close(parameter.double(), values[name], atol=1e-5, rtol=1e-5)


def test_state_is_found_by_name_in_another_grouping() -> None:
    task = Regression()
    optimizer = build_optimizer(task, CONFIG)
    task(batch_of(range(4)))["loss"][0].backward()
    optimizer.step()
    other = copy.deepcopy(task)
    regrouped = build_optimizer(other, CONFIG, layer_decay=0.5)
    load_state_by_name(regrouped, state_by_name(optimizer))
    assert len(regrouped.param_groups) != len(optimizer.param_groups)
    for (name, mine), theirs in zip(other.named_parameters(), task.parameters(), strict=True):
        assert torch.equal(regrouped.state[mine]["exp_avg_sq"], optimizer.state[theirs]["exp_avg_sq"]), name
        assert regrouped.state[mine]["step"] == 1
    assert {group["lr_scale"] for group in regrouped.param_groups} == {0.25, 0.5, 1.0}
    with pytest.raises(ValueError, match="other parameters"):
        load_state_by_name(regrouped, {"stranger": {}})


def test_a_parameter_in_no_group_or_in_two_is_refused() -> None:
    class Forgetful(Regression):
        def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
            return super().layer_groups()[:-1]

    class Doubled(Regression):
        def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
            return super().layer_groups() + super().layer_groups()[:1]

    with pytest.raises(ValueError, match=r"last\.bias"):
        build_optimizer(Forgetful(), CONFIG)
    with pytest.raises(ValueError, match="cls_token"):
        build_optimizer(Doubled(), CONFIG)
