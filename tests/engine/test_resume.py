"""Killed at any moment and started again: the same metrics to the last bit."""

import errno
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.processes import start
from tests.engine.toy import CPU, Regression, Steps, batch_of, optimization, settings
from unveil.config import AdamWConfig, LARSConfig, UnveilError
from unveil.engine import Batch, JsonlSink, Outcome, Precision, RunFolder, evaluate, train

STEPS = 60


class PowerCutError(Exception):
    pass


def run_in(
    path: Path,
    seconds_per_step: float = 0.0,
    precision: str = "bf16",
    fails_at: int | None = None,
    ema_decay: float | None = None,
    optimizer: AdamWConfig | LARSConfig = AdamWConfig(learning_rate=1e-2),
) -> Outcome:
    """What a command does, with slow steps, so that there is time to kill it."""
    task = Regression()

    def slowly(first: int, last: int) -> Iterator[list[Batch]]:
        for step, batches in enumerate(Steps(micro_batch_size=4)(first, last), first):
            time.sleep(seconds_per_step)
            if step == fails_at:
                raise PowerCutError
            yield batches

    def validate() -> dict[str, float]:
        return evaluate(task, [batch_of(range(1000, 1008))], CPU, Precision.of("fp32", CPU.device))

    with RunFolder.open(path, config={}, data={"order": "counting", "parts": {}}, parallel=CPU) as run:
        return train(
            task,
            slowly,
            optimization=optimization(STEPS, optimizer=optimizer),
            settings=settings(precision=precision, checkpoint_every=7, evaluate_every=5, log_every=2),
            parallel=CPU,
            run=run,
            sinks=[JsonlSink(path / "metrics.jsonl")],
            evaluate=validate,
            ema_decay=ema_decay,
        )


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["images_per_second"]
    return rows


def lines_of(path: Path) -> int:
    metrics = path / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for_lines(path: Path, count: int, process: Any) -> None:
    deadline = time.monotonic() + 60
    while lines_of(path) < count and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_killed_three_times_gives_the_metrics_of_the_unbroken_run(tmp_path: Path) -> None:
    run_in(tmp_path / "unbroken")
    broken = tmp_path / "broken"
    moments = random.Random(0)
    kills = 0
    for lines in (3, 11, 20):
        process = start(run_in, broken, 0.04)
        wait_for_lines(broken, lines, process)
        time.sleep(moments.random() * 0.05)
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills == 3
    outcome = run_in(broken)
    assert outcome.step == STEPS
    assert not outcome.stopped
    assert rows_of(broken) == rows_of(tmp_path / "unbroken")
    weights = [RunFolder(tmp_path / name).checkpoints.load_latest() for name in ("broken", "unbroken")]
    for name, value in weights[0].weights.items():
        assert torch.equal(value, weights[1].weights[name])


def test_the_loss_scale_of_fp16_is_resumed_too(tmp_path: Path) -> None:
    run_in(tmp_path / "unbroken", precision="fp16")
    with pytest.raises(PowerCutError):
        run_in(tmp_path / "broken", precision="fp16", fails_at=32)
    run_in(tmp_path / "broken", precision="fp16")
    rows = rows_of(tmp_path / "unbroken")
    assert rows_of(tmp_path / "broken") == rows
    # The toy's first gradients overflow, so that scale and count are not those of a fresh start.
    assert rows[-1]["loss_scale"] < 65536
    assert rows[-1]["skipped_steps"] > 0


def same_checkpoints(*paths: Path) -> bool:
    a, b = (RunFolder(path).checkpoints.load_latest() for path in paths)
    assert a is not None and b is not None
    if not (a.step == b.step and all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)):
        return False
    if a.averaged is None or b.averaged is None:
        return a.averaged is b.averaged
    return all(torch.equal(a.averaged[name], b.averaged[name]) for name in a.weights)


@pytest.mark.parametrize("fails_at", [1, 32, 59])
def test_the_averaged_weights_are_resumed_too(tmp_path: Path, fails_at: int) -> None:
    whole, broken = tmp_path / "unbroken", tmp_path / "broken"
    run_in(whole, ema_decay=0.9)
    with pytest.raises(PowerCutError):
        run_in(broken, ema_decay=0.9, fails_at=fails_at)
    run_in(broken, ema_decay=0.9)
    assert rows_of(broken) == rows_of(whole)
    assert "validation_ema_error" in rows_of(whole)[-1]
    assert same_checkpoints(broken, whole)


def test_an_average_cannot_begin_in_the_middle(tmp_path: Path) -> None:
    with pytest.raises(PowerCutError):
        run_in(tmp_path, fails_at=32)
    with pytest.raises(UnveilError, match=r"step_00000028 holds no averaged weights.*without ema_decay, or give --out"):
        run_in(tmp_path, ema_decay=0.9)
    assert run_in(tmp_path).step == STEPS


def test_lars_is_resumed_exactly(tmp_path: Path) -> None:
    config = LARSConfig(learning_rate=2.0, weight_decay=0.1, trust_coefficient=0.02)
    run_in(tmp_path / "unbroken", optimizer=config)
    with pytest.raises(PowerCutError):
        run_in(tmp_path / "broken", optimizer=config, fails_at=32)
    run_in(tmp_path / "broken", optimizer=config)
    rows = rows_of(tmp_path / "unbroken")
    assert rows_of(tmp_path / "broken") == rows
    assert same_checkpoints(tmp_path / "broken", tmp_path / "unbroken")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path, number: int) -> None:
    run_in(tmp_path / "unbroken")
    path = tmp_path / "run"
    process = start(run_in, path, 0.01)
    wait_for_lines(path, 4, process)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 0
    saved = RunFolder(path).checkpoints.latest_whole()
    assert saved is not None
    assert 6 <= saved < STEPS
    assert run_in(path).step == STEPS
    assert rows_of(path) == rows_of(tmp_path / "unbroken")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run"
    process = start(run_in, path, 1.0)
    wait_for_lines(path, 1, process)
    os.kill(process.pid, signal.SIGINT)
    # Two that arrive together are one.
    time.sleep(0.4)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 1
    assert RunFolder(path).checkpoints.steps() == []


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = run_in(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    again = run_in(tmp_path)
    assert again == first
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_torn_checkpoint_costs_only_its_steps(tmp_path: Path) -> None:
    run_in(tmp_path / "unbroken")
    path = tmp_path / "torn"
    with pytest.raises(PowerCutError):
        run_in(path, fails_at=30)
    newest = RunFolder(path).checkpoints
    with (newest.folder(newest.steps()[-1]) / "optimizer_00000.safetensors").open("rb+") as file:
        file.truncate(100)
    run_in(path)
    assert rows_of(path) == rows_of(tmp_path / "unbroken")
    assert "is not whole" in (path / "log.txt").read_text()


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written beside training, which learns of it when it has the next one to write."""
    replace = os.replace

    def refusing(source: Path, target: Path) -> None:
        if "step_00000014" in str(target):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(UnveilError, match="Read-only.*The checkpoint of step 7 is intact"):
        run_in(tmp_path)
    assert rows_of(tmp_path)[-1]["step"] < 22
    assert RunFolder(tmp_path).checkpoints.steps() == [7]
    monkeypatch.undo()
    assert run_in(tmp_path).step == STEPS
