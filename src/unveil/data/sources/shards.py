"""WebDataset tars, read at random through an index of where each image lies."""

import io
import json
import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.decode import decode_image
from unveil.data.remote.store import is_remote
from unveil.data.remote.tars import open_tars
from unveil.data.sources.base import Encoded, Sample, Stamp, UnreadableSample
from unveil.data.sources.caption_text import LeftOut, captions_in_json, captions_in_text
from unveil.data.sources.index_file import Row, TarIndex
from unveil.data.sources.tar_index import read_tar_index

logger = logging.getLogger(__name__)

OPEN_FILES = 64
"""Most tars that one process keeps open."""

LABEL_FIELDS = ("label", "cls")
"""Of a sample's .json, in this order; the first that is there must be an integer."""


class ShardSource:
    """Every image of some tars, tar after tar, in their order.

    A tar that was cut off gives its whole images, and one warning says so. The indices are kept beside the tars where
    those folders can be written to.

    Args:
        paths: the tars; files, or addresses in object storage (see `data.remote`).
        labelled: a sample's label is the number in its .cls member, or in its .json one.
        captioned: a sample's captions are its .txt member, or the text or texts in its .json one (see
            `caption_text`); it has none where there are none to be used.
        shortest_side: see `decode_image`.
        on_progress: called with the number of images found so far, once for each tar.

    Raises:
        UnveilError: a tar that is none, has no whole image, or, where labels are asked for, an image without one; while
            reading, a store that does not answer.
    """

    classes = None

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        labelled: bool = False,
        captioned: bool = False,
        shortest_side: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        if not paths:
            raise UnveilError("no tar was given")
        self.paths = tuple(os.fspath(path) for path in paths)
        self.labelled = labelled
        self.captioned = captioned
        self.shortest_side = shortest_side
        self._indices: list[TarIndex] = []
        addresses = [path for path in self.paths if is_remote(path)]
        opened = dict(zip(addresses, open_tars(addresses, on_progress), strict=True)) if addresses else {}
        self._remote = {path: tar for path, (tar, _) in opened.items()}
        count = 0
        for path in self.paths:
            index = opened[path][1] if path in opened else read_tar_index(path)
            if index.loss:
                logger.warning(
                    "%s is cut off or damaged (%s): its %d whole images are used; copy it again",
                    path,
                    index.loss,
                    len(index),
                )
            if labelled and index.unlabelled:
                raise UnveilError(
                    f"{path}: {index.unlabelled} has neither a .cls nor a .json beside it, so that it has no label"
                )
            self._indices.append(index)
            count += len(index)
            if on_progress is not None:
                on_progress(count)
        self._ends = list(accumulate(len(index) for index in self._indices))
        self._files = _OpenFiles()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the member cannot be decoded."""
        found = self.encoded(index)
        image = decode_image(found.data, found.name, self.shortest_side)
        return Sample(image, found.name, found.label, index, found.captions)

    def encoded(self, index: int) -> Encoded:
        """Raises UnreadableSample where the tar cannot be read."""
        shard, row, name = self._find(index)
        data = self._read(shard, row.offset, row.size, name)
        label = self._label(shard, row, name) if self.labelled else None
        captions = self._captions(shard, row, name) if self.captioned else ()
        return Encoded(data, name, label, captions)

    def stamp(self, index: int) -> Stamp:
        shard, row, name = self._find(index)
        path = self.paths[shard]
        try:
            remote = self._remote.get(path)
            modified = os.stat(path).st_mtime_ns if remote is None else remote.said.modified
        except OSError:
            return Stamp(name, -1, -1)
        return Stamp(name, row.size, modified)

    def captions(self, index: int) -> tuple[str, ...]:
        """Of one sample, without decoding its image.

        Raises:
            UnreadableSample: the tar cannot be read.
        """
        return self._captions(*self._find(index))

    def caption_counts(self) -> np.ndarray:
        """Int32 number of captions of every sample, without reading one."""
        return np.concatenate([index.table()["caption_count"].astype(np.int64) for index in self._indices])

    def left_out(self) -> LeftOut:
        """What of the tars is no image with a caption."""
        left_out = LeftOut()
        for path, index in zip(self.paths, self._indices, strict=True):
            left_out.merge(index.left_out, f"{_shown(os.fsencode(path))}:")
        return left_out

    def labels(self) -> np.ndarray | None:
        """Int64 label of every sample, read without decoding an image; None where there are none.

        Raises:
            UnveilError: a label that is no integer, or cannot be read.
        """
        if not self.labelled:
            return None
        try:
            return np.array([self._label(*self._find(place)) for place in range(len(self))], dtype=np.int64)
        except UnreadableSample as error:
            raise UnveilError(f"the label of {error} cannot be read; check the disk") from None

    def digest(self) -> dict[str, dict[str, Any]]:
        """By tar, its path relative to the folder that all of them share, so that this folder may move.

        The hash covers the captions, where they are asked for.
        """
        shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in self.paths])
        parts = {}
        for path, index in zip(self.paths, self._indices, strict=True):
            digest = index.captioned_digest if self.captioned else index.digest
            key = os.path.relpath(os.path.abspath(path), shared)
            parts[_shown(os.fsencode(key))] = {"count": len(index), "sha256": digest}
        return parts

    def _find(self, index: int) -> tuple[int, Row, str]:
        """Number of the tar, row of its index, and name."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        columns = self._indices[shard]
        row = columns.row(index - (self._ends[shard] - len(columns)))
        return shard, row, f"{_shown(os.fsencode(self.paths[shard]))}:{_shown(columns.name(row))}"

    def _read(self, shard: int, offset: int, size: int, name: str) -> bytes:
        path = self.paths[shard]
        if path in self._remote:
            return self._remote[path].read(offset, size)
        try:
            file = self._files.get(path)
            file.seek(offset)
            data = file.read(size)
        except OSError as error:
            raise UnreadableSample(name, error.strerror or str(error)) from None
        if len(data) < size:
            raise UnreadableSample(name, "the tar has become shorter since it was opened")
        return data

    def _label(self, shard: int, row: Row, name: str) -> int:
        text = self._read(shard, row.label_offset, row.label_size, name)
        try:
            if not row.label_is_json:
                return int(text)
            fields = json.loads(text)
            return int(next(fields[field] for field in LABEL_FIELDS if field in fields))
        except (ValueError, TypeError, StopIteration):
            wanted = f"an integer in {' or '.join(LABEL_FIELDS)}" if row.label_is_json else "an integer"
            raise UnveilError(f"the label of {name} is not {wanted}: {text[:60]!r}") from None

    def _captions(self, shard: int, row: Row, name: str) -> tuple[str, ...]:
        if not row.caption_count:
            return ()
        data = self._read(shard, row.text_offset, row.text_size, name)
        captions, _ = captions_in_json(data) if row.text_is_json else captions_in_text(data)
        return tuple(captions)


class _OpenFiles:
    """Open tars of this process. A forked or unpickled copy opens its own: a shared one would share its position."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._files: OrderedDict[str, io.FileIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_process": 0, "_files": OrderedDict()}

    def get(self, path: str) -> io.FileIO:
        if self._process != os.getpid():
            self._process, self._files = os.getpid(), OrderedDict()
        file = self._files.pop(path, None)
        if file is None:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            file = io.FileIO(path)
        self._files[path] = file
        return file


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
