"""Runs that are ended in every way, and go on as if nothing had happened."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flows.commands import QUICK, Unveil, course, start

STEPS = 60
RUN = ("--steps", STEPS, "--checkpoint-every", 3, "--workers", 1, "--set", "engine.precision=fp32")
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a process that must succeed; what it wrote on stderr."""
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return err


def wait_for(step: int, run: Path, running: Callable[[], bool]) -> None:
    """Until the run's metrics hold the step."""
    file = run / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (file.exists() and f'"step": {step},' in file.read_text()):
        assert running() and time.monotonic() < deadline
        time.sleep(0.002)


def kill_at(step: int, run: Path, *command: object, launcher: tuple[str, ...] = ()) -> str:
    """Starts the command and at the step kills the process that writes the run; what the command wrote on stdout."""
    process = start(*command, launcher=launcher)
    wait_for(step, run, lambda: process.poll() is None)
    killed = kill_writer(run)
    assert launcher or killed == process.pid
    out, _ = process.communicate(timeout=120)
    assert process.returncode == (1 if launcher else -signal.SIGKILL)
    assert course(run)[-1][0] < STEPS
    return out


def kill_writer(run: Path) -> int:
    """Kills the process that writes the run, with its readers, which would end by themselves, but after seconds."""
    writer = re.match(r"process (\d+) ", (run / "lock").read_text())
    assert writer is not None
    os.killpg(os.getpgid(int(writer[1])), signal.SIGKILL)
    return int(writer[1])


def kill_other(run: Path, torchrun: int) -> None:
    """Kills the one of torchrun's two processes that does not write the run."""
    writer = re.match(r"process (\d+) ", (run / "lock").read_text())
    assert writer is not None
    both = [int(pid) for file in Path(f"/proc/{torchrun}/task").glob("*/children") for pid in file.read_text().split()]
    (other,) = set(both) - {int(writer[1])}
    assert len(both) == 2
    os.killpg(os.getpgid(other), signal.SIGKILL)


@pytest.fixture(scope="module")
def unbroken(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    finish(start("pretrain", photos, "--out", run, *QUICK, *RUN))
    assert [step for step, *_ in course(run)] == list(range(1, STEPS + 1))
    return run


@pytest.mark.slow
def test_killed_three_times_and_terminated_once_gives_the_same_course(
    photos: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("pretrain", photos, "--out", run, *QUICK, *RUN)
    for step in (7, 20, 31):
        kill_at(step, run, *command)

    process = start(*command)
    wait_for(38, run, lambda: process.poll() is None)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in err
    assert "stopping after this step and saving" in err
    last = int(course(run)[-1][0])
    assert 38 <= last < STEPS
    assert out.splitlines()[-1] == f"stopped and saved at step {last}; the same command goes on from there"

    assert f"going on after step {last}" in finish(start(*command))
    assert course(run) == course(unbroken)


def test_ctrl_c_saves_and_the_same_command_goes_on(photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    command = ("pretrain", photos, "--out", tmp_path / "run", *QUICK, *RUN, "--workers", 0)
    whole = ("pretrain", photos, "--out", tmp_path / "whole", *QUICK, *RUN, "--workers", 0)

    def press() -> None:
        wait_for(5, tmp_path / "run", lambda: True)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    stopped = unveil(*command)
    pressing.join()
    assert stopped.status == 130
    assert "Ctrl-C once more stops at once" in stopped.err
    last = int(course(tmp_path / "run")[-1][0])
    assert 5 <= last < STEPS
    assert f"stopped and saved at step {last}; the same command goes on from there" in stopped.out
    shown = unveil(*command, "--dry-run")
    assert f"run, going on after step {last}" in shown.out
    assert unveil(*command).status == unveil(*whole).status == 0
    assert course(tmp_path / "run") == course(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_go_on_as_one_with_other_workers(
    photos: Path, unbroken: Path, tmp_path: Path, unveil: Unveil
) -> None:
    run = tmp_path / "run"
    command = ("pretrain", photos, "--out", run, *QUICK, *RUN)
    out = kill_at(8, run, *command, launcher=TWO_PROCESSES)
    assert out.count("recipe      tiny_cpu") == 1 and "2 CPU processes x 4 x 1" in out
    assert unveil(*command, "--workers", 3).status == 0
    for ours, reference in zip(course(run), course(unbroken), strict=True):
        assert ours == pytest.approx(reference, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("parallel", "dies"), [("ddp", "writer"), ("zero1", "other"), ("fsdp", "writer")])
def test_torchrun_gives_the_command_again_when_a_process_dies(
    parallel: str, dies: str, photos: Path, unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("pretrain", photos, "--out", run, *QUICK, *RUN, "--parallel", parallel)
    process = start(*command, launcher=(*TWO_PROCESSES, "--max-restarts=1"))
    wait_for(8, run, lambda: process.poll() is None)
    if dies == "writer":
        kill_writer(run)
    else:
        kill_other(run, process.pid)
    finish(process)
    assert "going on after step" in (run / "log.txt").read_text()
    for ours, reference in zip(course(run), course(unbroken), strict=True):
        assert ours == pytest.approx(reference, abs=1e-5)
