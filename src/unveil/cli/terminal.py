"""What a command shows on the terminal besides its result: the package's log, and how far it has come."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _LogLines(logging.Handler):
    """Log records on stderr, which is looked up at each line, because a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{mark}{record.getMessage()}", file=sys.stderr, flush=True)


@contextmanager
def log_on_terminal(rank: int) -> Iterator[None]:
    """Inside the block the package's log is shown.

    Of several processes the first shows everything, the others only the samples that they could not read: all else is
    the same for every process.
    """
    logger, lines = logging.getLogger("unveil"), _LogLines()
    # For the logs of runs: the command itself prints that.
    lines.addFilter(lambda record: record.name != "unveil.log_of_run")
    if rank:
        lines.addFilter(logging.Filter("unveil.data.loader"))
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)


@contextmanager
def counting(what: str, *, shown: bool = True) -> Iterator[Callable[[int], None] | None]:
    """A line that counts what has been found so far; None where there is no terminal."""
    if not (shown and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status(f"looking for {what}") as status:
        yield lambda count: status.update(f"{count:,} {what} found")


@contextmanager
def bar(description: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with the time left, moved by calling it with done and total; None where there is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        row = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(row, completed=done, total=total)


def tenths(what: str) -> Callable[[int, int], None]:
    """To be called with done and total: a line of the log for each further tenth."""
    said = 0

    def say(done: int, total: int) -> None:
        nonlocal said
        if done * 10 // total > said:
            said = done * 10 // total
            logging.getLogger(__name__).info("%s: %s of %s", what, f"{done:,}", f"{total:,}")

    return say
