"""Checkpoints that are whole or not there: written under another name, checked by a manifest."""

import hashlib
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unveil.config import UnveilError
from unveil.engine.disk import free_space, is_out_of_space, readable_size, sync_folder, write_atomically
from unveil.engine.parallel import Parallel

if TYPE_CHECKING:
    from unveil.engine.pieces import Pieces

log = logging.getLogger(__name__)

WEIGHTS, AVERAGED, TRAINING, MANIFEST = "model.safetensors", "model_ema.safetensors", "training.json", "manifest.json"
OPTIMIZER = "optimizer.safetensors"
"""Cut into parts, with the numbers of the processes in their names."""
FORMAT = 3
ALONE = Parallel(torch.device("cpu"))

Described = dict[str, dict[str, Any]]
"""Size and checksum of files, by name."""


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run. Its tensors are read when they are asked for."""

    step: int
    """Completed steps."""
    weights: "Pieces"
    averaged: "Pieces | None"
    """The same names as `weights`, with a running average of them; None in a run that keeps none."""
    optimizer: "Pieces"
    """Moments, under "parameter/moment"."""
    training: dict[str, Any]
    """Loss scale, counters."""


class CheckpointFolder:
    """`step_00001000/` holding `model.safetensors`, `optimizer_*.safetensors`, `training.json` and `manifest.json`.

    The manifest has sizes and checksums. Runs that average their weights have `model_ema.safetensors` beside them. Each
    process that keeps a part of the optimizer's state has written a file of it: see `unveil.engine.pieces`.

    Making one touches no disk, so that a run may be read while another process writes it.
    """

    def __init__(self, path: Path, keep_last: int = 2) -> None:
        self.path = path
        self.keep_last = keep_last

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or torn, oldest first."""
        found = [re.fullmatch(r"step_(\d+)", entry.name) for entry in self.path.glob("step_*")]
        return sorted(int(match[1]) for match in found if match)

    def folder(self, step: int) -> Path:
        """Where the checkpoint of `step` is."""
        return self.path / f"step_{step:08d}"

    def sweep(self) -> None:
        """Remove what a process that was killed left behind. Only for the one that owns the run."""
        for left_over in self.path.glob(".*_step_*"):
            shutil.rmtree(left_over)

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        training: dict[str, Any],
        averaged: Mapping[str, Tensor] | None = None,
        optimizer: Mapping[str, Tensor] | None = None,
        *,
        parallel: Parallel = ALONE,
    ) -> Path:
        """Write a checkpoint, then drop those beyond the last `keep_last`.

        Every process calls it, with what it has to write (`own_copies`) of the same states, and learns if any failed.

        Args:
            training: as JSON values; the main process's is kept.

        Raises:
            UnveilError: the disk is full or refuses. Nothing half-written stays, and those from before are untouched.
        """
        from unveil.engine.pieces import join, write

        temporary = self.path / f".writing_step_{step:08d}"
        given = {WEIGHTS: weights, AVERAGED: averaged, OPTIMIZER: optimizer}
        states = {file: state for file, state in given.items() if state is not None}
        size = sum(tensor.nbytes for state in states.values() for tensor in state.values())

        def begin() -> None:
            with self._writing(step, WEIGHTS, size):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)

        def write_own() -> Described:
            own = {file: temporary / _part(file, f"{parallel.rank:05d}") for file in states}
            for file, state in states.items():
                with self._writing(step, file, size):
                    write(state, own[file], parallel)
            # Not before all is written, for which the processes need one another.
            entries: Described = {}
            for file, part in own.items():
                if part.exists():
                    with self._writing(step, file, size):
                        entries[part.name] = _sync_and_describe(part)
            return entries

        def unite(file: str) -> None:
            """Make one file of the processes' parts of it."""
            match sorted(temporary.glob(_part(file, "[0-9]*"))):
                case []:
                    pass
                case [only]:
                    only.rename(temporary / file)
                    entries[file] = entries.pop(only.name)
                case parts:
                    join(parts, temporary / file)
                    for part in parts:
                        part.unlink()
                        del entries[part.name]
                    entries[file] = _sync_and_describe(temporary / file)

        def complete() -> None:
            for file in (WEIGHTS, AVERAGED):
                with self._writing(step, file, size):
                    unite(file)
            with self._writing(step, TRAINING, size):
                write_atomically(temporary / TRAINING, json.dumps(training) + "\n")
                entries[TRAINING] = _sync_and_describe(temporary / TRAINING)
            with self._writing(step, MANIFEST, size):
                versions = {"python": platform.python_version(), "torch": torch.__version__}
                manifest = {"format": FORMAT, "step": step, "files": entries, "versions": versions}
                write_atomically(temporary / MANIFEST, json.dumps(manifest, indent=2) + "\n")
                before = [kept for kept in self.steps() if kept < step]
                if self.folder(step).exists():
                    # Only a torn checkpoint is ever written again: a whole one would have been resumed from.
                    self._drop(step)
                os.replace(temporary, self.folder(step))
                sync_folder(self.path)
            # Later ones belong to a course that was given up when the run resumed from before them.
            for dropped in [kept for kept in self.steps() if kept > step] + [*before, step][: -self.keep_last]:
                self._drop(dropped)

        try:
            parallel.on_main(begin)
            entries = {name: entry for written in parallel.on_all(write_own) for name, entry in written.items()}
            parallel.on_main(complete)
        except BaseException:
            if parallel.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return self.folder(step)

    def latest_whole(self) -> int | None:
        """The newest step whose files are as its manifest says, None if there is none at all.

        Torn ones are named in a warning, and the one before is taken.

        Raises:
            UnveilError: all are torn, or the newest is another version's. Starting over is left to a person, since it
                would write over them.
        """
        steps = self.steps()
        for step in reversed(steps):
            fault = self._fault(step)
            if fault is None:
                return step
            log.warning("checkpoint %s is not whole (%s); looking at the one before it", self.folder(step), fault)
        if steps:
            raise UnveilError(
                f"no checkpoint in {self.path} is whole; restore one, or delete that folder to start from the beginning"
            )
        return None

    def load(self, step: int) -> Checkpoint:
        """One checkpoint, not checked again."""
        from unveil.engine.pieces import Pieces

        folder = self.folder(step)
        averaged = Pieces(folder, AVERAGED) if (folder / AVERAGED).exists() else None
        training = json.loads((folder / TRAINING).read_text())
        return Checkpoint(step, Pieces(folder, WEIGHTS), averaged, Pieces(folder, _part(OPTIMIZER, "[0-9]*")), training)

    def load_latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None if there is none."""
        step = self.latest_whole()
        return None if step is None else self.load(step)

    @contextmanager
    def _writing(self, step: int, file: str, size: int) -> Iterator[None]:
        """Inside the block a file of the checkpoint is written, of which this process has `size` bytes.

        Raises:
            UnveilError: the disk is full or refuses.
        """
        try:
            yield
        except BaseException as error:
            no_space = is_out_of_space(error)
            if not no_space and not isinstance(error, OSError):
                raise
            free = free_space(self.path)
            before = [kept for kept in self.steps() if kept < step]
            whole = next((kept for kept in reversed(before) if self._fault(kept) is None), None)
            earlier = "There is no earlier one" if whole is None else f"The checkpoint of step {whole} is intact"
            raise UnveilError(
                f"{'no space left while writing' if no_space else f'the disk refuses ({error})'} "
                f"{self.folder(step).name}/{file} in {self.path}: a checkpoint needs about {readable_size(size)}, "
                f"{free} are free. {earlier}; {'free some space' if no_space else 'mend that'} and run the same "
                "command again"
            ) from error

    def _drop(self, step: int) -> None:
        # Renamed first, so that a kill half-way leaves no half checkpoint under a good name.
        aside = self.path / f".dropped_step_{step:08d}"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.folder(step), aside)
        shutil.rmtree(aside)

    def _fault(self, step: int) -> str | None:
        folder = self.folder(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest["format"] != FORMAT:
                raise UnveilError(
                    f"{folder} was written by another version of unveil, and this one cannot go on from it: go on with "
                    "that version, or start a new run from these weights (--init-from, and another --out)"
                )
            files = manifest["files"]
            for name in {WEIGHTS: {}, TRAINING: {}} | files:
                path = folder / name
                if not path.exists():
                    return f"{name} is missing"
                if path.stat().st_size != files[name]["bytes"]:
                    return f"{name} has {path.stat().st_size} of {files[name]['bytes']} bytes"
                if _checksum(path) != files[name]["sha256"]:
                    return f"{name} was altered"
        except FileNotFoundError:
            return f"{MANIFEST} is missing"
        except (ValueError, KeyError, TypeError):
            return f"{MANIFEST} is not readable"
        return None


def _part(file: str, number: str) -> str:
    """The name of one process's part of a file."""
    return f"{Path(file).stem}_{number}{Path(file).suffix}"


def _sync_and_describe(path: Path) -> dict[str, Any]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": path.stat().st_size, "sha256": _checksum(path)}


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
