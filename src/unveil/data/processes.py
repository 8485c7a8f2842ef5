"""The same work on many numbered tasks, by several processes."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from typing import TypeVar

from unveil.config.errors import UnveilError

T = TypeVar("T")

LOOK_EVERY = 0.5
"""Seconds between looks of a worker at whether the process that started it is still there."""


def usual_workers() -> int:
    """One for each core that this process may use; none where that is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if cores > 1 else 0


def in_processes(work: Callable[[int], T], tasks: Sequence[int], workers: int) -> Iterator[tuple[int, T]]:
    """(task, what `work(task)` returns), in the order in which they are done.

    Worker k of n does tasks k, k + n, k + 2n, ... Workers end with the process that started them, however that ends.

    Args:
        workers: 0: this process does all.

    Raises:
        UnveilError: raised by `work`, or a worker was ended.
    """
    if workers == 0 or len(tasks) <= 1:
        for task in tasks:
            yield task, work(task)
        return
    context = get_context("fork" if sys.platform == "linux" else None)
    running: dict[connection.Connection, BaseProcess] = {}
    try:
        for number in range(min(workers, len(tasks))):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(work, tasks[number::workers], writer, os.getpid()))
            process.start()
            writer.close()
            running[reader] = process
        while running:
            for ready in connection.wait(list(running)):
                assert isinstance(ready, connection.Connection)
                try:
                    answer = ready.recv()
                except EOFError:
                    answer = UnveilError(
                        "a worker process was ended, usually for want of memory; try fewer --workers, the same command "
                        "goes on"
                    )
                if isinstance(answer, UnveilError):
                    raise answer
                if answer is None:
                    running.pop(ready).join()
                    continue
                yield answer
    finally:
        for left in running.values():
            left.kill()
        for left in running.values():
            left.join()


def _work(work: Callable[[int], T], tasks: Sequence[int], answers: connection.Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        for task in tasks:
            answers.send((task, work(task)))
        answers.send(None)
    except UnveilError as error:
        answers.send(error)
    except BrokenPipeError:
        pass


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os._exit(1)
