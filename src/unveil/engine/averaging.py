"""A running average of the weights, kept beside them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from unveil.engine.task import Task


class WeightAverage:
    """average <- decay * average + (1 - decay) * weight, from the weights that the task has when this is made.

    The rule of timm's ModelEmaV3 with a constant decay, without its second copy of the whole task: only trainable
    parameters are averaged, and buffers and frozen parameters are the task's own.
    """

    def __init__(self, task: Task, decay: float) -> None:
        self.decay = decay
        self._task = task
        self._weights = {name: weight for name, weight in task.named_parameters() if weight.requires_grad}
        self._averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        torch._foreach_lerp_(list(self._averages.values()), list(self._weights.values()), 1.0 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside it the task has the averaged weights; afterwards its own again, to the last bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """The task's state with averaged weights, under its names."""
        return {name: self._averages.get(name, value) for name, value in self._task.state_dict().items()}

    @torch.no_grad()
    def _swap(self) -> None:
        # Contents, not tensors: the optimizer, DDP and compiled code hold on to the tensors that they know.
        for name, weight in self._weights.items():
            held = weight.clone()
            weight.copy_(self._averages[name])
            self._averages[name].copy_(held)
