import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.toy import CPU, Record, Regression, Steps, batch_of, optimization, settings
from unveil.config import UnveilError
from unveil.engine import Batch, Outcome, Parallel, Precision, RunFolder, evaluate, train
from unveil.engine.compilation import compile_task


def trained(
    task: Regression, steps: Any, *, changes: dict[str, Any] | None = None, **given: Any
) -> tuple[Outcome, Record]:
    record = Record()
    given = {"optimization": optimization(), "settings": settings(**(changes or {})), "parallel": CPU} | given
    return train(task, steps, sinks=[record], **given), record


def test_accumulation_changes_nothing() -> None:
    whole, pieces = Regression(), Regression()
    _, one = trained(whole, Steps(micro_batch_size=8))
    # Micro-batches of 3, 3 and 2.
    _, three = trained(pieces, Steps(micro_batch_size=3))
    assert three.values("loss") == pytest.approx(one.values("loss"), abs=1e-5)
    assert three.values("grad_norm") == pytest.approx(one.values("grad_norm"), rel=1e-5)
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_steps_equal_a_plain_loop() -> None:
    """torch's AdamW on the mean loss, with clipping, written out."""
    task, plain = Regression(), Regression()
    limit = 0.5
    _, record = trained(task, Steps(micro_batch_size=4), optimization=optimization(clip_gradient_norm=limit))
    decayed = [plain.first.weight, plain.last.weight]
    others = [parameter for parameter in plain.parameters() if all(parameter is not matrix for matrix in decayed)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05
    )
    rates = [0.0, 1e-2] + [1e-4 + 0.5 * (1e-2 - 1e-4) * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        total, count = plain(batch_of(range(step * 8, step * 8 + 8)))["loss"]
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), limit)
        optimizer.step()
        assert record.rows[step][0] == step + 1
        assert record.values("loss")[step] == pytest.approx(loss.item(), abs=1e-5)
        assert record.values("grad_norm")[step] == pytest.approx(norm.item(), rel=1e-5)
        assert record.values("lr")[step] == pytest.approx(rate)
    assert max(record.values("grad_norm")) > limit
    for a, b in zip(task.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_rows_are_logged_when_due_and_carry_evaluations() -> None:
    calls = []

    def validate() -> dict[str, float]:
        calls.append(1)
        return {"error": 0.5}

    outcome, record = trained(
        Regression(),
        Steps(),
        optimization=optimization(10),
        changes={"log_every": 3, "evaluate_every": 4},
        evaluate=validate,
    )
    assert [step for step, _ in record.rows] == [3, 4, 6, 8, 9, 10]
    assert [step for step, row in record.rows if "validation_error" in row] == [4, 8, 10]
    assert len(calls) == 3
    assert list(record.rows[0][1]) == ["loss", "lr", "grad_norm", "images_per_second", "samples"]
    assert outcome == Outcome(10, record.rows[-1][1], stopped=False)


class Silent(Regression):
    """Nothing counts from the second step on."""

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        loss, count = super().forward(batch)["loss"]
        weight = float(batch["sample_numbers"].min() < 8)
        return {"loss": (loss * weight, count * weight)}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_that_counts_nothing_moves_nothing(precision: str) -> None:
    task, weights = Silent(), []

    def watched(first: int, last: int) -> Iterator[list[Batch]]:
        for batches in Steps()(first, last):
            weights.append(task.last.weight.detach().clone())
            yield batches

    _, record = trained(task, watched, optimization=optimization(4, warmup_steps=0), changes={"precision": precision})
    if precision == "fp32":
        assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[3])
    assert [math.isnan(loss) for loss in record.values("loss")] == [False, True, True, True]


class Poisoned(Regression):
    """From sample 33 on the loss, or else the gradient, is not a number."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        loss, count = super().forward(batch)["loss"]
        if 33 in batch["sample_numbers"]:
            loss.register_hook(lambda gradient: gradient * torch.nan)
            if self.where == "loss":
                loss = loss * torch.nan
        return {"loss": (loss, count)}


@pytest.mark.parametrize(
    ("where", "names"), [("loss", "sample 32, sample 33."), ("gradient", "sample 32, sample 33, .*sample 39.")]
)
def test_what_is_not_finite_stops_before_the_weights_are_touched(tmp_path: Path, where: str, names: str) -> None:
    task = Poisoned(where)
    data = {"order": "counting", "parts": {}}
    with (
        RunFolder.open(tmp_path / "run", config={}, data=data, parallel=CPU) as run,
        pytest.raises(UnveilError, match=rf"the {where} of step 5 .* from {names} The checkpoint of step 3 is kept"),
    ):
        trained(task, Steps(micro_batch_size=2), run=run)
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())
    assert run.checkpoints.latest_whole() == 3


def test_fp16_that_overflows_at_every_scale_is_an_error() -> None:
    class Overflowing(Regression):
        def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
            losses = super().forward(batch)
            losses["loss"][0].register_hook(lambda gradient: gradient * torch.inf)
            return losses

    with pytest.raises(UnveilError, match=r"every loss scale \(step 17\)"):
        trained(Overflowing(), Steps(), optimization=optimization(40), changes={"precision": "fp16"})


def test_lower_precisions_learn_too() -> None:
    final = {}
    for precision in ("fp32", "bf16", "fp16"):
        _, record = trained(Regression(), Steps(), optimization=optimization(60), changes={"precision": precision})
        final[precision] = sum(record.values("loss")[-10:]) / 10
    assert final["bf16"] == pytest.approx(final["fp32"], rel=0.2)
    assert final["fp16"] == pytest.approx(final["fp32"], rel=0.2)


def test_data_that_end_early_are_noticed() -> None:
    with pytest.raises(ValueError, match="after 3 of 6 steps"):
        trained(Regression(), lambda first, last: Steps()(first, 3))


def test_evaluation_adds_sums_and_leaves_the_mode() -> None:
    task = Regression()
    precision = Precision.of("fp32", CPU.device)
    batches = [batch_of(range(20, 25)), batch_of(range(25, 27))]
    expected = task.compute(task.evaluate(batch_of(range(20, 27))))["error"]
    for training in (True, False):
        task.train(training)
        assert evaluate(task, batches, CPU, precision)["error"] == pytest.approx(expected)
        assert task.training == training
    with pytest.raises(UnveilError, match="nothing to evaluate"):
        evaluate(task, [], CPU, precision)


def test_sinks_are_closed_when_training_fails() -> None:
    class Closing(Record):
        closed = False

        def close(self) -> None:
            self.closed = True

    sink = Closing()
    with pytest.raises(ValueError, match="ended"):
        train(
            Regression(),
            lambda first, last: iter(()),
            optimization=optimization(),
            settings=settings(),
            parallel=CPU,
            sinks=[sink],
        )
    assert sink.closed


def test_without_a_compiler_one_sentence_then_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Counting(Regression):
        compiled = 0

        def compile_(self) -> None:
            self.compiled += 1

    task = Counting()
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    compile_task(task, CPU.device)
    assert task.compiled == 0
    assert caplog.text.count("needs a compiler") == 1
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name == "clang++" else None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(Path(__file__).parent))
    compile_task(task, CPU.device)
    assert task.compiled == 0
    assert "Python.h" in caplog.text


def test_several_processes_without_torchrun_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UnveilError, match="torchrun"), Parallel.start("cpu"):
        pass
