"""The arithmetic of one step: backward over micro-batches, and gradients of the mean over the global batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from unveil.engine.parallel import Parallel, is_sharded
from unveil.engine.precision import Precision
from unveil.engine.task import Batch, RelatesSamples, Task, move


@dataclass(frozen=True)
class Losses:
    """What one process's micro-batches gave."""

    names: list[str]
    totals: Float64[Tensor, "names 2"]
    """Sum and count of each name over the micro-batches."""
    loss_sums: list[Tensor]
    """Of "loss", for each micro-batch: an error is traced to its samples with them."""


def backpropagate(
    task: Task,
    module: Callable[[Batch], dict[str, tuple[Tensor, Tensor]]],
    micro_batches: Sequence[Batch],
    *,
    divisor: int,
    precision: Precision,
    scaler: torch.amp.GradScaler,
    parallel: Parallel,
) -> Losses:
    """Leave in the parameters the gradient of the sum of the loss over `divisor`, averaged over the processes.

    The count that the sum belongs to is known only when all processes are through; until then a fixed divisor of the
    right order keeps gradients in the range that fp16 can hold.

    Args:
        module: the task as it is to be called, which may be wrapped.
    """
    if isinstance(task, RelatesSamples):
        # In an autocast region of its own: what it casts without gradients must not be taken for what comes later.
        with precision.autocast():
            micro_batches = task.relate([move(batch, parallel.device) for batch in micro_batches])
    totals: dict[str, Tensor] = {}
    loss_sums = []
    for number, batch in enumerate(micro_batches, start=1):
        with parallel.gradients_combined(module, now=number == len(micro_batches)):
            with precision.autocast():
                losses = module(move(batch, parallel.device))
            scaler.scale(losses["loss"][0] / divisor).backward()
        for name, pair in losses.items():
            added = torch.stack([value.detach().double() for value in pair])
            totals[name] = totals[name] + added if name in totals else added
        loss_sums.append(losses["loss"][0].detach())
    return Losses(list(totals), torch.stack(list(totals.values())), loss_sums)


def finish_gradients(parameters: Sequence[nn.Parameter], factor: Tensor, limit: float | None) -> Tensor:
    """Multiply all gradients by `factor` (0-d), clip their common norm to `limit`; the norm before clipping."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, factor)
    norm = get_total_norm(gradients)
    if is_sharded(norm):
        norm = cast(Any, norm).full_tensor()
    if limit is not None:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


def samples_to_blame(losses: Losses, micro_batches: Sequence[Batch], parallel: Parallel) -> list[str]:
    """Names of the samples, of any process, whose micro-batch has a loss that is not finite; of all if none has.

    Every process must call it.
    """
    suspects: list[list[Any]] = [
        [
            name
            for loss, batch in zip(losses.loss_sums, micro_batches, strict=True)
            if bad(loss)
            for name in batch["names"]
        ]
        for bad in (lambda loss: not bool(torch.isfinite(loss)), lambda loss: True)
    ]
    found = parallel.gather(suspects)
    return [name for by_rank in found for name in by_rank[0]] or [name for by_rank in found for name in by_rank[1]]
