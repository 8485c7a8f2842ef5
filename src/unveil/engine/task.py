"""What the engine asks of a task: everything it knows about the thing that it trains."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from unveil.config import TowerOptimization

Batch = dict[str, Any]
"""Tensors by name, plus "sample_numbers" (Int64 "b") and "names" (list[str]), which an error can point at."""


@runtime_checkable
class Task(Protocol):
    """An `nn.Module` with losses, metrics and an order of its parameters.

    Frozen teachers hang on it as plain objects, not as modules, so that they are in no checkpoint and no optimizer.
    """

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """{name: (sum, count)}, 0-d tensors. "loss" is optimised: the mean over the global batch's count.

        The sum must depend on the same parameters for every batch, also where the count is 0: the processes wait for
        one another's gradients.
        """
        ...

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Sums that merge by addition. Rows of the batch whose "valid" is False are padding and count nothing."""
        ...

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        """The metrics of merged sums."""
        ...

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Every trainable parameter exactly once, by name, input side first."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed, beside biases and vectors."""
        ...

    def shard_units(self) -> Sequence[nn.Module]:
        """The pieces whose weights fsdp gathers together and gives back again: blocks, none within another.

        Their weights must be asked for in their own forward alone.
        """
        ...

    def compile_(self) -> None:
        """Compile what does the arithmetic."""
        ...

    training: bool

    def train(self, mode: bool = True) -> Any: ...

    def to(self, device: torch.device) -> Any: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@runtime_checkable
class RelatesSamples(Protocol):
    """A task whose loss of one sample depends on all others of the global batch."""

    def relate(self, micro_batches: Sequence[Batch]) -> Sequence[Batch]:
        """This process's micro-batches of a step, each with what it needs to know of the others and of other processes.

        Called before any of them goes through the task, with gradients on, on all processes. What is random must be
        keyed on the samples, so that it is the same here and there.
        """
        ...


@runtime_checkable
class HasTowers(Protocol):
    """A task with parts that are optimised differently."""

    def towers(self) -> list[tuple[TowerOptimization, list[list[tuple[str, nn.Parameter]]]]]:
        """Each part with layer groups of its own; together they are those of `layer_groups`."""
        ...


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`. Copies from pinned memory run beside the device's work."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
