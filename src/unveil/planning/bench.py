"""What a recipe's training step costs on this machine, and where its time goes."""

import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unveil.build.classification import build_classification, training_view
from unveil.build.common import build_training_loader
from unveil.build.pretext import Pretext, build_pretext
from unveil.build.pretraining import training_steps
from unveil.config import (
    ClassificationConfig,
    ClipTarget,
    MaskedTokenPrediction,
    PretrainConfig,
    TimmTarget,
    UnveilError,
)
from unveil.data.sources.base import Source
from unveil.engine import Batch, Parallel, Precision, build_optimizer
from unveil.engine.averaging import WeightAverage
from unveil.engine.compilation import compile_task, use_deterministic_kernels
from unveil.engine.copies import copied_ahead
from unveil.engine.step import finish_gradients
from unveil.engine.task import move
from unveil.models.vit import ViT
from unveil.planning.cost import FULL
from unveil.planning.matrix_rate import matrix_rate, wait_for
from unveil.planning.networks import network_cost, vit_of
from unveil.planning.stand_ins import stand_in_target, stand_in_tokenizer
from unveil.planning.teachers import teacher_of
from unveil.planning.timm_blocks import use_timm_blocks
from unveil.tasks.classification.task import Classification
from unveil.tasks.classification.view import collate_labelled

Phase = Literal["data", "teacher", "forward", "backward", "optimizer", "communication"]
PHASES: tuple[Phase, ...] = ("data", "teacher", "forward", "backward", "optimizer", "communication")
Trained = PretrainConfig | ClassificationConfig


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender's step, on all processes together. Medians over the steps."""

    name: str
    images_per_second: float
    step_seconds: float
    flops_per_image: int
    """The model's arithmetic: student forward and backward, teacher forward; nothing that is recomputed."""
    matrix_rate: float
    """Floating-point operations a second of this device in large matrix products."""
    peak_bytes: int
    """Of the GPU by torch's allocator; of a processor what the process ever had resident, its libraries included."""
    seconds: dict[Phase, float] = field(default_factory=dict)
    """Of a step in which the device is waited for after each part: their sum may exceed `step_seconds`."""
    processes: int = 1

    @property
    def model_rate(self) -> float:
        """The model's floating-point operations a second on one device."""
        return self.images_per_second * self.flops_per_image / self.processes

    @property
    def mfu(self) -> float:
        return self.model_rate / self.matrix_rate

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"model_rate": self.model_rate, "mfu": self.mfu}


def bench(
    config: Trained, source: Source, *, parallel: Parallel, steps: int, warm_up: int, on_timm: bool = False
) -> Measured:
    """Measure a resolved configuration's training step. Teachers that would have to be fetched get random weights.

    Args:
        source: labelled, where a classifier is trained.
        warm_up: steps that are not counted.
        on_timm: with timm's blocks in the place of ours.

    Raises:
        UnveilError: a teacher that cannot be told, samples that cannot be read, a network that timm has no blocks of.
    """
    flops = flops_per_image(config)
    # The last contender's memory is not this one's.
    gc.collect()
    if parallel.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(parallel.device)
    if config.engine.deterministic and parallel.device.type == "cuda":
        use_deterministic_kernels()
    stepper = _Stepper(config, source, parallel, on_timm=on_timm)
    several, first = parallel.world_size > 1, warm_up + steps
    # As in training the next batch is copied while this one is computed; one part after the other it cannot be.
    ahead = copied_ahead(stepper.steps(0, first), parallel.device)
    for _ in range(warm_up):
        stepper.step(ahead)
    whole = [_timed(lambda: stepper.step(ahead), parallel.device) for _ in range(steps)]
    batches = stepper.steps(first, first + (2 if several else 1) * steps)
    split = [stepper.step(batches, split=True) for _ in range(steps)]
    peak = peak_bytes(parallel.device)
    # Last, since under fsdp gradients that nobody was sent lie there whole from then on.
    alone = [stepper.backward_alone(batches) for _ in range(steps if several else 0)]
    seconds: dict[Phase, float] = {phase: statistics.median(step[phase] for step in split) for phase in PHASES}
    if alone:
        # What the exchange adds to a backward pass that it mostly runs beside.
        own = min(seconds["backward"], statistics.median(alone))
        seconds["communication"] += seconds["backward"] - own
        seconds["backward"] = own
    step_seconds = statistics.median(whole)
    return Measured(
        name="timm's blocks" if on_timm else "unveil",
        images_per_second=config.optimization.global_batch_size / step_seconds,
        step_seconds=step_seconds,
        flops_per_image=flops,
        matrix_rate=matrix_rate(stepper.precision),
        peak_bytes=peak,
        seconds=seconds,
        processes=parallel.world_size,
    )


def flops_per_image(config: Trained) -> int:
    """Of the student forward and backward, and of the teacher."""
    teacher = teacher_of(config) if isinstance(config, PretrainConfig) else None
    network = network_cost(config, FULL, teacher, len(getattr(config, "classes", ())))
    return network.forward + network.backward + (0 if teacher is None else teacher.flops)


def peak_bytes(device: torch.device) -> int:
    """The most memory so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _Stepper:
    """The loop's step in parts that can be timed: the same calls in the same order as `unveil.engine.train`."""

    def __init__(self, config: Trained, source: Source, parallel: Parallel, *, on_timm: bool) -> None:
        self.config = config
        self.parallel = parallel
        self.precision = Precision.of(config.engine.precision, parallel.device)
        self.scaler = self.precision.gradient_scaler(config.engine.loss_scale_window)
        task, self.steps = _task_and_steps(config, source, parallel, on_timm=on_timm)
        self.teacher_seconds = 0.0
        self.split = False
        self._watch_teacher(task)
        self.task: Any = task
        task.to(parallel.device)
        task.train()
        self.module = parallel.wrap(task, config.engine)
        self.optimizer = build_optimizer(
            task,
            config.optimization.optimizer,
            config.optimization.layer_decay,
            divided=parallel.divides_optimizer(config.engine),
        )
        self.parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        decay = getattr(config, "ema_decay", None)
        self.average = None if decay is None else WeightAverage(task, decay)
        if config.engine.compile:
            compile_task(task, parallel.device, sharded=parallel.shards(config.engine))

    def step(self, batches: Iterator[list[Batch]], *, split: bool = False) -> dict[Phase, float]:
        """One step; with `split` the seconds of its parts, each waited for."""
        clock = self._clock(split=split)
        total = self._backpropagate(batches, clock, exchange=True)
        self.parallel.sum_(total)
        clock.lap("communication")
        self.scaler.unscale_(self.optimizer)
        factor = self.parallel.world_size * self.config.optimization.global_batch_size / total
        finish_gradients(self.parameters, factor.float(), self.config.optimization.clip_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()
        if isinstance(self.config, PretrainConfig):
            self.task.after_step(True, self.parallel.sum_)
        clock.lap("optimizer")
        return clock.seconds

    def backward_alone(self, batches: Iterator[list[Batch]]) -> float:
        """Seconds of backward of one step whose gradients stay with this process and are thrown away."""
        clock = self._clock(split=True)
        self._backpropagate(batches, clock, exchange=False)
        self.optimizer.zero_grad(set_to_none=True)
        return clock.seconds["backward"]

    def _clock(self, *, split: bool) -> "_Clock":
        self.split = split
        return _Clock(self.parallel.device, split=split)

    def _backpropagate(self, batches: Iterator[list[Batch]], clock: "_Clock", *, exchange: bool) -> Tensor:
        """The next step's micro-batches; how many samples counted."""
        micro_batches = next(batches)
        clock.lap("data")
        total = torch.zeros((), device=self.parallel.device, dtype=torch.float64)
        for number, batch in enumerate(micro_batches, start=1):
            last = exchange and number == len(micro_batches)
            with self.parallel.gradients_combined(self.module, now=last):
                moved = move(batch, self.parallel.device)
                clock.lap("data")
                self.teacher_seconds = 0.0
                with self.precision.autocast():
                    loss, count = self.module(moved)["loss"]
                clock.lap("forward")
                clock.seconds["teacher"] += self.teacher_seconds
                clock.seconds["forward"] -= self.teacher_seconds
                self.scaler.scale(loss / self.config.optimization.global_batch_size).backward()
                clock.lap("backward")
            total += count.detach()
        return total

    def _watch_teacher(self, task: nn.Module) -> None:
        """Time what the task asks of its teacher, inside its forward pass."""
        name = next((name for name in ("targets", "codes") if hasattr(task, name)), None)
        if name is None:
            return
        ask: Callable[..., Tensor] = getattr(task, name)

        def timed(*question: Any) -> Tensor:
            if not self.split:
                return ask(*question)
            wait_for(self.parallel.device)
            began = time.perf_counter()
            answer = ask(*question)
            wait_for(self.parallel.device)
            self.teacher_seconds += time.perf_counter() - began
            return answer

        setattr(task, name, timed)


class _Clock:
    """Seconds since the last lap, by what was done in them."""

    def __init__(self, device: torch.device, *, split: bool) -> None:
        self.device = device
        self.split = split
        self.seconds: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def lap(self, phase: Phase) -> None:
        if self.split:
            wait_for(self.device)
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


def _timed(action: Callable[[], Any], device: torch.device) -> float:
    began = time.perf_counter()
    action()
    wait_for(device)
    return time.perf_counter() - began


def _task_and_steps(
    config: Trained, source: Source, parallel: Parallel, *, on_timm: bool
) -> tuple[Pretext | Classification, Callable[[int, int], Iterator[list[Batch]]]]:
    task: Pretext | Classification
    steps: Callable[[int, int], Iterator[list[Batch]]]
    if isinstance(config, ClassificationConfig):
        task = build_classification(config)
        view = training_view(config, config.model.image_size)
        paired = config.augmentation.mixes
        steps = build_training_loader(config, source, view, collate_labelled, parallel, paired=paired).steps
    else:
        target = tokenizer = None
        if isinstance(config.objective, MaskedTokenPrediction):
            tokenizer = stand_in_tokenizer(config.objective.tokenizer)
        elif isinstance(config.target, ClipTarget | TimmTarget):
            target = stand_in_target(config.target, vit_of(config))
        task = pretext = build_pretext(config, target=target, tokenizer=tokenizer)
        pretext.target.to(parallel.device)
        steps = training_steps(config, pretext, source, parallel)
    if on_timm:
        if not isinstance(task.backbone, ViT):
            raise UnveilError("timm has no blocks of RevColV2's to compare with; leave --vs out")
        use_timm_blocks(task.backbone)
    return task, steps
