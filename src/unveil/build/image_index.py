"""Features of images that are kept from search to search, so that only what is new has to be looked at."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unveil.build.embedding import PART_BYTES, PART_SECONDS
from unveil.build.embedding_file import Part
from unveil.build.image_batches import PreparedView, image_batches
from unveil.config import UnveilError
from unveil.data.decode import decode_image
from unveil.data.remote.store import is_remote
from unveil.data.sources.base import Stamped, UnreadableSample
from unveil.data.sources.shards import ShardSource
from unveil.data.sources.subset import SubsetSource
from unveil.engine.disk import needing_space
from unveil.tasks.contrastive.embedder import Embedder


@dataclass(frozen=True, kw_only=True)
class IndexedImages:
    """What can be searched."""

    names: Sequence[str]
    features: Float[Tensor, "n d"]
    """Unit vectors, float32."""
    new: int = 0
    """Images that had to be looked at."""
    unreadable: int = 0
    """Images that are left out."""


def index_folder(cache: Path, embedder: Embedder, paths: Sequence[str]) -> Path:
    """Where the features of these images in the eyes of this model are kept."""
    key = json.dumps([embedder.identity, *map(_absolute, paths)])
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32]


def index_images(
    source: Stamped,
    embedder: Embedder,
    folder: Path,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> IndexedImages:
    """The features of every image that can be read; of those that `folder` does not know yet, they are computed.

    An image is known by its absolute path, size and time of change. What is computed is written part by part, so that
    an interrupted search goes on where it was.

    Args:
        on_progress: called with new images done and in all.

    Raises:
        UnveilError: nothing can be read, or the folder cannot be written.
    """
    stamps = [source.stamp(place) for place in range(len(source))]
    keys = [json.dumps([_absolute(stamp.name), stamp.size, stamp.modified]) for stamp in stamps]
    parts = _parts(folder)
    known = [key for part in parts for key in part.paths().tolist()]
    features = [part.features() for part in parts]
    there = set(known)
    new = [place for place, key in enumerate(keys) if key not in there]
    unreadable: dict[str, str] = {}
    if new:
        writer = _Writer(folder, parts)
        loader = image_batches(
            SubsetSource(source, new),
            PreparedView(embedder.transform, embedder.image_size),
            batch_size=min(batch_size, len(new)),
            workers=workers,
        )
        try:
            for number, batch in enumerate(loader, start=1):
                valid = batch["valid"]
                if valid.any():
                    found = embedder.encode_images(batch["image"][valid]).numpy()
                    of_them = [keys[new[place]] for place in batch["indices"][valid].tolist()]
                    writer.add(found, of_them)
                    features.append(found)
                    known += of_them
                if on_progress is not None:
                    on_progress(min(number * loader.batch_size, len(new)), len(new))
        except UnveilError:
            # None of the new ones can be read, which the log has said of each: there may be others to search.
            if not there.intersection(keys) or len(loader.unreadable) < len(new):
                raise
        writer.flush()
        unreadable = loader.unreadable
    row_of = {key: row for row, key in enumerate(known)}
    places = [place for place, key in enumerate(keys) if key in row_of]
    table = np.concatenate(features)[[row_of[keys[place]] for place in places]]
    if new and len(parts) > 1:
        _merge(folder, parts, table, [keys[place] for place in places])
    return IndexedImages(
        names=[stamps[place].name for place in places],
        features=torch.from_numpy(table),
        new=len(new) - len(unreadable),
        unreadable=len(unreadable),
    )


def find_picture(name: str) -> Image.Image | None:
    """The image that a source calls so, be it a file or in a tar; None where it cannot be read any more."""
    try:
        tar, ending, member = name.rpartition(".tar:")
        if os.path.isfile(name) or not member:
            return decode_image(name, name)
        source = ShardSource([tar + ending.removesuffix(":")])
        place = next((place for place in range(len(source)) if source.stamp(place).name == name), None)
        return None if place is None else source[place].image
    except (UnreadableSample, UnveilError):
        return None


class _Writer:
    """Adds parts to a folder."""

    def __init__(self, folder: Path, parts: list[Part]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnveilError(
                f"{folder} cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
            ) from error
        self._folder = folder
        self._parts = parts
        self._features: list[np.ndarray] = []
        self._keys: list[str] = []
        self._saved = time.monotonic()

    def add(self, features: np.ndarray, keys: list[str]) -> None:
        self._features.append(features)
        self._keys += keys
        full = sum(piece.nbytes for piece in self._features) >= PART_BYTES
        if full or time.monotonic() - self._saved >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has come since the last part."""
        if self._keys:
            number = self._parts[-1].number + 1 if self._parts else 0
            part = Part(self._folder, number)
            with needing_space(self._folder):
                part.save(np.concatenate(self._features), self._keys, {}, stop=0)
            self._parts.append(part)
        self._features, self._keys, self._saved = [], [], time.monotonic()


def _absolute(path: str) -> str:
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _parts(folder: Path) -> list[Part]:
    return [Part(folder, int(file.stem.removeprefix("part_"))) for file in sorted(folder.glob("part_*.npz"))]


def _merge(folder: Path, parts: list[Part], features: np.ndarray, keys: list[str]) -> None:
    """One part in the place of many, without images that are gone."""
    with needing_space(folder):
        Part(folder, parts[-1].number + 1).save(features, keys, {}, stop=0)
    for part in parts:
        part.file.unlink(missing_ok=True)
