"""Generated code, and kernels whose results do not vary."""

import logging
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from unveil.engine.task import Task

log = logging.getLogger(__name__)


def use_deterministic_kernels() -> None:
    """From here on, CUDA operations with several algorithms take one whose result does not vary.

    Call it before the first GPU work of the process: cuBLAS reads its setting once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def compile_task(task: Task, device: torch.device, *, sharded: bool = False) -> None:
    """Compile the task, or say why it stays as it is: generated code needs a compiler to become a program.

    Args:
        sharded: compile its units, each by itself.
    """
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
        if sharded:
            # Compiled code can hold neither the gathering of a unit's weights nor their return, which are around it.
            for unit in task.shard_units():
                unit.forward = torch.compile(unit.forward, dynamic=False)
        else:
            task.compile_()
