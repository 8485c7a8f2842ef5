"""A bare folder of images, searched to any depth, or one single image."""

import hashlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.decode import SUFFIXES, decode_image
from unveil.data.sources.base import Encoded, Sample, Stamp, read_whole
from unveil.data.sources.missing import missing_path
from unveil.data.sources.scan import FolderScan, scan_folder


class FolderSource:
    """Every image below `root`, directory by directory, in the order of their names' bytes.

    Args:
        root: a folder, or a single image file.
        labelled: the folders right below the root are classes; `classes` names them in order and a sample's label is
            its class's number. Otherwise `classes` and labels are None.
        shortest_side: see `decode_image`.
        scan: what `scan_folder(root)` found, where that is known already.

    Raises:
        UnveilError: no such folder, no image in it, or images outside the class folders of a labelled one.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        labelled: bool = False,
        shortest_side: int | None = None,
        scan: FolderScan | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.root = os.fspath(root)
        self.shortest_side = shortest_side
        if not os.path.exists(self.root):
            raise UnveilError(missing_path(self.root))
        self._scan = scan or (_single(self.root) if os.path.isfile(self.root) else scan_folder(self.root, on_progress))
        if not len(self._scan.names):
            raise UnveilError(
                f"{self.root} holds no image ({self._scan.found()}); give a folder with images "
                f"({' '.join(sorted(SUFFIXES))}) anywhere below it"
            )
        self.classes: tuple[str, ...] | None = None
        self._labels: np.ndarray | None = None
        if labelled:
            self.classes, self._labels = self._read_classes()

    def __len__(self) -> int:
        return len(self._scan.names)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the file cannot be decoded."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        path = self._scan.path(index)
        name = _shown(path)
        return Sample(decode_image(path, name, self.shortest_side), name, self._label(index), index)

    def encoded(self, index: int) -> Encoded:
        """Raises UnreadableSample where the file cannot be read."""
        path = self._scan.path(index)
        return Encoded(read_whole(path, _shown(path)), _shown(path), self._label(index))

    def stamp(self, index: int) -> Stamp:
        path = self._scan.path(index)
        try:
            status = os.stat(path)
        except OSError:
            return Stamp(_shown(path), -1, -1)
        return Stamp(_shown(path), status.st_size, status.st_mtime_ns)

    def labels(self) -> np.ndarray | None:
        """Int64 label of every sample without reading an image; None where there are none."""
        if self._labels is None:
            return None
        return np.repeat(self._labels, np.diff(self._scan.starts, append=len(self)))

    def digest(self) -> dict[str, dict[str, Any]]:
        """By directory relative to the root ("." is the root itself), so that the whole folder may move.

        Sizes are those at the time of the call; a file that is gone counts as size -1.
        """
        parts = {}
        ends = np.append(self._scan.starts[1:], len(self))
        for number, (start, end) in enumerate(zip(self._scan.starts, ends, strict=True)):
            relative = self._scan.directories[number]
            directory = os.path.join(os.fsencode(self.root), relative)
            hasher = hashlib.sha256()
            for index in range(start, end):
                name = self._scan.names[index]
                try:
                    size = os.stat(os.path.join(directory, name)).st_size
                except OSError:
                    size = -1
                hasher.update(b"%s\0%d\0" % (name, size))
            key = relative.decode("utf-8", "backslashreplace") or "."
            parts[key] = {"count": int(end - start), "sha256": hasher.hexdigest()}
        return parts

    def _label(self, index: int) -> int | None:
        return None if self._labels is None else int(self._labels[self._scan.directory_of(index)])

    def _read_classes(self) -> tuple[tuple[str, ...], np.ndarray]:
        directories = self._scan.directories
        number_of = {name: number for number, name in enumerate(self._scan.top)}
        labels = np.zeros(len(directories), dtype=np.int64)
        for place in range(len(directories)):
            first = directories[place].split(b"/" if os.sep == "/" else os.fsencode(os.sep))[0]
            if first not in number_of:
                raise UnveilError(
                    f"{self.root} should hold one folder for each class, but images lie beside them, "
                    f"{os.fsdecode(self._scan.names[int(self._scan.starts[place])])} for one; move them into a folder "
                    "named like their class"
                )
            labels[place] = number_of[first]
        return tuple(name.decode("utf-8", "backslashreplace") for name in self._scan.top), labels


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _single(path: str) -> FolderScan:
    folder, name = os.path.split(os.path.abspath(path))
    scan = FolderScan(folder)
    scan.directories.append(b"")
    scan.names.append(os.fsencode(name))
    scan.directories.freeze()
    scan.names.freeze()
    scan.starts = np.zeros(1, dtype=np.int64)
    return scan
