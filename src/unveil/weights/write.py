"""Writing a file of weights in one go, with what is known about it."""

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unveil.config import UnveilError
from unveil.weights.infer import NOTES, columns_of, vision_of

SUFFIXES = (".safetensors", ".pt", ".pth")


def notes(known: dict[str, Any], *, layout: str, source: Path) -> dict[str, str]:
    """What a safetensors file says about itself in its header.

    Args:
        known: any of `KNOWN`, as JSON values; the model is one of them.
        layout: whose names the tensors have.
        source: the file that it was made from, whose name and checksum are noted; or the run, whose name is.
    """
    return {
        # Other libraries ask for this one before they open a file.
        "format": "pt",
        "layout": layout,
        **({} if columns_of(known["model"]) else {"heads": str(vision_of(known["model"]).heads)}),
        "source": source.name,
        **({"source_sha256": checksum(source)} if source.is_file() else {}),
    } | {NOTES + name: json.dumps(value) for name, value in known.items() if value is not None}


def check_target(path: Path, *, overwrite: bool) -> None:
    """Find out, before any work is done, whether `write_weights` will be able to.

    Raises:
        UnveilError: no suffix of a file of weights, something is there already, or no folder for it.
    """
    if path.suffix not in SUFFIXES:
        raise UnveilError(f"{path} must end in one of {', '.join(SUFFIXES)}, which says in what form to write")
    if path.is_dir():
        raise UnveilError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise UnveilError(f"{path} is there already; give --overwrite, or another name")
    if path.parent.exists() and not path.parent.is_dir():
        raise UnveilError(f"{path.parent} is a file, so nothing can be written in it; give another place")


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write `state` as safetensors with `metadata`, or as PyTorch's plain state dict: whole, or not at all.

    Raises:
        UnveilError: the disk is full or refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.writing")
    plain = {name: _alone(value) for name, value in state.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file(plain, temporary, metadata=metadata)
            _sort_metadata(temporary)
        else:
            torch.save(plain, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError | SafetensorError | RuntimeError):
            raise
        raise UnveilError(f"{path} could not be written ({error}); free some space or give another place") from error


@contextmanager
def workplace(folder: Path) -> Iterator[Path]:
    """A folder to write in, inside the final one (so that a rename moves what is complete), gone when the block ends.

    Raises:
        UnveilError: the disk is full or refuses.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    work = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".exporting_", dir=folder))
        yield work
    except OSError as error:
        raise UnveilError(f"{folder} cannot be written ({error}); give --out another place") from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        for parent in made:
            # Only what this export made and left empty.
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sort_metadata(file: Path) -> None:
    """safetensors writes it in an order drawn anew each time; equal weights shall be equal files."""
    with file.open("r+b") as content:
        (size,) = struct.unpack("<Q", content.read(8))
        header = json.loads(content.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # The same words take the same room; spaces behind them are the format's own padding.
        if len(text) <= size:
            content.seek(8)
            content.write(text.ljust(size))


def _alone(value: Tensor) -> Tensor:
    """The same values in a storage of their own: files hold whole storages."""
    value = value.detach().cpu().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
