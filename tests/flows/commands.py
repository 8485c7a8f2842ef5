"""Running the commands as a person does, and reading what they left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from unveil.cli.main import main

QUICK = ("--recipe", "tiny_cpu", "--teacher", "pixels", "--workers", 0, "--set", "engine.trackers=")
"""No timm, no TensorBoard, no other process: a run takes a second."""


class Answer(NamedTuple):
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What it printed as its error."""
        lines = [line for line in self.err.splitlines() if line.startswith("unveil: ")]
        assert len(lines) == 1, self.err
        return lines[0]


Unveil = Callable[..., Answer]


def start(*arguments: object, launcher: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    """Starts a command in a process, and a process group, of its own."""
    command = [sys.executable, *launcher, "-m", "unveil.cli.main", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True, **options
    )


def command_here(*arguments: str) -> int:
    """Runs a command in this process, as several started by hand do; its exit status."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def course(run: Path) -> list[tuple[float, ...]]:
    """What must be the same in two runs that do the same."""
    return [tuple(line[name] for name in ("step", "loss", "lr", "grad_norm")) for line in metrics(run)]


def save_photo(path: Path, number: int, size: tuple[int, int] = (48, 40)) -> None:
    """A small picture like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
