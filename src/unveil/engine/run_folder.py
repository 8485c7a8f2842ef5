"""One run's folder: what it is, what it saw, what it wrote; reopened by the same command."""

import fcntl
import json
import logging
import os
import platform
import socket
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch

from unveil.config import UnveilError
from unveil.config.serialize import flatten
from unveil.engine.checkpoint import CheckpointFolder
from unveil.engine.disk import needing_space, read_json, write_json
from unveil.engine.parallel import Parallel

log = logging.getLogger(__name__)

NOTHING: Mapping[str, Any] = MappingProxyType({})
OURS = {"config.json", "data.json", "environment.json", "log.txt", "metrics.jsonl", "checkpoints", "lock"}


class RunFolder:
    """`config.json`, `data.json`, `environment.json`, `log.txt`, `metrics.jsonl`, `checkpoints/`.

    Every process has one; only the main process writes. Use it in a `with` block: leaving it gives the lock back.
    """

    def __init__(self, path: Path, *, keep_last: int = 2) -> None:
        self.path = path
        self.checkpoints = CheckpointFolder(path / "checkpoints", keep_last)
        self._lock: IO[str] | None = None
        self._log_handlers: list[logging.Handler] = []

    @staticmethod
    def open(
        path: Path,
        *,
        config: dict[str, Any],
        data: dict[str, Any],
        parallel: Parallel,
        allowed_changes: Collection[str] = (),
        keep_last: int = 2,
        usual: Mapping[str, Any] = NOTHING,
    ) -> "RunFolder":
        """Make the folder of a new run, or reopen the one that this configuration and data belong to.

        Args:
            config: resolved, as JSON values.
            data: {"order": its name, "parts": {directory or tar: {"count", "sha256"}}}.
            allowed_changes: dotted names in `config`, or beginnings of them, that may differ from the folder's.
            usual: by dotted name, what a run had that was begun before these settings came into being.

        Raises:
            UnveilError: the folder holds something else, a run of another configuration or other data, or a run that
                another process is writing; or it cannot be written.
        """
        run = RunFolder(path, keep_last=keep_last)
        parallel.on_main(lambda: run._open(config, data, allowed_changes, usual, parallel))
        return run

    def __enter__(self) -> "RunFolder":  # typing.Self defeats the run-time check of types
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lock back and close the log."""
        for handler in self._log_handlers:
            logging.getLogger("unveil").removeHandler(handler)
            handler.close()
        self._log_handlers = []
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def config(self) -> dict[str, Any]:
        """The configuration that the run was made with."""
        return read_json(self.path / "config.json")

    def _open(
        self,
        config: dict[str, Any],
        data: dict[str, Any],
        allowed_changes: Collection[str],
        usual: Mapping[str, Any],
        parallel: Parallel,
    ) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            entries = {entry.name for entry in self.path.iterdir()}
            foreign = {name for name in entries - OURS if not name.endswith(".writing")}
            if "config.json" not in entries and foreign:
                raise UnveilError(
                    f"{self.path} is not empty and holds no run of unveil ({min(foreign)}, ...); "
                    "give --out a new or empty folder"
                )
            with needing_space(self.path):
                self._take_lock()
        except (FileExistsError, NotADirectoryError) as error:
            raise UnveilError(f"{self.path} is a file, not a folder; give --out another name") from error
        except PermissionError as error:
            raise UnveilError(f"{self.path} cannot be written ({error.strerror}); give --out another folder") from error
        try:
            environment = _environment(parallel)
            if "config.json" in entries:
                self._compare(config, data, allowed_changes, usual)
                self._start_log()
                self.checkpoints.sweep()
                before = read_json(self.path / "environment.json")
                changed = [
                    f"{key} {before.get(key)} -> {now}" for key, now in environment.items() if before.get(key) != now
                ]
                log.info("the run goes on%s", f" in another environment: {', '.join(changed)}" if changed else "")
            else:
                write_json(self.path / "data.json", data)
                write_json(self.path / "environment.json", environment)
                self._start_log()
                # Last, because its presence says that the folder is a run.
                write_json(self.path / "config.json", config)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        """Held by the operating system, which frees it when this process ends in any way; forked children hold none."""
        lock = (self.path / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise UnveilError(
                f"{self.path} is being written by {owner}; wait for it, or give --out another folder"
            ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        self._lock = lock

    def _compare(
        self,
        config: dict[str, Any],
        data: dict[str, Any],
        allowed_changes: Collection[str],
        usual: Mapping[str, Any],
    ) -> None:
        now = flatten(config)
        before = {name: value for name, value in usual.items() if name in now} | flatten(self.config())
        differing = [
            f"{name}: {_shown(before, name)} in the run, {_shown(now, name)} asked"
            for name in [*before, *(name for name in now if name not in before)]
            if before.get(name) != now.get(name)
            and not any(name == allowed or name.startswith(f"{allowed}.") for allowed in allowed_changes)
        ]
        if differing:
            raise UnveilError(
                f"{self.path} holds a run with another configuration ({'; '.join(differing)}). Give --out another "
                "folder to start a new run, or the original values to go on with this one"
            )
        known = read_json(self.path / "data.json")
        changes = data_changes(known, data)
        if changes:
            raise UnveilError(
                f"the data of {self.path} has changed since the run began ({'; '.join(changes)}), so it cannot go on "
                "exactly. Restore the data, or give --out another folder to start a new run"
            )

    def _start_log(self) -> None:
        logger = logging.getLogger("unveil")
        file = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._log_handlers = [file]
        if logging.lastResort is not None and not logger.hasHandlers():
            # Python shows warnings on the terminal only while nobody handles them; the file must not hide them.
            self._log_handlers.append(logging.lastResort)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
        for handler in self._log_handlers:
            logger.addHandler(handler)


def data_changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two contents of data.json, in words; nothing where parts only moved elsewhere."""
    changes = []
    if before["order"] != now["order"]:
        changes.append(f"the sample order is {now['order']}, it was {before['order']}")
    old, new = before["parts"], now["parts"]
    if list(old.values()) == list(new.values()):
        return changes
    changes += [f"{name} ({part['count']} samples) is gone" for name, part in old.items() if name not in new]
    changes += [f"{name} ({part['count']} samples) is new" for name, part in new.items() if name not in old]
    for name in old.keys() & new.keys():
        if old[name] != new[name]:
            difference = new[name]["count"] - old[name]["count"]
            words = (
                f"{abs(difference)} {'more' if difference > 0 else 'fewer'}" if difference else "as many, but others"
            )
            changes.append(f"{name} had {old[name]['count']} samples and has {new[name]['count']}: {words}")
    return changes or ["its parts come in another order"]


def _shown(leaves: dict[str, Any], name: str) -> str:
    return json.dumps(leaves[name]) if name in leaves else "nothing"


def _environment(parallel: Parallel) -> dict[str, Any]:
    on_gpu = parallel.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "unveil": _version("unveil"),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "timm": _version("timm"),
        "device": torch.cuda.get_device_name(parallel.device) if on_gpu else f"cpu ({torch.get_num_threads()} threads)",
        "processes": parallel.world_size,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
