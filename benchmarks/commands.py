"""For studies that are made of the commands that a person would type: each is run once, and its numbers are written."""

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run_once(folder: Path, *arguments: str) -> Path:
    """`unveil ARGUMENTS --out FOLDER`, printed and run if it has not been finished there; the folder.

    Raises:
        CalledProcessError: the command failed.
    """
    if not (folder / "finished").exists():
        command = ["unveil", *arguments, "--out", str(folder)]
        print(" ".join(command), flush=True)
        subprocess.run([sys.executable, "-m", "unveil.cli.main", *command[1:]], check=True, stdout=sys.stderr)
        (folder / "finished").touch()
    return folder


def mean_and_spread(values: Sequence[float], places: int = 3) -> str:
    """Mean and, of several, standard deviation."""
    spread = f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{places}f}{spread}"


def percent(shares: Sequence[float]) -> str:
    """The same of shares, as percentages."""
    return mean_and_spread([100 * share for share in shares], places=1)
