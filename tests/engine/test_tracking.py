import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unveil.config import UnveilError
from unveil.engine import ConsoleProgress, JsonlSink, build_sinks
from unveil.engine.tracking import TensorBoardSink


def test_a_line_is_an_object_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.start(0, 10)
    sink.write(1, {"loss": 0.1 + 0.2, "grad_norm": math.inf})
    # On the disk before the sink is closed.
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.30000000000000004, "grad_norm": null}\n'
    sink.close()


def test_lines_after_the_step_and_half_a_line_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    JsonlSink(path).cut(9)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    sink = JsonlSink(path)
    sink.start(3, 10)
    sink.write(4, {})
    sink.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_forgets_what_a_resumed_run_repeats(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for resumed, values in ((0, {1: 1.0, 2: 2.0, 3: 3.0}), (1, {2: 20.0})):
        sink = TensorBoardSink(tmp_path)
        sink.start(resumed, 10)
        for step, value in values.items():
            sink.write(step, {"loss": value})
        sink.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


def test_a_tracker_that_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("wandb", "trackio"):
        with pytest.raises(UnveilError, match=rf'pip install "unveil\[{name}\]"'):
            build_sinks(tmp_path, (name,), {})


class FakeTracker:
    """Takes the calls of wandb and of trackio."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[Any] = []
        self.errors = SimpleNamespace(Error=KeyError)

    def init(self, **arguments: Any) -> "FakeTracker":
        self.begun.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.logged.append("finished")


@pytest.mark.parametrize(("name", "key"), [("wandb", "id"), ("trackio", "name")])
def test_a_resumed_run_goes_on_in_the_same_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    tracker = FakeTracker()
    monkeypatch.setitem(sys.modules, name, tracker)
    for resumed in (0, 1):
        sink = build_sinks(tmp_path, (name,), {"seed": 0})[1]
        sink.start(resumed, 2)
        sink.write(resumed + 1, {"loss": 0.5})
        sink.close()
    first, second = tracker.begun
    assert first == second
    assert first["config"] == {"seed": 0}
    assert first["resume"] == "allow"
    assert len(first[key]) >= 8
    step, metrics = tracker.logged[2]
    assert (step or metrics["step"], metrics["loss"]) == (2, 0.5)
    assert tracker.logged[1] == tracker.logged[3] == "finished"


def test_without_a_terminal_lines_are_few_and_the_last_is_there(capsys: pytest.CaptureFixture) -> None:
    progress = ConsoleProgress("pre-training", seconds_between_lines=3600.0)
    progress.start(0, 100)
    for step in range(1, 101):
        progress.write(step, {"loss": 1 / step, "lr": 1e-3, "images_per_second": 12.3})
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("pre-training  step 1/100  loss 1.0000  lr 1.00e-03  images/s 12  ")
    assert lines[1].startswith("pre-training  step 100/100  loss 0.0100")
    assert lines[1].endswith("0:00:00 left")


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    progress = ConsoleProgress("pre-training")
    progress.start(5, 10)
    progress.write(10, {"loss": 0.25})
    progress.close()
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "loss 0.2500" in shown
