"""What all trainings have in common: the run's folder, the reports that go into its log, the sinks, the evaluation."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from unveil.config.resolve import MAY_CHANGE_ON_RESUME, AnyRun
from unveil.config.serialize import defaults, to_json
from unveil.data.loader import EvaluationLoader
from unveil.data.order import ORDER_NAME
from unveil.data.reading import Collate, View
from unveil.data.sources.base import Source as ImageSource
from unveil.engine import (
    Batch,
    Outcome,
    Parallel,
    Precision,
    RunFolder,
    Sink,
    Task,
    build_sinks,
    evaluate,
    train,
)
from unveil.engine.evaluation import Evaluated

logger = logging.getLogger(__name__)
log_of_run = logging.getLogger("unveil.log_of_run")
"""For what a command prints itself, and which shall be in the run's log, too."""


def begins_anew(out: Path | None) -> bool:
    """Whether there is no checkpoint to go on from, so that weights to start from are to be read."""
    return out is None or not RunFolder(out).checkpoints.steps()


def train_run(
    config: AnyRun,
    task: Task,
    steps: Callable[[int, int], Iterator[list[Batch]]],
    *,
    parts: Mapping[str, Any],
    out: Path | None,
    parallel: Parallel,
    watchers: tuple[Sink, ...],
    evaluation: Callable[[], dict[str, float]] | None,
    reports: Iterable[object] = (),
    at_start: Callable[[], None] = lambda: None,
    ema_decay: float | None = None,
    after_step: Callable[[bool], Mapping[str, Tensor]] | None = None,
) -> Outcome:
    """Train in the run's folder, or go on there. What turns out to be impossible before leaves no run behind.

    Args:
        config: resolved.
        parts: what the run depends on, to be the same when it goes on: `digest()` of its images, and more.
        out: folder of the run; None: nothing is written.
        watchers: sinks beside the run's own.
        evaluation: see `held_out`.
        reports: what is to be read in the run's log.
        at_start: what remains to be done once the folder is there.

    Raises:
        UnveilError: another run is in the folder, and whatever `train` raises.
    """
    engine = config.engine
    parallel.wait_at_most(engine.timeout_minutes)
    sinks, folder = watchers, None
    if out is not None:
        sinks = (*build_sinks(out, engine.trackers, to_json(config)), *watchers)
        folder = RunFolder.open(
            out,
            config=to_json(config),
            data={"order": ORDER_NAME, "parts": dict(parts)},
            parallel=parallel,
            allowed_changes=MAY_CHANGE_ON_RESUME,
            keep_last=engine.keep_last,
            usual=defaults(config),
        )
    with folder or nullcontext() as run:
        for report in reports:
            logger.info("%s", report)
        at_start()
        return train(
            task,
            steps,
            optimization=config.optimization,
            settings=engine,
            parallel=parallel,
            run=run,
            sinks=sinks,
            evaluate=evaluation,
            ema_decay=ema_decay,
            after_step=after_step,
        )


def held_out(
    config: AnyRun, task: Evaluated, source: ImageSource, view: View, collate: Collate, parallel: Parallel
) -> Callable[[], dict[str, float]]:
    """The evaluation of a task on images that are held out, of which every process reads its share."""
    assert config.optimization.micro_batch_size is not None and config.data.workers is not None
    loader = EvaluationLoader(
        source,
        view,
        collate,
        batch_size=config.optimization.micro_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        workers=config.data.workers,
    )
    precision = Precision.of(config.engine.precision, parallel.device)
    return lambda: evaluate(task, loader, parallel, precision)
