"""Weights, gradients and optimizer state in pieces on several processes: torch's FSDP2.

Loaded only where it is used, for torch's part of it takes seconds to import.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from unveil.config import UnveilError
from unveil.engine.parallel import set_timeout
from unveil.engine.task import Batch, RelatesSamples, Task


class Sharded:
    """A task of whose every weight each process holds some rows; to be called in the task's place.

    Each of the task's `shard_units` is gathered for its forward pass and again for its backward pass; what belongs to
    none of them is gathered for the whole step. The gradients that backward leaves are averaged over the processes, as
    DDP leaves them, and each process has those of its own rows.

    Args:
        group: so many processes of neighbouring ranks divide the weights among them, and the next group has them again.
        reshard: give a unit's weights back between its forward and its backward pass.
        timeout: of the exchanges.

    Raises:
        UnveilError: a group that does not divide the processes; a task that relates samples, for which weights would
            have to be gathered outside of its forward pass.
    """

    def __init__(self, task: Task, device: torch.device, *, group: int, reshard: bool, timeout: timedelta) -> None:
        self._task = task
        module = cast(nn.Module, task)
        if isinstance(task, RelatesSamples):
            raise UnveilError(
                "the loss of this task ties the samples of a step to one another, which fsdp does not go with; give "
                "--parallel zero1, which divides the optimizer's state all the same"
            )
        for parameter in module.parameters():
            # FSDP2 takes no others (networks of convolutions may have their channels last).
            parameter.data = parameter.data.contiguous()
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.detach(), src=0)
        mesh = _mesh(device, group)
        for line in mesh.get_all_groups():
            set_timeout(timeout, line)
        # From the inside out: what a unit has taken is no longer there to be taken by the whole.
        self._units = [
            cast(FSDPModule, fully_shard(unit, mesh=mesh, reshard_after_forward=reshard)) for unit in task.shard_units()
        ]
        self._whole = cast(FSDPModule, fully_shard(module, mesh=mesh, reshard_after_forward=True))
        register_fsdp_forward_method(module, "evaluate")
        evaluate = task.evaluate

        def evaluate_and_give_back(batch: Batch) -> dict[str, Tensor]:
            state = evaluate(batch)
            # Where no backward pass follows, nothing else does, and weights that change meanwhile would not be seen.
            for unit in self._units:
                unit.reshard()
            return state

        module.evaluate = evaluate_and_give_back  # type: ignore[assignment]

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        return self._task(batch)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside it leave the gradients, all rows of them, where they are."""
        self._whole.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._whole.set_requires_gradient_sync(True)


def _mesh(device: torch.device, group: int) -> DeviceMesh:
    """All processes in a row, or in rows of `group`: sharded along a row, the same in every row."""
    processes = dist.get_world_size()
    if group == processes:
        return init_device_mesh(device.type, (processes,), mesh_dim_names=("shard",))
    if processes % group:
        raise UnveilError(
            f"{processes} processes do not divide into groups of {group}; choose another engine.shard_group, or leave "
            "it out"
        )
    return init_device_mesh(device.type, (processes // group, group), mesh_dim_names=("replicate", "shard"))
