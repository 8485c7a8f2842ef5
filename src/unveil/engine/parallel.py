"""Several processes as one: set-up from torchrun's environment, wrapping, sums over all processes; and compilation."""

import logging
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unveil.config import UnveilError
from unveil.engine.task import Task

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Parallel:
    """This process among the others. Made by `Parallel.start`; without torchrun it is the only one."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @staticmethod
    @contextmanager
    def start(device: str | None = None, timeout: timedelta = timedelta(minutes=15)) -> Iterator["Parallel"]:
        """Join the processes that torchrun started, inside the block.

        Args:
            device: "cpu" or "cuda"; left out: a GPU where there is one.
            timeout: a process that waits longer for the others fails, so that one that died leaves nobody hanging.
        """
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if kind == "cuda":
            local_rank = int(os.environ.get("LOCAL_RANK", "0"))
            if local_rank >= torch.cuda.device_count():
                raise UnveilError(
                    f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs; start no more "
                    "processes than GPUs (torchrun --nproc-per-node)"
                )
            torch.cuda.set_device(local_rank)
            chosen = torch.device("cuda", local_rank)
        else:
            chosen = torch.device(kind)
        if world_size == 1:
            yield Parallel(chosen)
            return
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UnveilError(
                f"WORLD_SIZE is {world_size} but {', '.join(missing)} is not set: start several processes with "
                "torchrun, or unset WORLD_SIZE for one"
            )
        backend = "nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timeout, device_id=chosen if kind == "cuda" else None)
        try:
            yield Parallel(chosen, rank=dist.get_rank(), world_size=world_size)
        except BaseException:
            # Leaving an NCCL group in order waits for processes that may never come.
            if backend == "gloo":
                dist.destroy_process_group()
            raise
        dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wrap(self, task: Task, kind: Literal["ddp"]) -> Callable[..., dict[str, tuple[Tensor, Tensor]]]:
        """The task as it is to be called in training: gradients are averaged over the processes in its backward."""
        if self.world_size == 1:
            return task
        match kind:
            case "ddp":
                on_gpu = self.device.type == "cuda"
                return DistributedDataParallel(
                    cast(nn.Module, task),
                    device_ids=[self.device.index] if on_gpu else None,
                    gradient_as_bucket_view=True,
                )
        raise ValueError(f"no such kind of parallelism: {kind}")

    def gradients_combined(self, module: Callable[..., Any], *, now: bool) -> AbstractContextManager:
        """A backward pass inside it exchanges gradients with the other processes, or, if not `now`, keeps them here."""
        return nullcontext() if now or not isinstance(module, DistributedDataParallel) else module.no_sync()

    def sum_(self, tensors: Tensor | dict[str, Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world_size == 1:
            return
        for tensor in [tensors] if isinstance(tensors, Tensor) else tensors.values():
            dist.all_reduce(tensor)

    def gather(self, value: Answer) -> list[Answer]:
        """Every process's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def on_main(self, action: Callable[[], Answer]) -> Answer:
        """Let the main process act while the others wait; all get its answer, which must be picklable.

        Raises:
            UnveilError: on every process, if the action raised it on the main one.
        """
        if self.world_size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except UnveilError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


def use_deterministic_kernels() -> None:
    """From here on, CUDA operations with several algorithms take one whose result does not vary.

    Call it before the first GPU work of the process: cuBLAS reads its setting once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def compile_task(task: Task, device: torch.device) -> None:
    """Compile the task, or say why it stays as it is: generated code needs a compiler to become a program."""
    variable, usual = ("CC", ("gcc", "clang", "cc")) if device.type == "cuda" else ("CXX", ("g++", "clang++", "c++"))
    candidates = [os.environ[variable]] if os.environ.get(variable) else usual
    found = next((candidate for candidate in candidates if shutil.which(candidate)), None)
    header = Path(sysconfig.get_path("include"), "Python.h")
    if found is None:
        log.warning("torch.compile needs a compiler and finds none (%s): going on without it", ", ".join(candidates))
    elif not header.exists():
        log.warning("torch.compile needs Python's header files and %s is missing: going on without it", header)
    else:
        # Left to itself, torch looks for some of these names only.
        os.environ[variable] = found
        task.compile_()
