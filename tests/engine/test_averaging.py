"""The running average of the weights."""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.toy import CPU, Record, Regression, Steps, batch_of, optimization, settings
from unveil.engine import Batch, Precision, evaluate, train
from unveil.engine.averaging import WeightAverage


class Buffered(Regression):
    """With a running mean, and a layer that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.first.weight.requires_grad_(False)

    def forward(self, batch: Batch) -> Any:
        if self.training:
            self.seen += 1
        return super().forward(batch)

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        return [[(name, p) for name, p in group if p.requires_grad] for group in super().layer_groups()]


def states_before(task: nn.Module, states: list[dict[str, Any]]) -> Any:
    """`steps` of the loop that notes the weights before each step."""

    def watched(first: int, last: int) -> Iterator[list[Batch]]:
        for batches in Steps()(first, last):
            states.append(copy.deepcopy(task.state_dict()))
            yield batches

    return watched


def test_the_average_is_the_one_of_timm_and_of_the_formula() -> None:
    from timm.utils import ModelEmaV3

    task = Buffered()
    average, theirs = WeightAverage(task, 0.8), ModelEmaV3(task, decay=0.8, use_warmup=False)
    by_hand = task.last.weight.detach().double().clone()
    for step in range(4):
        with torch.no_grad():
            for number, parameter in enumerate(task.parameters()):
                if parameter.requires_grad:
                    parameter += 0.1 * torch.sin(torch.arange(parameter.numel()).view_as(parameter) + number + step)
        average.update()
        theirs.update(task)
        by_hand = 0.8 * by_hand + 0.2 * task.last.weight.detach().double()
    state = average.state()
    assert list(state) == list(task.state_dict())
    for name, value in theirs.module.state_dict().items():
        assert torch.equal(state[name], value), name
    torch.testing.assert_close(state["last.weight"].double(), by_hand)


def test_training_averages_after_every_step_and_evaluates_both() -> None:
    task, states, record = Buffered(), [], Record()
    batch, precision = batch_of(range(100, 108)), Precision.of("fp32", CPU.device)

    def error() -> dict[str, float]:
        return evaluate(task, [batch], CPU, precision)

    train(
        task,
        states_before(task, states),
        optimization=optimization(6),
        settings=settings(evaluate_every=2),
        parallel=CPU,
        sinks=[record],
        evaluate=error,
        ema_decay=0.7,
    )
    states.append(copy.deepcopy(task.state_dict()))
    averaged = {name: value.double() for name, value in states[0].items()}
    probe = Buffered()
    for step in range(1, 7):
        for name, value in states[step].items():
            averaged[name] = value.double() if name == "seen" else 0.7 * averaged[name] + 0.3 * value.double()
        row = record.rows[step - 1][1]
        assert ("validation_ema_error" in row) == (step % 2 == 0)
        if step % 2 == 0:
            for kind, state in (("validation_error", states[step]), ("validation_ema_error", averaged)):
                probe.load_state_dict({name: value.float() for name, value in state.items()})
                assert row[kind] == pytest.approx(evaluate(probe, [batch], CPU, precision)["error"], rel=1e-5)
            assert row["validation_error"] != row["validation_ema_error"]
    assert torch.equal(task.first.weight, Buffered().first.weight)


def test_training_itself_is_the_same_with_and_without() -> None:
    rows = []
    for decay in (None, 0.9):
        task, record = Regression(), Record()
        train(
            task,
            Steps(),
            optimization=optimization(),
            settings=settings(evaluate_every=1),
            parallel=CPU,
            sinks=[record],
            evaluate=lambda task=task: evaluate(task, [batch_of(range(8))], CPU, Precision.of("fp32", CPU.device)),
            ema_decay=decay,
        )
        rows.append([record.values(name) for name in ("loss", "grad_norm", "validation_error")])
        assert [("validation_ema_error" in row) for _, row in record.rows] == [decay is not None] * 6
    assert rows[0] == rows[1]


def test_weights_come_back_when_evaluation_fails() -> None:
    task = Regression()
    average = WeightAverage(task, 0.5)
    first = task.last.weight.detach().clone()
    with torch.no_grad():
        task.last.weight += torch.pi
    before = task.last.weight.detach().clone()
    with pytest.raises(KeyError), average.in_place():
        assert torch.equal(task.last.weight, first)
        raise KeyError
    assert torch.equal(task.last.weight, before)
    assert torch.equal(average.state()["last.weight"], first)


@pytest.mark.parametrize(("decay", "warned"), [(0.9999, True), (0.5, False)])
def test_a_run_too_short_for_its_average_is_named(caplog: pytest.LogCaptureFixture, decay: float, warned: bool) -> None:
    with caplog.at_level(logging.WARNING):
        train(
            Regression(),
            Steps(),
            optimization=optimization(6),
            settings=settings(),
            parallel=CPU,
            ema_decay=decay,
        )
    assert ("100 % of it will be the weights that the run began with" in caplog.text) == warned
