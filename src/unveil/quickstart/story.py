"""What the chapters share: the images, what has been found so far, and how far the story is."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from unveil.config.quickstart import QuickstartConfig
from unveil.data.sources.base import Source
from unveil.engine import Outcome
from unveil.pretext.masked_modelling import MaskedModelling

Progress = Callable[[str, float], None]
"""Called with the chapter and the share of the whole story that is done, 0 to 1."""

BATCH = 64
"""Images at a time without gradients: on a processor 1.4 times as fast as 256, whose maps do not fit the caches."""


def end_where_stopped(outcome: Outcome) -> None:
    """After each training: of one that a signal ended nothing may be measured.

    Raises:
        KeyboardInterrupt: that was Ctrl-C.
        SystemExit: it was SIGTERM.
    """
    if outcome.stopped:
        raise KeyboardInterrupt if outcome.by_keyboard else SystemExit(143)


@dataclass(frozen=True)
class Images:
    """Labelled images of one side, decoded once: at this size they are small, and every chapter reads them."""

    pixels: UInt8[Tensor, "n 3 h w"]
    labels: Int64[Tensor, "n"]
    places: Int64[Tensor, "n"]
    """In their source; those that could not be read are missing."""
    captions: tuple[tuple[str, ...], ...]
    """Of each; none where the source knows none."""


@dataclass(frozen=True)
class Search:
    """What a query in words found among the test images."""

    query: str
    found: tuple[tuple[int, float], ...]
    """Place and cosine, the nearest first."""
    right: int
    """Those whose own caption is the query."""


@dataclass
class Story:
    """What the chapters have found so far."""

    config: QuickstartConfig
    classes: tuple[str, ...]
    source: Source
    """Training images; pre-training never looks at their labels."""
    train: Images
    test: Images
    task: MaskedModelling
    losses: list[tuple[int, float]]
    features: dict[str, tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]]
    """{method: (of the training images, of the test images)}."""
    report: dict[str, Any]
    searches: list[Search] = field(default_factory=list)
    """Empty without the chapter of captions."""


class StepReporter:
    """A sink that tells how far the chapter is."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self.total = 1
        self.report = report

    def start(self, step: int, total: int) -> None:
        self.total = total

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.report(step / self.total)

    def close(self) -> None:
        pass


class Clock:
    """Turns progress inside a chapter into progress of the whole. Shares as measured on two cores with bf16.

    Args:
        captions: the optional last chapter is told, too.
    """

    SHARES: ClassVar[dict[str, float]] = {
        "reading images": 0.01,
        "pre-training": 0.46,
        "features": 0.06,
        "linear probe and kNN": 0.14,
        "fine-tuning": 0.33,
    }
    CAPTIONS: ClassVar[dict[str, float]] = {"images and captions": 0.31}
    """Beside these."""

    def __init__(self, progress: Progress, *, captions: bool = False) -> None:
        shares = self.SHARES | (self.CAPTIONS if captions else {})
        self.shares = {name: share / sum(shares.values()) for name, share in shares.items()}
        self.progress = progress
        self.before = 0.0
        self.seconds: dict[str, float] = {}
        """That each chapter took."""

    def chapter(self, name: str) -> "Chapter":
        return Chapter(self, name)


class Chapter:
    """`with` it; calling what it gives with the share of the chapter that is done reports the share of the whole."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name

    def __enter__(self) -> Callable[[float], None]:
        share = self.clock.shares[self.name]
        self.began = time.monotonic()
        self.clock.progress(self.name, self.clock.before)
        return lambda done: self.clock.progress(self.name, self.clock.before + share * min(done, 1.0))

    def __exit__(self, *_: object) -> None:
        self.clock.before += self.clock.shares[self.name]
        self.clock.seconds[self.name] = time.monotonic() - self.began


def logged_losses(metrics: Path) -> list[tuple[int, float]]:
    """Step and loss of every line of a run's metrics.jsonl, those before a resume included."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def table(scores: dict[str, dict[str, list[float]]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of {labels: {method: accuracies}}: percent, mean and, over several draws, standard deviation."""
    names = {
        "pretrained": "pre-trained",
        "scratch": "untrained / scratch",
        "teacher": "teacher",
        "raw_pixels": "raw pixels",
    }
    methods = [name for name in names if any(name in row for row in scores.values())]
    header = ["", *(f"{int(count):,} labels" for count in scores)]
    return header, [[names[name], *(percent(scores[count][name]) for count in scores)] for name in methods]


def percent(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    mean = f"{100 * statistics.mean(values):.1f} %"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"
