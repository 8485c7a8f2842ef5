"""THE loop: every run of every task is trained by `train`, which reads top to bottom."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from unveil.config import EngineConfig, OptimizationConfig, UnveilError
from unveil.engine.averaging import WeightAverage
from unveil.engine.compilation import compile_task, use_deterministic_kernels
from unveil.engine.copies import copied_ahead
from unveil.engine.interrupt import listening
from unveil.engine.optimizer import build_optimizer, set_learning_rate
from unveil.engine.parallel import Parallel
from unveil.engine.precision import Precision
from unveil.engine.run_folder import RunFolder
from unveil.engine.saving import Progress, Trained, background
from unveil.engine.schedule import learning_rate
from unveil.engine.step import backpropagate, finish_gradients, samples_to_blame
from unveil.engine.task import Batch, Task
from unveil.engine.tracking import Sink

log = logging.getLogger(__name__)

MOST_OF_THE_START = 0.05
"""Share of the first weights in the final average from which on a person is warned."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    """Completed steps."""
    metrics: dict[str, float]
    """The last that were logged."""
    stopped: bool
    """A signal ended it before its last step; the same command goes on from here."""
    by_keyboard: bool = False
    """That signal was Ctrl-C."""


def train(
    task: Task,
    steps: Callable[[int, int], Iterator[list[Batch]]],
    *,
    optimization: OptimizationConfig,
    settings: EngineConfig,
    parallel: Parallel,
    run: RunFolder | None = None,
    sinks: Sequence[Sink] = (),
    evaluate: Callable[[], dict[str, float]] | None = None,
    ema_decay: float | None = None,
    after_step: Callable[[bool], Mapping[str, Tensor]] | None = None,
) -> Outcome:
    """Train the task from the run's last checkpoint, or from where it stands, to `optimization.steps`.

    The gradient of a step is that of the loss summed over the global batch and divided by its count there, however the
    batch is split into micro-batches and processes.

    Args:
        steps: `steps(first, last)` yields, for each step from `first` (0 for the very first) up to but not including
            `last`, this process's micro-batches.
        optimization: with `steps` and `warmup_steps` concrete.
        run: where checkpoints go; None: none are written.
        sinks: started and closed here; used on the main process only.
        evaluate: called on all processes every `settings.evaluate_every` steps and after the last.
        ema_decay: keep a running average of the weights with this decay, updated after every step (also after one
            that fp16 skipped: released code), saved beside them, and evaluated beside them as `validation_ema_*`.
        after_step: called on all processes when the weights of a step are there, before they are evaluated or saved,
            for parts of the task that follow its weights or its batches and that no gradient moves. It is told whether
            the weights were updated (not where fp16 overflowed, or nothing was counted), and what it answers, 0-d
            tensors by name, is logged beside the losses.

    Raises:
        UnveilError: the loss is not finite, the loss scale of fp16 has collapsed, the disk is full, or the run to go on
            with has no averaged weights.
    """
    if optimization.steps is None or optimization.warmup_steps is None:
        raise ValueError("optimization.steps and optimization.warmup_steps must be resolved to numbers")
    total, batch_size = optimization.steps, optimization.global_batch_size
    if settings.deterministic and parallel.device.type == "cuda":
        use_deterministic_kernels()
    precision = Precision.of(settings.precision, parallel.device)
    scaler = precision.gradient_scaler(settings.loss_scale_window)
    task.to(parallel.device)
    task.train()
    # Wrapping makes the weights of all processes equal, and may cut them in pieces; optimizer and average follow it.
    module = parallel.wrap(task, settings)
    divided = parallel.divides_optimizer(settings)
    optimizer = build_optimizer(task, optimization.optimizer, optimization.layer_decay, divided=divided)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average = None if ema_decay is None else WeightAverage(task, ema_decay)
    trained = Trained(task, optimizer, scaler, average, divided)
    progress = resume(trained, run, parallel)
    if progress.step >= total:
        return Outcome(progress.step, progress.metrics, stopped=False)
    if average is not None and parallel.is_main and average.decay**total > MOST_OF_THE_START:
        log.warning(
            "the average of the weights looks back further than this run of %d steps is long: %.0f %% of it will be "
            "the weights that the run began with. Use a lower ema_decay than %g",
            *(total, 100 * average.decay**total, average.decay),
        )
    if settings.compile:
        compile_task(task, parallel.device, sharded=parallel.shards(settings))
    stopped, seconds, steps_timed = False, 0.0, 0

    with (
        listening(parallel.is_main) as interrupt,
        parallel.naming(lambda: f" in step {progress.step + 1} of {total}"),
        started(sinks if parallel.is_main else (), progress.step, total) as write,
        background() as beside,
    ):
        batches = copied_ahead(steps(progress.step, total), parallel.device)
        while progress.step < total and not stopped:
            began = time.perf_counter()
            rate = learning_rate(
                progress.step,
                peak=optimization.optimizer.learning_rate,
                minimum=optimization.min_learning_rate,
                warmup_steps=optimization.warmup_steps,
                total_steps=total,
            )
            set_learning_rate(optimizer, rate)
            micro_batches = next(batches, None)
            if micro_batches is None:
                raise ValueError(f"the data ended after {progress.step} of {total} steps")

            # Forward and backward of this process's share; then everybody learns the sums and counts of all.
            losses = backpropagate(
                task, module, micro_batches, divisor=batch_size, precision=precision, scaler=scaler, parallel=parallel
            )
            shared = torch.cat([losses.totals.flatten(), losses.totals.new_tensor([interrupt.requested])])
            parallel.sum_(shared)

            # One division turns the average over processes of sum / batch_size into the mean over the global count.
            scaler.unscale_(optimizer)
            counted = shared[2 * losses.names.index("loss") + 1]
            factor = parallel.world_size * batch_size / torch.where(counted > 0, counted, 1)
            norm = finish_gradients(parameters, factor.float(), optimization.clip_gradient_norm)

            # The only wait for the device in a step.
            *sums, interruptions, grad_norm = torch.cat([shared, norm.double()[None]]).tolist()
            means = {
                name: sums[2 * place] / sums[2 * place + 1] if sums[2 * place + 1] else math.nan
                for place, name in enumerate(losses.names)
            }
            anything_counted = sums[2 * losses.names.index("loss") + 1] > 0

            # Stop before the weights are touched.
            bad_loss = anything_counted and not math.isfinite(means["loss"])
            if bad_loss or not (math.isfinite(grad_norm) or precision.format == "fp16"):
                names = samples_to_blame(losses, micro_batches, parallel)
                beside.finish()
                raise UnveilError(describe_fault("loss" if bad_loss else "gradient", progress.step + 1, names, run))

            # Where nothing was counted, weight decay and momentum must not move the weights either.
            scale = scaler.get_scale()
            if anything_counted:
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            updated = anything_counted and scaler.get_scale() >= scale
            if scaler.get_scale() < scale:
                progress.skipped_steps += 1
                if scaler.get_scale() < 1:
                    raise UnveilError(
                        f"gradients overflow in fp16 at every loss scale (step {progress.step + 1}); "
                        "use engine.precision bf16 or fp32, or a lower learning rate"
                    )
            if average is not None:
                average.update()
            followed = {} if after_step is None else after_step(updated)
            progress.step += 1
            at_end = progress.step == total
            stopped = interruptions > 0 and not at_end
            seconds, steps_timed = seconds + time.perf_counter() - began, steps_timed + 1

            # Once in a while: evaluate, log, save.
            validation: dict[str, float] = {}
            if evaluate is not None and (at_end or is_due(progress.step, settings.evaluate_every)):
                validation = validate(evaluate, average)
            if at_end or validation or is_due(progress.step, settings.log_every):
                speed = {"images_per_second": steps_timed * batch_size / seconds}
                scaling = (
                    {"loss_scale": scale, "skipped_steps": float(progress.skipped_steps)} if scaler.is_enabled() else {}
                )
                others = {name: mean for name, mean in means.items() if name != "loss"}
                others |= {name: value.item() for name, value in followed.items()}
                first = {"loss": means["loss"], "lr": rate, "grad_norm": grad_norm}
                progress.metrics = first | speed | scaling | others | validation
                write(progress.step, progress.metrics)
                seconds, steps_timed = 0.0, 0
            if run is not None and (at_end or stopped or is_due(progress.step, settings.checkpoint_every)):
                # Only one copy is in memory at a time, and if the last one could not be written, the run ends here.
                beside.finish()
                beside.do(trained.copied(run, progress, parallel))
    if stopped:
        log.info("stopped by a signal after step %d of %d", progress.step, total)
    return Outcome(progress.step, progress.metrics, stopped, by_keyboard=stopped and interrupt.by_keyboard)


def is_due(step: int, every: int | None) -> bool:
    """Whether something done every so many steps is to be done after this one."""
    return every is not None and step % every == 0


def validate(evaluate: Callable[[], dict[str, float]], average: WeightAverage | None) -> dict[str, float]:
    """The metrics of the weights, and of their average where there is one."""
    metrics = {f"validation_{name}": value for name, value in evaluate().items()}
    if average is not None:
        with average.in_place():
            metrics |= {f"validation_ema_{name}": value for name, value in evaluate().items()}
    return metrics


def resume(trained: Trained, run: RunFolder | None, parallel: Parallel) -> Progress:
    """Put the run's newest whole checkpoint into the objects, on every process the same."""
    step = None if run is None else parallel.on_main(run.checkpoints.latest_whole)
    if run is None or step is None:
        return Progress()
    checkpoint = run.checkpoints.load(step)
    if trained.average is not None and checkpoint.averaged is None:
        raise UnveilError(
            f"{run.checkpoints.folder(step)} holds no averaged weights, and an average cannot begin in the middle of a "
            "run: go on without ema_decay, or give --out another folder to start a new run"
        )
    try:
        progress = trained.put_back(checkpoint)
    except (RuntimeError, ValueError) as error:
        raise UnveilError(
            f"{run.checkpoints.folder(step)} is of another network than this run builds: {error}"
        ) from error
    log.info("going on after step %d", step)
    return progress


def describe_fault(what: str, step: int, names: Sequence[str], run: RunFolder | None) -> str:
    """The sentence about a loss or gradient that is not finite."""
    shown = ", ".join(map(str, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    last = run.checkpoints.steps() if run is not None else []
    kept = f"The checkpoint of step {last[-1]} is kept. " if last else ""
    return (
        f"the {what} of step {step} is not finite; it was computed from {shown}. {kept}"
        "Look at these samples; if they are sound, use a lower learning rate or engine.precision fp32"
    )


@contextmanager
def started(sinks: Sequence[Sink], step: int, total: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Start all sinks, give the function that writes to all of them, close all of them."""
    with ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.close)
            sink.start(step, total)

        def write(at: int, metrics: dict[str, float]) -> None:
            for sink in sinks:
                sink.write(at, metrics)

        yield write
