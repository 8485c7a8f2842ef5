"""Features of all images of a source in one file: computed part by part, so that an interrupted one goes on."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unveil.build.embedding_file import Part, check_out, write_joined
from unveil.build.image_batches import PlainView, image_batches
from unveil.config import UnveilError
from unveil.config.serialize import flatten
from unveil.data.sources.base import Source
from unveil.engine.disk import needing_space, read_json, write_json

PART_BYTES, PART_SECONDS = 32 * 2**20, 30.0
"""A part is written when it is that large, or that much work: more is neither held in memory nor lost."""

SETTINGS = "settings.json"

Extract = Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b *shape"]]
"""What is wanted of each image, on the processor."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What was written."""

    count: int
    shape: tuple[int, ...]
    """Of one image's features."""
    unreadable: dict[str, str]
    """Name and reason of every image that was left out."""


def embed(
    source: Source,
    extract: Extract,
    out: Path,
    *,
    view: PlainView,
    shape: tuple[int, ...],
    settings: dict[str, Any],
    half: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Embedded:
    """Write the features of every image that can be read into `out`, a .npz or .parquet.

    Parts are kept in `out`.parts/ until all are there, so the same call goes on after an interruption, and gives the
    same file as one that was never interrupted.

    Args:
        shape: of one image's features.
        settings: JSON values that describe `extract`: with others, a started embedding is not continued.
        half: write float16 instead of float32.
        on_progress: called with images done and in all.

    Raises:
        UnveilError: nothing can be read, `out` cannot be written, or was started with other settings or images.
    """
    check_out(out, overwrite=overwrite)
    described = {
        **settings,
        **view.settings(),
        "half": half,
        "batch_size": batch_size,
        "images": source.digest(),
    }
    folder = out.with_name(f"{out.name}.parts")
    parts = _started(folder, described, out)
    dtype = np.float16 if half else np.float32
    # Whole batches from where the last part ends: the very batches of an embedding that was not interrupted.
    start = parts[-1].stop() if parts else 0
    loader = image_batches(source, view, batch_size=batch_size, workers=workers, start=start)
    known = {name for part in parts for name in part.unreadable()}
    done, saved = start, time.monotonic()
    features, names = [np.zeros((0, *shape), dtype)], list[str]()
    for batch in loader:
        valid = batch["valid"]
        if valid.any():
            features.append(extract(batch["image"][valid]).numpy().astype(dtype))
            names += [name for name, is_there in zip(batch["names"], valid.tolist(), strict=True) if is_there]
        done = min(done + batch_size, len(source))
        if on_progress is not None:
            on_progress(done, len(source))
        full = sum(piece.nbytes for piece in features) >= PART_BYTES or time.monotonic() - saved >= PART_SECONDS
        if full or done == len(source):
            unreadable = {name: reason for name, reason in loader.unreadable.items() if name not in known}
            known |= unreadable.keys()
            part = Part(folder, len(parts))
            with needing_space(folder):
                part.save(np.concatenate(features), names, unreadable, stop=done)
            parts.append(part)
            features, names, saved = [np.zeros((0, *shape), dtype)], [], time.monotonic()
    with needing_space(out):
        count = write_joined(out, parts, shape=shape, dtype=dtype, notes=settings)
    left_out = {name: reason for part in parts for name, reason in part.unreadable().items()}
    shutil.rmtree(folder)
    return Embedded(count=count, shape=shape, unreadable=left_out)


def weights_digest(network: nn.Module) -> str:
    """SHA-256 over the names and values of all weights, in hexadecimal."""
    hasher = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        hasher.update(name.encode())
        hasher.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def _started(folder: Path, described: dict[str, Any], out: Path) -> list[Part]:
    """The parts that are there already, in a folder that is ready for more.

    Raises:
        UnveilError: they are of something else.
    """
    described = json.loads(json.dumps(described))
    numbers = sorted(int(file.stem.removeprefix("part_")) for file in folder.glob("part_*.npz"))
    if numbers:
        before, now = flatten(read_json(folder / SETTINGS)), flatten(described)
        differing = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        if differing:
            raise UnveilError(
                f"{folder} holds the beginning of an embedding with other {_named(differing, before, now)}; give "
                "another --out, or delete that folder to start again"
            )
        whole = next((place for place, number in enumerate(numbers) if place != number), len(numbers))
        return [Part(folder, number) for number in range(whole)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnveilError(f"{out} cannot be written ({error.strerror}); give --out another place") from error
    if not os.access(folder, os.W_OK):
        raise UnveilError(f"{folder} cannot be written; give --out another place")
    write_json(folder / SETTINGS, described)
    return []


def _named(differing: list[str], before: dict[str, Any], now: dict[str, Any]) -> str:
    if all(name.startswith("images.") for name in differing):
        return "images"
    shown = [name for name in differing if not name.startswith("images.")]
    return "settings (" + ", ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in shown) + ")"
