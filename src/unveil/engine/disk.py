"""Writing so that a full disk or a sudden end leaves nothing half-written behind."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unveil.config import UnveilError

# EFBIG: a limit on file size (ulimit -f) is one more way of having no space.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_out_of_space(error: BaseException) -> bool:
    """Whether the error, or one that it came from, says that the disk or the quota is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in NO_SPACE:
            return True
        # safetensors writes in Rust and hands the number on in its text only.
        number = re.search(r"os error (\d+)", str(seen))
        if number and int(number[1]) in NO_SPACE:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextmanager
def needing_space(path: Path) -> Iterator[None]:
    """Inside the block `path` is written.

    Raises:
        UnveilError: there is no space for it.
    """
    try:
        yield
    except OSError as error:
        if not is_out_of_space(error):
            raise
        raise UnveilError(
            f"no space left while writing {path} ({free_space(path)} are free): "
            "free some and run the same command again"
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Replace the file in one go: whoever reads it finds the old text or the new one."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically.

    Raises:
        UnveilError: there is no space for it.
    """
    with needing_space(path):
        write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote.

    Raises:
        UnveilError: it is not there or not whole.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnveilError(f"{path} cannot be read ({error}); restore it, or give --out another folder") from error


def cache_folder() -> Path:
    """Where this user's programs keep what can be computed again: XDG_CACHE_HOME, or ~/.cache."""
    place = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(place) if os.path.isabs(place) else Path.home() / ".cache") / "unveil"


def sync_folder(path: Path) -> None:
    """Make renames in the folder outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_space(path: Path) -> str:
    """Free space of the disk that holds `path`, for people."""
    while not path.exists():
        path = path.parent
    return readable_size(shutil.disk_usage(path).free)


def readable_size(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
