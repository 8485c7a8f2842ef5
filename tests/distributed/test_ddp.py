"""Two gloo processes do what one does."""

import os
import signal
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.processes import together
from tests.engine.toy import CPU, Record, Regression, Steps, batch_of, optimization, settings
from unveil.config import UnveilError
from unveil.engine import Batch, Parallel, Precision, RunFolder, evaluate, train

DATA = {"order": "counting", "parts": {}}


def trained(
    parallel: Parallel, micro_batch_size: int, task: Regression | None = None, **changes: Any
) -> dict[str, Any]:
    record, task = Record(), task or Regression()
    outcome = train(
        task,
        Steps(micro_batch_size=micro_batch_size, parallel=parallel),
        optimization=optimization(),
        settings=settings(**changes),
        parallel=parallel,
        sinks=[record],
    )
    precision = Precision.of("fp32", parallel.device)
    batches = [
        batch_of(range(start, start + 4)) for start in range(100 + 4 * parallel.rank, 116, 4 * parallel.world_size)
    ]
    return {
        "rows": record.rows,
        "step": outcome.step,
        "weights": [parameter.detach().clone() for parameter in task.parameters()],
        "error": evaluate(task, batches, parallel, precision)["error"],
    }


def trained_here(*arguments: Any) -> dict[str, Any]:
    with Parallel.start("cpu") as parallel:
        return trained(parallel, *arguments)


def test_two_processes_and_accumulation_equal_one_process() -> None:
    """Counts differ from process to process, and in step 2 one of them counts nothing."""
    alone = trained(CPU, 8)
    first, second = together(2, trained_here, 2)
    for name in ("loss", "grad_norm", "samples"):
        expected = [metrics[name] for _, metrics in alone["rows"]]
        scale = {"samples": 4}.get(name, 1)
        found = [metrics[name] * scale for _, metrics in first["rows"]]
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5), name
    assert second["rows"] == []
    for one, a, b in zip(alone["weights"], first["weights"], second["weights"], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, one, atol=1e-5, rtol=1e-5)
    assert first["error"] == second["error"] == pytest.approx(alone["error"], abs=1e-5)


class Overflowing(Regression):
    """The gradient of sample 13, which lies with the second process, overflows; the others are far from it."""

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        loss, count = super().forward(batch)["loss"]
        loss = loss / 100
        if self.training and 13 in batch["sample_numbers"]:
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return {"loss": (loss, count)}


def trained_with_overflow() -> list[Any]:
    with Parallel.start("cpu") as parallel:
        task, seen = Overflowing(), []

        def watched(first: int, last: int) -> Any:
            for batches in Steps(parallel=parallel)(first, last):
                seen.append([parameter.detach().clone() for parameter in task.parameters()])
                yield batches

        record = Record()
        train(
            task,
            watched,
            optimization=optimization(4),
            settings=settings(precision="fp16"),
            parallel=parallel,
            sinks=[record],
        )
        return [seen, record.rows]


def test_overflow_in_one_process_is_a_skipped_step_in_both() -> None:
    (first, rows), (second, _) = together(2, trained_with_overflow)
    for weights, others in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    moved = [any(not torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(first)]
    # The first step has learning rate 0, the second is skipped.
    assert moved == [False, False, True]
    assert [metrics["loss_scale"] for _, metrics in rows] == [65536, 65536, 32768, 32768]
    assert [metrics["skipped_steps"] for _, metrics in rows] == [0, 1, 1, 1]


class Poisoned(Regression):
    """The loss of sample 21 is not a number."""

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        loss, count = super().forward(batch)["loss"]
        return {"loss": (loss * (torch.nan if 21 in batch["sample_numbers"] else 1.0), count)}


def trained_on_poison() -> None:
    with Parallel.start("cpu") as parallel:
        trained(parallel, 2, Poisoned())


def test_a_loss_that_is_not_finite_names_samples_of_any_process() -> None:
    for answer in together(2, trained_on_poison):
        assert isinstance(answer, UnveilError)
        assert "step 3" in str(answer)
        assert "sample 20, sample 21." in str(answer)


def trained_in_folder(path: Path, steps: int, micro_batch_size: int, stop_at: int | None = None) -> Any:
    """`stop_at`: the last process gets a SIGTERM before this step."""
    with Parallel.start("cpu") as parallel:

        def watched(first: int, last: int) -> Any:
            for step, batches in enumerate(
                Steps(micro_batch_size=micro_batch_size, parallel=parallel)(first, last), first
            ):
                if step == stop_at and parallel.rank == parallel.world_size - 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batches

        record = Record()
        with RunFolder.open(path, config={"recipe": "toy"}, data=DATA, parallel=parallel) as run:
            outcome = train(
                Regression(),
                watched,
                optimization=optimization(steps),
                settings=settings(),
                parallel=parallel,
                run=run,
                sinks=[record],
            )
        return outcome.step, outcome.stopped, record.rows


def test_sigterm_at_one_process_stops_both_and_one_process_goes_on(tmp_path: Path) -> None:
    unbroken = trained(CPU, 8)["rows"]
    first, second = together(2, trained_in_folder, tmp_path / "run", 6, 4, 3)
    assert first[:2] == second[:2] == (4, True)
    step, stopped, rows = trained_in_folder(tmp_path / "run", 6, 2)
    assert (step, stopped) == (6, False)
    for (at, expected), (number, found) in zip(unbroken, first[2] + rows, strict=True):
        assert at == number
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_both_processes_get_the_error_of_the_main_one(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for answer in together(2, trained_in_folder, tmp_path, 6, 4):
        assert isinstance(answer, UnveilError)
        assert "thesis.tex" in str(answer)


def failing_process() -> None:
    with Parallel.start("cpu") as parallel:
        if parallel.rank == 1:
            raise UnveilError("this one fails")
        trained(parallel, 4)


def test_a_process_that_fails_leaves_nobody_hanging() -> None:
    left, failed = together(2, failing_process)
    assert isinstance(left, UnveilError) and "process 0 of 2 lost process 1" in str(left)
    assert str(failed) == "this one fails"


def hanging_process() -> None:
    with Parallel.start("cpu") as parallel:

        def slowly(first: int, last: int) -> Any:
            for step, batches in enumerate(Steps(parallel=parallel)(first, last), first):
                if step == 2 and parallel.rank == 1:
                    time.sleep(12)
                yield batches

        train(
            Regression(),
            slowly,
            optimization=optimization(),
            settings=settings(timeout_minutes=0.1),
            parallel=parallel,
        )


def test_a_process_that_hangs_is_waited_for_so_long_only() -> None:
    waited, hung = together(2, hanging_process)
    assert isinstance(waited, UnveilError)
    assert "process 0 of 2 lost process 1 in step 3 of 6" in str(waited)
    assert isinstance(hung, UnveilError), "and when it wakes up, it finds itself alone"


def hanging_writer(out: Path, *, altogether: bool) -> tuple[str, bool]:
    """The second process hangs while it writes the checkpoint of step 2: its writing thread, or all of it. What the
    first one says, and whether it still writes then."""
    hangs = threading.Event()

    def forever(*_: Any, **__: Any) -> None:
        hangs.set()
        time.sleep(20)

    def steps(first: int, last: int) -> Any:
        for batches in Steps(parallel=parallel)(first, last):
            if hangs.is_set() and altogether:
                time.sleep(20)
            yield batches
            time.sleep(0.3)

    with pytest.MonkeyPatch.context() as patch, Parallel.start("cpu") as parallel:
        if parallel.rank == 1:
            patch.setattr("unveil.engine.pieces.save_file", forever)
        patch.setattr("unveil.engine.parallel.WRITING", 4 if altogether else 1)
        with RunFolder.open(out, config={}, data={"order": "counting", "parts": {}}, parallel=parallel) as run:
            try:
                train(
                    Regression(),
                    steps,
                    optimization=optimization(40),
                    settings=settings(timeout_minutes=0.1, checkpoint_every=2, parallel="zero1"),
                    parallel=parallel,
                    run=run,
                )
            except UnveilError as error:
                return str(error), any(thread.name == "checkpoint" for thread in threading.enumerate())
    return "all is well", False


@pytest.mark.slow
@pytest.mark.parametrize("altogether", [True, False])
def test_a_process_that_hangs_while_it_writes_is_not_waited_for_longer(altogether: bool, tmp_path: Path) -> None:
    said, still_writes = together(2, partial(hanging_writer, altogether=altogether), tmp_path / "run")[0]
    assert "process 0 of 2 lost process 1" in said and "of 40" in said
    # Lost in a step, nobody waits for the writing; or it was the writing that was lost.
    assert still_writes == altogether
    assert not list((tmp_path / "run/checkpoints").glob("step_*"))
