"""What the commands that train have in common: open, describe, train, say how it ended."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from unveil.cli.options import RunOptions, no_memory
from unveil.config import UnveilError
from unveil.config.resolve import AnyRun, Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unveil.engine import Outcome

Count = Callable[[int], None]
"""Told how many images have been found so far."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A task's own part: what a command has made of its options and the data."""

    config: AnyRun
    """Resolved."""
    out: Path
    """Folder of the run."""
    description: str
    """What is about to happen."""
    doing: str
    """What its progress is called, such as "fine-tuning"."""
    train: "Callable[..., tuple[Any, Outcome]]"
    """Called with `parallel` and `watchers`."""
    summary: Callable[[dict[str, float]], str]
    """The last metrics in words."""


@runtime_checkable
class Ended(Protocol):
    """How work that a signal can end has ended."""

    @property
    def stopped(self) -> bool: ...

    @property
    def by_keyboard(self) -> bool: ...


def run_training(options: RunOptions, prepare: Callable[[Machine, Count | None], Training]) -> int:
    """Run a command that trains; its exit status.

    Args:
        prepare: opens the data and settles the configuration.

    Raises:
        UnveilError: whatever a person can mend.
    """
    from unveil.build import find_machine
    from unveil.cli.terminal import counting, log_on_terminal
    from unveil.engine import ConsoleProgress, Parallel

    options.check()
    with Parallel.start() as parallel, log_on_terminal(parallel.rank):
        with counting("images", shown=parallel.is_main) as count:
            training = prepare(find_machine(parallel), count)
        if parallel.is_main:
            print(training.description, flush=True)
        if options.dry_run:
            return 0
        with naming_what_to_make_smaller(training.config):
            _, outcome = training.train(parallel=parallel, watchers=(ConsoleProgress(training.doing),))
        if parallel.is_main and outcome.stopped:
            print(f"stopped and saved at step {outcome.step}; the same command goes on from there")
        elif parallel.is_main:
            print(f"done: {training.out}/checkpoints/step_{outcome.step:08d}, {training.summary(outcome.metrics)}")
    return status_of(outcome)


def status_of(ended: Ended) -> int:
    """Exit status: 128 and the number of the signal that ended it, else 0."""
    if not ended.stopped:
        return 0
    return 130 if ended.by_keyboard else 143


@contextmanager
def naming_what_to_make_smaller(config: AnyRun) -> "Iterator[None]":
    """A full GPU is a mistake that a person can mend."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UnveilError(no_memory(config)) from error
