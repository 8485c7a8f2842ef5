"""Images listed with their labels in a CSV or TSV file."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.decode import decode_image
from unveil.data.sources.base import Encoded, Sample, read_whole
from unveil.data.sources.delimited import PATH_COLUMNS, read_pairs
from unveil.data.sources.missing import missing_path

LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
"""What a header may call the labels, in any case; other columns are not looked at."""

PROGRESS_EVERY = 10_000


class TableSource:
    """The rows of a table of `path,label`, in its order.

    Paths are relative to the table's folder. See `read_pairs` for what such a table may look like.

    Args:
        path: the table.
        shortest_side: see `decode_image`.
        on_progress: called with the number of rows read so far.

    Raises:
        UnveilError: no such file, no rows, a missing column, an empty field, or images that do not exist: with the
            number of the line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        shortest_side: int | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.shortest_side = shortest_side
        self._files: list[str] = []
        texts: list[str] = []
        missing: list[tuple[int, str]] = []
        folder = os.path.dirname(os.path.abspath(self.path))
        for line, file, label in read_pairs(self.path, "label", LABEL_COLUMNS):
            if not label:
                raise UnveilError(f"{self.path}, line {line}: the label is empty")
            self._files.append(file)
            texts.append(label)
            if not os.path.isfile(os.path.join(folder, file)):
                missing.append((line, file))
            if on_progress is not None and len(texts) % PROGRESS_EVERY == 0:
                on_progress(len(texts))
        if missing:
            raise UnveilError(self._describe_missing(missing, folder))
        if on_progress is not None:
            on_progress(len(texts))
        numbers = [_integer(text) for text in texts]
        self.classes: tuple[str, ...] | None = None
        """Names of the classes, sorted; None where all labels are integers."""
        if None in numbers:
            self.classes = tuple(sorted(set(texts)))
            number_of = {name: number for number, name in enumerate(self.classes)}
            numbers = [number_of[text] for text in texts]
        self._labels = np.array(numbers, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the file cannot be decoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        path, name = self._path(index), self.name(index)
        return Sample(decode_image(path, name, self.shortest_side), name, int(self._labels[index]), index)

    def encoded(self, index: int) -> Encoded:
        """Raises UnreadableSample where the file cannot be read."""
        name = self.name(index)
        return Encoded(read_whole(self._path(index), name), name, int(self._labels[index]))

    def name(self, index: int) -> str:
        """What a person finds a sample by."""
        return os.fsencode(self._path(index)).decode("utf-8", "backslashreplace")

    def labels(self) -> np.ndarray:
        """Int64 label of every sample: places in `classes`, or the integers as they stand."""
        return self._labels

    def digest(self) -> dict[str, dict[str, Any]]:
        """One part, the table: over its paths as they stand there, and labels."""
        hasher = hashlib.sha256()
        for file, label in zip(self._files, self._labels.tolist(), strict=True):
            text = str(label) if self.classes is None else self.classes[label]
            hasher.update(f"{file}\0{text}\0".encode("utf-8", "surrogateescape"))
        return {os.path.basename(self.path): {"count": len(self), "sha256": hasher.hexdigest()}}

    def _path(self, index: int) -> str:
        return os.path.join(os.path.dirname(os.path.abspath(self.path)), self._files[index])

    def _describe_missing(self, missing: Sequence[tuple[int, str]], folder: str) -> str:
        line, file = missing[0]
        lines = ", ".join(str(number) for number, _ in missing[:5]) + (", ..." if len(missing) > 5 else "")
        header = (
            f"; if line 1 is a header, name its columns {PATH_COLUMNS[0]} and {LABEL_COLUMNS[0]}" if line == 1 else ""
        )
        return (
            f"{self.path}: {len(missing):,} of the {len(self._files):,} images do not exist (line {lines}), the first "
            f"in line {line}: {missing_path(os.path.join(folder, file))}; paths are relative to the table's "
            f"folder{header}"
        )


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch("-?[0-9]+", text) else None
