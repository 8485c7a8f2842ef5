"""Several processes as one: set-up from torchrun's environment, wrapping, sums over all processes."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from unveil.config import EngineConfig, UnveilError
from unveil.engine.task import Batch, Task

Answer = TypeVar("Answer")

SECONDS_TO_FIND_OUT = 3.0
"""Between the first process that finds another one missing and the last."""
WRITING = 4
"""A checkpoint may keep the others waiting so many times as long as anything else."""


@runtime_checkable
class Exchanging(Protocol):
    """A task that averages its gradients over the processes as it goes backward."""

    def __call__(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]: ...

    def no_sync(self) -> AbstractContextManager:
        """Backward passes inside it keep their gradients to themselves."""
        ...


@dataclass(frozen=True)
class Parallel:
    """This process among the others. Made by `Parallel.start`; without torchrun it is the only one."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    """The line on which this object's exchanges run; None = torch's own."""
    background: dist.ProcessGroup | None = None
    """A second one, on the processors' network."""
    store: dist.Store | None = None
    """Where they have found one another."""

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
        found, rank, _ = next(rendezvous("env://", timeout=timeout))
        store = _of_this_attempt(found)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=chosen if kind == "cuda" else None,
        )
        background = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=WRITING * timeout))
        try:
            parallel = Parallel(chosen, rank, world_size, background=background, store=store)
            with parallel.naming():
                yield parallel
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

    def aside(self) -> "Parallel":
        """The same processes on their second line, for a thread: its exchanges must not mix with those of training."""
        return replace(self, group=self.background)

    def wait_at_most(self, minutes: float) -> None:
        """How long this process waits for the others from now on; while a checkpoint is written, `WRITING` times so
        long. (Until this is called 15 minutes.)"""
        if self.world_size > 1:
            set_timeout(timedelta(minutes=minutes), None)
            set_timeout(WRITING * timedelta(minutes=minutes), self.background)

    def shards(self, settings: EngineConfig) -> bool:
        """Whether the weights are divided among the processes."""
        return settings.parallel == "fsdp" and self.world_size > 1

    def divides_optimizer(self, settings: EngineConfig) -> bool:
        """Whether the optimizer's state is, while the weights are not."""
        return settings.parallel == "zero1" and self.world_size > 1

    def wrap(self, task: Task, settings: EngineConfig) -> Callable[[Batch], dict[str, tuple[Tensor, Tensor]]]:
        """The task as it is to be called in training: gradients are averaged over the processes in its backward.

        All processes have the first one's weights from then on, and wait for the others as long as the settings say.
        Under fsdp the parameters are replaced by their pieces: build the optimizer from the task afterwards.

        Raises:
            UnveilError: a task or a group that cannot be sharded.
        """
        if self.world_size == 1:
            return task
        self.wait_at_most(settings.timeout_minutes)
        if self.shards(settings):
            from unveil.engine.sharding import Sharded

            group, timeout = settings.shard_group or self.world_size, timedelta(minutes=settings.timeout_minutes)
            return Sharded(task, self.device, group=group, reshard=settings.reshard_after_forward, timeout=timeout)
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            cast(nn.Module, task), device_ids=[self.device.index] if on_gpu else None, gradient_as_bucket_view=True
        )

    def gradients_combined(self, module: Callable[..., Any], *, now: bool) -> AbstractContextManager:
        """A backward pass inside it exchanges gradients with the other processes, or, if not `now`, keeps them here."""
        return nullcontext() if now or not isinstance(module, Exchanging) else module.no_sync()

    @contextmanager
    def naming(self, place: Callable[[], str] = str) -> Iterator[None]:
        """Say who waited, and at which place, when an exchange with the other processes fails inside the block.

        Raises:
            UnveilError: another process has died, or did not come in time. (NCCL's own watchdog ends a process of
                GPUs before it comes to that, and names its rank and the exchange.)
        """
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not lost_others(error):
                raise
            reason = str(error).partition("\n")[0]
            silent = " and ".join(f"process {rank}" for rank in self._silent()) or "the others"
            raise UnveilError(
                f"process {self.rank} of {self.world_size} lost {silent}{place()}: dead, or hanging ({reason}). The "
                "same command goes on from the last checkpoint; torchrun --max-restarts gives it by itself"
            ) from error

    def _silent(self) -> list[int]:
        """The ranks of those that have not, like this process and shortly after it, found that somebody is missing."""
        assert self.store is not None
        try:
            self.store.set(f"waits in vain: {self.rank}", "")
            time.sleep(SECONDS_TO_FIND_OUT)
            return [rank for rank in range(self.world_size) if not self.store.check([f"waits in vain: {rank}"])]
        except RuntimeError:
            # It was with the process that died.
            return []

    def sum_(self, tensors: Tensor | dict[str, Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.world_size == 1:
            return
        for tensor in [tensors] if isinstance(tensors, Tensor) else tensors.values():
            dist.all_reduce(tensor, group=self.group)

    def gather(self, value: Answer) -> list[Answer]:
        """Every process's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
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
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def on_all(self, action: Callable[[], Answer]) -> list[Answer]:
        """Let every process act; all get all answers, by rank, which must be picklable.

        Raises:
            UnveilError: on every process, if the action raised it on any.
        """
        outcome: list[Any] = [None, None]
        try:
            outcome[0] = action()
        except UnveilError as error:
            outcome[1] = error
        outcomes = self.gather(outcome)
        failure = next((error for _, error in outcomes if error is not None), None)
        if failure is not None:
            raise failure
        return [answer for answer, _ in outcomes]


def lost_others(error: BaseException) -> bool:
    """Whether it is that of an exchange to which another process did not come."""
    told = isinstance(error, dist.DistError) or "gloo" in str(error).partition("\n")[0]
    return isinstance(error, RuntimeError) and told


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds some rows of it only. Where no tensor is so, torch's module for them is not loaded."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _of_this_attempt(store: dist.Store) -> dist.Store:
    """The place where processes find one another, without what those of an earlier attempt have left there.

    torchrun gives the processes that it starts again the same place, in which the addresses of the dead still are. On
    one machine it tells which attempt this is; several machines count their own.

    Raises:
        UnveilError: torchrun may start processes again on several machines.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1" and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise UnveilError(
            "torchrun --max-restarts on several machines would lead processes that it starts again to dead ones; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, on every machine"
        )
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def set_timeout(timeout: timedelta, group: dist.ProcessGroup | None) -> None:
    """How long exchanges in the group (None = that of all) wait from now on."""
    # Before torch 2.14 it has another name.
    change = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    change(timeout, group)
