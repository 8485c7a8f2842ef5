"""Where metrics go: metrics.jsonl, the console, TensorBoard, Weights & Biases, Trackio."""

import json
import math
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from unveil.config import UnveilError
from unveil.engine.disk import needing_space, write_atomically


@runtime_checkable
class Sink(Protocol):
    """One place for metrics. Only the main process has any."""

    def start(self, step: int, total: int) -> None:
        """A run of `total` steps begins, or goes on after `step` of them: what was written beyond it is void."""
        ...

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics of the step with this number, 1 for the first."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class JsonlSink:
    """One JSON object per line, "step" first. A value that is not finite is null, which every JSON reader knows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def start(self, step: int, total: int) -> None:
        self.cut(step)
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with needing_space(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def cut(self, step: int) -> None:
        """Drop the lines after `step`, and a last one that was half written."""
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8")
        kept = "".join(line for line in text.splitlines(keepends=True) if _step_of(line, default=step + 1) <= step)
        if kept != text:
            with needing_space(self.path):
                write_atomically(self.path, kept)


def _step_of(line: str, default: int) -> int:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else default
    except (ValueError, KeyError, TypeError):
        return default


class TensorBoardSink:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: Any = None

    def start(self, step: int, total: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.path), purge_step=step + 1 if step else None)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        with needing_space(self.path):
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """Weights & Biases. A resumed run goes on in the same page."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self._wandb = _extra("wandb")
        self._run: Any = None

    def start(self, step: int, total: int) -> None:
        try:
            self._run = self._wandb.init(
                project="unveil",
                name=self.path.name,
                id=_kept_id(self.path),
                resume="allow",
                dir=str(self.path),
                config=self.config,
            )
        except self._wandb.errors.Error as error:
            raise UnveilError(
                f"Weights & Biases refuses ({error}); run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        # Its own step only ever grows, so lines repeated after a resume would be dropped.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


class TrackioSink:
    """Trackio, the local-first tracker with the interface of Weights & Biases."""

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self._trackio = _extra("trackio")
        self._run: Any = None

    def start(self, step: int, total: int) -> None:
        # It finds a run again by its name, and folders of other places may have the same.
        name = f"{self.path.name}-{_kept_id(self.path)}"
        self._run = self._trackio.init(project="unveil", name=name, config=self.config, resume="allow")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _kept_id(path: Path) -> str:
    """What a tracker knows this run folder by, the same after a resume."""
    kept = path / "tracker_id.txt"
    if not kept.exists():
        with needing_space(kept):
            write_atomically(kept, secrets.token_hex(4))
    return kept.read_text()


def _extra(name: Literal["wandb", "trackio"]) -> Any:
    """The optional package.

    Raises:
        UnveilError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnveilError(
            f'tracking with {name} needs the package {name}, which is not installed: pip install "unveil[{name}]"'
        ) from error


class ConsoleProgress:
    """A bar with loss, images/s and time left on a terminal; elsewhere a line every few seconds, the last always."""

    def __init__(self, description: str = "training", seconds_between_lines: float = 10.0) -> None:
        self.description = description
        self.seconds_between_lines = seconds_between_lines
        self._bar: Any = None

    def start(self, step: int, total: int) -> None:
        self._first, self._total = step, total
        self._started = time.monotonic()
        self._last_line = -math.inf
        self._unsaid: str | None = None
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._row = self._bar.add_task(self.description, total=total, completed=step, values="")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        values = "  ".join(
            f"{name.replace('_', ' ').replace('images per second', 'images/s')} {metrics[name]:{form}}"
            for name, form in self._shown(metrics)
        )
        if self._bar is not None:
            self._bar.update(self._row, completed=step, values=values)
            return
        now = time.monotonic()
        left = (now - self._started) / max(step - self._first, 1) * (self._total - step)
        self._unsaid = f"{self.description}  step {step}/{self._total}  {values}  {_clock(left)} left"
        if now - self._last_line >= self.seconds_between_lines:
            self._say(now)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif getattr(self, "_unsaid", None) is not None:
            self._say(time.monotonic())

    def _say(self, now: float) -> None:
        print(self._unsaid, file=sys.stderr, flush=True)
        self._last_line = now
        self._unsaid = None

    def _shown(self, metrics: dict[str, float]) -> Iterable[tuple[str, str]]:
        forms = {"loss": ".4f", "lr": ".2e", "images_per_second": ".0f"}
        return [(name, form) for name, form in forms.items() if name in metrics] + [
            (name, ".4f") for name in metrics if name.startswith("validation_")
        ]


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def build_sinks(
    path: Path,
    trackers: Iterable[Literal["tensorboard", "wandb", "trackio"]],
    config: dict[str, Any],
) -> list[Sink]:
    """What a run in the folder `path` writes: always metrics.jsonl, and the trackers asked for.

    Raises:
        UnveilError: a tracker's package is not installed.
    """
    sinks: list[Sink] = [JsonlSink(path / "metrics.jsonl")]
    for tracker in trackers:
        match tracker:
            case "tensorboard":
                sinks.append(TensorBoardSink(path / "tensorboard"))
            case "wandb":
                sinks.append(WandbSink(path, config))
            case "trackio":
                sinks.append(TrackioSink(path, config))
    return sinks
