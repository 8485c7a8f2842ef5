"""Fresh processes for tests: quick to start, since torch is imported once, in the server that they are forked from."""

import multiprocessing
import os
import pickle
import queue
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch.distributed as dist

from unveil.config import UnveilError

CONTEXT = multiprocessing.get_context("forkserver")
# The optimizer imports torch._dynamo at its first step, the others are imported where they are asked for.
CONTEXT.set_forkserver_preload(
    ["unveil.engine.sharding", "unveil.engine.pieces", "torch.distributed.optim", "torch._dynamo"]
)
SECONDS = 240


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that runs the function, which must stand at the top of a module."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    return process


def together(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run the function in `count` processes with torchrun's environment; their answers or UnveilErrors, by rank.

    Anything else that a process raises fails the test with its traceback.
    """
    # As under torchrun, which keeps the place where processes meet: a port that is only picked here may be somebody
    # else's when they come.
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    answers = CONTEXT.Queue()
    processes = [start(_run, rank, count, meeting.port, answers, function, arguments) for rank in range(count)]
    found: dict[int, Any] = {}
    deadline = time.monotonic() + SECONDS
    alive = True
    try:
        # Before they are joined: a process whose answer fills the pipe does not end until somebody reads it.
        while len(found) < count and alive and time.monotonic() < deadline:
            alive = any(process.is_alive() for process in processes)
            try:
                rank, answer, failure = pickle.loads(answers.get(timeout=0.5))
            except queue.Empty:
                continue
            assert failure is None, f"process {rank}: {failure}"
            found[rank] = answer
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        hanging = [process for process in processes if process.is_alive()]
        for process in hanging:
            process.kill()
    assert not hanging, "processes wait for one another"
    return [found[rank] for rank in range(count)]


def _run(rank: int, count: int, port: int, answers: Any, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    try:
        answer, failure = function(*arguments), None
    except UnveilError as error:
        answer, failure = error, None
    except Exception:
        answer, failure = None, traceback.format_exc()
    # A queue would send tensors as handles of memory that is gone with this process.
    answers.put(pickle.dumps((rank, answer, failure)))
