import copy

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.toy import Regression, batch_of
from unveil.config import AdamWConfig, LAMBConfig, LARSConfig, TowerOptimization
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


class Towers(Regression):
    """The first layer and what comes after it, each optimised in a way of its own; the token as the rest."""

    def towers(self) -> list[tuple[TowerOptimization, list[list[tuple[str, nn.Parameter]]]]]:
        token, first, last = self.layer_groups()
        norm, head = (last[:2], last[2:])
        below = TowerOptimization(learning_rate=2e-3)
        above = TowerOptimization(learning_rate=4e-2, weight_decay=0.3, layer_decay=0.1)
        return [(below, [first]), (above, [[], norm, head]), (TowerOptimization(), [token])]


@pytest.mark.parametrize("config", [CONFIG, LAMBConfig(learning_rate=1e-2, weight_decay=0.1)])
def test_towers_have_rates_and_decays_of_their_own(config: AdamWConfig | LAMBConfig) -> None:
    optimizer = build_optimizer(Towers(), config, layer_decay=0.5)
    # Half way up to the peak of 1e-2.
    set_learning_rate(optimizer, 5e-3)
    found = {
        name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["param_names"]
    }
    assert {name: (pytest.approx(rate), decay) for name, (rate, decay) in found.items()} == {
        "cls_token": (5e-3, 0.0),
        "first.weight": (1e-3, 0.1),
        "first.bias": (1e-3, 0.0),
        "norm.weight": (2e-3, 0.0),
        "norm.bias": (2e-3, 0.0),
        "last.weight": (2e-2, 0.3),
        "last.bias": (2e-2, 0.0),
    }


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


class Awkward(Regression):
    """The last matrix begins as zeros, whose norm says nothing about the size of a step."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.last.weight)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_are_lars_by_the_rule_of_the_released_code(weight_decay: float) -> None:
    """In numpy: matrices are decayed and rescaled, vectors are not; where a norm is 0 the factor is 1."""
    task = Awkward()
    config = LARSConfig(learning_rate=1.0, momentum=0.9, weight_decay=weight_decay, trust_coefficient=0.01)
    optimizer = build_optimizer(task, config, layer_decay=0.5)
    values = {name: parameter.detach().double().numpy().copy() for name, parameter in task.named_parameters()}
    momenta = {name: np.zeros_like(value) for name, value in values.items()}
    layer_scale = {"cls_token": 0.25, "first": 0.5, "norm": 1.0, "last": 1.0}
    ratios = []
    for step in range(1, 5):
        set_learning_rate(optimizer, 0.5 * step)
        total, count = task(batch_of(range(step * 8, step * 8 + 4)))["loss"]
        (total / count).backward()
        for name, parameter in task.named_parameters():
            update = parameter.grad.double().numpy()
            if name == "first.weight":
                # What the network learns does not matter here: one matrix without a gradient.
                parameter.grad.zero_()
                update = np.zeros_like(update)
            if values[name].ndim > 1:
                update = update + weight_decay * values[name]
                length, step_length = np.linalg.norm(values[name]), np.linalg.norm(update)
                ratio = 0.01 * length / step_length if length > 0 and step_length > 0 else 1.0
                ratios.append(ratio)
                update = ratio * update
            momenta[name] = 0.9 * momenta[name] + update
            values[name] = values[name] - 0.5 * step * layer_scale[name.split(".")[0]] * momenta[name]
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in task.named_parameters():
        np.testing.assert_allclose(parameter.detach().double().numpy(), values[name], atol=2e-5, rtol=2e-5)
    # The token and the last matrix begin as zeros; the first matrix has no update but decay.
    assert ratios.count(1.0) == (3 + 4 if weight_decay == 0.0 else 3)
    assert min(ratios) < 0.1


def test_lars_is_timm_s_where_nothing_is_decayed() -> None:
    from timm.optim import Lars

    task, other = Regression(), Regression()
    optimizer = build_optimizer(task, LARSConfig(learning_rate=0.7, momentum=0.9, weight_decay=0.0))
    matrices = [parameter for parameter in other.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in other.parameters() if parameter.ndim == 1]
    theirs = Lars(
        [{"params": matrices, "always_adapt": True}, {"params": vectors}],
        lr=0.7,
        momentum=0.9,
        trust_coeff=0.001,
        eps=0.0,
    )
    for step in range(3):
        for model, stepped in ((task, optimizer), (other, theirs)):
            stepped.zero_grad()
            model(batch_of(range(step * 8, step * 8 + 4)))["loss"][0].backward()
            stepped.step()
    for a, b in zip(task.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_lars_decays_every_matrix_whatever_its_name() -> None:
    """A learned position is spared by AdamW's names, not by LARS's rule."""
    groups = build_optimizer(Regression(), LARSConfig(weight_decay=0.1)).param_groups
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert {name for name, value in decay.items() if value == 0.1} == {"cls_token", "first.weight", "last.weight"}


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
