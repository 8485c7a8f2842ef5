"""Image files with their captions, as tables, JSON lines and COCO's annotations list them."""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.decode import decode_image
from unveil.data.sources.base import Encoded, Sample, read_whole
from unveil.data.sources.caption_text import (
    CAPTION_NAMES,
    MISSING_IMAGE,
    NO_CAPTION,
    LeftOut,
    caption_field,
    usable_captions,
)
from unveil.data.sources.delimited import PATH_COLUMNS, read_pairs
from unveil.data.sources.missing import missing_path
from unveil.data.sources.scan import NameTable

PROGRESS_EVERY = 10_000


class Row(NamedTuple):
    """What a list says of one image; several rows may speak of the same."""

    where: str
    """For messages, such as "line 7"."""
    file: str
    """Relative to the list's folder of images, or absolute."""
    captions: Any
    """A text or a list of texts, as it was found."""


class CaptionedFiles:
    """The images of a list, in the order in which it names them first, each with all its captions.

    Images that do not exist or have no caption are left out and counted.

    Args:
        path: the list, for messages.
        folder: what the files are relative to.
        left_out: what was found before that cannot be used.
        shortest_side: see `decode_image`.
        on_progress: called with the number of rows read so far.

    Raises:
        UnveilError: no image with a caption.
    """

    def __init__(
        self,
        path: str,
        folder: str,
        rows: Iterable[Row],
        *,
        left_out: LeftOut | None = None,
        shortest_side: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.path = path
        self.folder = os.path.abspath(folder)
        self.shortest_side = shortest_side
        self._left_out = left_out or LeftOut()
        numbers: dict[str, int] = {}
        owners = array("q")
        self._texts = NameTable()
        for count, row in enumerate(rows, start=1):
            number = numbers.setdefault(row.file, len(numbers))
            captions, reasons = usable_captions(row.captions)
            for caption in captions:
                owners.append(number)
                self._texts.append(caption.encode())
            if not captions and not reasons:
                reasons = [NO_CAPTION]
            for reason in reasons:
                self._left_out.add(reason, f"{path}, {row.where}")
            if on_progress is not None and count % PROGRESS_EVERY == 0:
                on_progress(count)
        self._texts.freeze()
        self.images_found = len(numbers)
        """Named in the list."""
        self._keep(numbers, np.array(owners, dtype=np.int64))
        if on_progress is not None:
            on_progress(len(self))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the file cannot be decoded."""
        captions = self.captions(index)
        path, name = self._path(index)
        return Sample(decode_image(path, name, self.shortest_side), name, None, index, captions)

    def encoded(self, index: int) -> Encoded:
        """Raises UnreadableSample where the file cannot be read."""
        path, name = self._path(index)
        return Encoded(read_whole(path, name), name, None, self.captions(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """Of one image, without decoding it."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        own = self._order[self._starts[index] : self._ends[index]]
        return tuple(self._texts[place].decode() for place in own.tolist())

    def caption_count(self) -> int:
        """Of all images together."""
        return int((self._ends - self._starts).sum())

    def left_out(self) -> LeftOut:
        """What of the list is no image with a caption."""
        return self._left_out

    def digest(self) -> dict[str, dict[str, Any]]:
        """One part, the list: over its images' paths as they stand there, and captions."""
        hasher = hashlib.sha256()
        for values in (*self._files.arrays(), *self._texts.arrays(), self._order, self._starts, self._ends):
            hasher.update(f"{len(values)}\0".encode() + values.tobytes())
        return {os.path.basename(self.path): {"count": len(self), "sha256": hasher.hexdigest()}}

    def _path(self, index: int) -> tuple[str, str]:
        """To open, and to show."""
        path = os.path.join(self.folder, os.fsdecode(self._files[index]))
        return path, os.fsencode(path).decode("utf-8", "backslashreplace")

    def _keep(self, numbers: dict[str, int], owners: np.ndarray) -> None:
        """Files that exist and have captions, and where the captions of each lie among the texts."""
        self._order = np.argsort(owners, kind="stable")
        bounds = np.searchsorted(owners[self._order], np.arange(len(numbers) + 1))
        self._files = NameTable()
        kept = []
        missing = ""
        for file, number in numbers.items():
            if bounds[number] == bounds[number + 1]:
                continue
            if not os.path.isfile(os.path.join(self.folder, file)):
                missing = missing or file
                self._left_out.add(MISSING_IMAGE, f"{self.path}, {file}")
                continue
            self._files.append(os.fsencode(file))
            kept.append(number)
        self._files.freeze()
        self._starts, self._ends = bounds[:-1][kept], bounds[1:][kept]
        if not kept:
            why = missing_path(os.path.join(self.folder, missing)) if missing else f"it has {self._left_out}"
            raise UnveilError(f"{self.path} names no image that exists and has a caption: {why}")


def table_rows(path: str) -> Iterator[Row]:
    """Rows of a .csv or .tsv of path,caption.

    Raises:
        UnveilError: see `read_pairs`; a caption that is not UTF-8 is no error of the table.
    """
    for line, file, caption in read_pairs(path, "caption", CAPTION_NAMES, any_bytes=True):
        yield Row(f"line {line}", file, caption)


def json_rows(path: str) -> Iterator[Row]:
    """Rows of a .jsonl: one object a line, with a path, and a caption or a list of captions.

    Raises:
        UnveilError: no such file, no rows, or a line that is no object with a path: with its number.
    """
    if not os.path.exists(path):
        raise UnveilError(missing_path(path))
    advice = f'write one {{"{PATH_COLUMNS[0]}": ..., "{CAPTION_NAMES[0]}": ...}} a line'
    empty = True
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                empty = False
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError):
                    fields = None
                if not isinstance(fields, dict):
                    raise UnveilError(f"{path}, line {number} is not a JSON object; {advice}")
                image = next((fields[name] for name in PATH_COLUMNS if name in fields), None)
                if not isinstance(image, str) or not image:
                    raise UnveilError(f"{path}, line {number} names no image under {PATH_COLUMNS[0]}; {advice}")
                yield Row(f"line {number}", image, caption_field(fields))
    except OSError as error:
        raise UnveilError(f"cannot read {path} ({error.strerror or error}); check the file") from None
    if empty:
        raise UnveilError(f"{path} has no rows; {advice}")
