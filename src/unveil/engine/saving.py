"""What a run needs to go on: taken from the objects that train it, written while they train on, and put back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from threading import Thread
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from unveil.engine.averaging import WeightAverage
from unveil.engine.checkpoint import Checkpoint
from unveil.engine.optimizer import load_state_by_name, parameters_by_name, state_by_name
from unveil.engine.parallel import Parallel, lost_others
from unveil.engine.run_folder import RunFolder
from unveil.engine.task import Task


@dataclass
class Progress:
    """What a checkpoint remembers beside weights and optimizer. Randomness needs no memory: it is keyed on samples."""

    step: int = 0
    skipped_steps: int = 0
    """Steps without an update because a gradient overflowed in fp16."""
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """The objects whose state a checkpoint holds."""

    task: Task
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage | None
    divided: bool = False
    """Each process keeps the optimizer's state of other parameters than the others."""

    def put_back(self, checkpoint: Checkpoint) -> Progress:
        """Give them the state of a checkpoint; each process takes what it holds.

        Raises:
            ValueError, RuntimeError: it is of another network.
        """
        weights = self.task.state_dict()
        if wrong := set(weights) ^ set(checkpoint.weights):
            raise ValueError(f"one has {sorted(wrong)[:5]}, the other has not")
        checkpoint.weights.fill(weights)
        if self.average is not None and checkpoint.averaged is not None:
            checkpoint.averaged.fill(self.average.state())
        everything, kept = parameters_by_name(self.optimizer), parameters_by_name(self.optimizer, kept_here=True)
        places: dict[str, Tensor] = {}
        moments: dict[str, dict[str, Tensor]] = {}
        for place in checkpoint.optimizer:
            name, _, moment = place.rpartition("/")
            if name not in everything:
                raise ValueError(f"its optimizer has moments of {name}, which is no parameter")
            if name in kept:
                places[place] = checkpoint.optimizer.room(place, kept[name])
                moments.setdefault(name, {})[moment] = places[place]
        checkpoint.optimizer.fill(places)
        load_state_by_name(self.optimizer, moments)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.training["scaler"])
        return Progress(**checkpoint.training["progress"])

    def copied(self, run: RunFolder, progress: Progress, parallel: Parallel) -> Callable[[], Any]:
        """Copy the state as it is now. Calling what this returns, on every process, writes it."""
        from unveil.engine.pieces import own_copies

        moments = {
            f"{name}/{moment}": value
            for name, state in state_by_name(self.optimizer).items()
            for moment, value in state.items()
        }
        averaged = None if self.average is None else own_copies(self.average.state(), whole=parallel.is_main)
        weights = own_copies(self.task.state_dict(), whole=parallel.is_main)
        optimizer = own_copies(moments, whole=self.divided or parallel.is_main)
        training = {"scaler": self.scaler.state_dict(), "progress": asdict(progress)}
        step, aside = progress.step, parallel.aside()
        return lambda: run.checkpoints.save(step, weights, training, averaged, optimizer, parallel=aside)


class Background:
    """Does one thing at a time beside training."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._failure: BaseException | None = None

    def do(self, action: Callable[[], Any]) -> None:
        """Begin it; what was begun before must have finished."""

        def run() -> None:
            try:
                action()
            except BaseException as failure:
                self._failure = failure

        # As a daemon it keeps no process alive that has lost the others, for which writing would wait, too.
        self._thread = Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is done or has failed."""
        if self._thread is not None:
            self._thread.join()

    def finish(self) -> None:
        """Wait for what was begun; raises what that raised."""
        self.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


@contextmanager
def background() -> Iterator[Background]:
    """One that has finished when the block is left, unless another process was lost. Of two failures the block's own
    counts."""
    beside = Background()
    try:
        yield beside
    except BaseException as failure:
        if not lost_others(failure):
            beside.wait()
        raise
    beside.finish()
