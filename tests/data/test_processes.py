"""Work by several processes: all of it, once; and what happens where one of them ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unveil.config import UnveilError
from unveil.data.processes import in_processes


@pytest.mark.parametrize("workers", [0, 1, 3, 20])
def test_every_task_is_done_once(workers: int) -> None:
    answers = sorted(in_processes(lambda task: task * task, range(3, 17), workers))
    assert answers == [(task, task * task) for task in range(3, 17)]


def test_the_error_of_a_worker_arrives_as_it_is() -> None:
    def work(task: int) -> int:
        if task == 4:
            raise UnveilError("four cannot be done")
        return task

    with pytest.raises(UnveilError, match="four cannot be done"):
        list(in_processes(work, range(6), 2))


def test_a_worker_that_is_killed_is_told() -> None:
    def work(task: int) -> int:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    with pytest.raises(UnveilError, match="a worker process was ended"):
        list(in_processes(work, range(6), 2))


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = (
        "import os, sys, time, pathlib\n"
        "from unveil.data.processes import in_processes\n"
        "def work(task):\n"
        "    pathlib.Path(sys.argv[1], str(os.getpid())).touch()\n"
        "    time.sleep(60)\n"
        "list(in_processes(work, range(2), 2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [int(name) for name in os.listdir(tmp_path)]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    while any(_runs(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(worker) for worker in workers)


def _runs(process: int) -> bool:
    """Whether it is there and no zombie, which waits for its new parent."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
