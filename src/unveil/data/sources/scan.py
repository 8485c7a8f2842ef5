"""A walk through a folder that keeps millions of file names in a few flat arrays."""

import logging
import os
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from unveil.data.decode import SUFFIXES

logger = logging.getLogger(__name__)

INDEX_SUFFIX = b".tar.index"
"""Of the offset indices that are kept beside tars."""

BROKEN_LINK = "broken symbolic links"
LOOP = "links back to a folder that they lie in"
CLOSED = "folders that cannot be opened"

Ancestry = tuple[tuple[int, int], ...]
"""(device, inode) of a folder and of those that lead to it."""


class NameTable:
    """Byte strings end to end in one array: no Python object each, so that forked workers share them."""

    def __init__(self) -> None:
        self._growing = bytearray()
        self._ends = array("q")
        self._blob = np.zeros(0, dtype=np.uint8)
        self._offsets = np.zeros(1, dtype=np.int64)

    def append(self, name: bytes) -> None:
        self._growing += name
        self._ends.append(len(self._growing))

    def freeze(self) -> None:
        """Call once, when the last name is in."""
        self._blob = np.frombuffer(bytes(self._growing), dtype=np.uint8)
        self._offsets = np.concatenate([[0], np.array(self._ends, dtype=np.int64)])
        self._growing, self._ends = bytearray(), array("q")

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Bytes (UInt8) and bounds (Int64, one more than names), as `of` takes them."""
        return self._blob, self._offsets

    @classmethod
    def of(cls, blob: np.ndarray, offsets: np.ndarray) -> "NameTable":
        table = cls()
        table._blob, table._offsets = blob, offsets
        return table

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:
        return self._blob[self._offsets[index] : self._offsets[index + 1]].tobytes()


@dataclass
class FolderScan:
    """What lies below a folder: images by directory, tars, and a count of everything else."""

    root: str
    directories: NameTable = field(default_factory=NameTable)
    """Relative to the root, without those that hold no image."""
    starts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Number of each directory's first image."""
    names: NameTable = field(default_factory=NameTable)
    """File names of the images, directory after directory."""
    tars: list[str] = field(default_factory=list)
    top: list[bytes] = field(default_factory=list)
    """Names of the folders right below the root, sorted, whether they hold images or not."""
    others: Counter[str] = field(default_factory=Counter)
    """Files that are neither image nor tar, by suffix."""
    troubles: Counter[str] = field(default_factory=Counter)

    def path(self, index: int) -> str:
        directory = self.directories[self.directory_of(index)]
        return os.fsdecode(os.path.join(os.fsencode(self.root), directory, self.names[index]))

    def directory_of(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def found(self) -> str:
        """What is there although no image is: "312 files, none of them an image: 300 .txt, 12 .csv"."""
        files = self.others + Counter({".tar": len(self.tars)})
        total = files.total()
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in files.most_common(5))
        kinds += f" and {len(files) - 5} more kinds" if len(files) > 5 else ""
        text = f"{total:,} file{'s' * (total != 1)}, none of them an image: {kinds}" if total else "no files"
        return ", ".join([text, *(f"{count:,} {what}" for what, count in self.troubles.items())])


def scan_folder(root: str, on_progress: Callable[[int], None] | None = None) -> FolderScan:
    """Walk `root` in an order that depends on the names only; hidden files and folders are left out.

    Symbolic links are followed. A folder is entered again through a link, but never inside itself: its (device, inode)
    must differ from those of the folders that lead to it. What had to be left out is counted and logged.

    Args:
        on_progress: called with the number of images found so far, once for each directory.
    """
    scan = FolderScan(root)
    starts = array("q")
    base = os.fsencode(root)
    status = os.stat(base)
    waiting: list[tuple[bytes, Ancestry]] = [(b"", ((status.st_dev, status.st_ino),))]
    count = 0
    while waiting:
        relative, ancestry = waiting.pop()
        files, folders = _list(scan, os.path.join(base, relative), ancestry)
        if not relative:
            scan.top = [name for name, _ in folders]
        if files:
            scan.directories.append(relative)
            starts.append(count)
            for name in files:
                scan.names.append(name)
            count += len(files)
        waiting += [(os.path.join(relative, name), ids) for name, ids in reversed(folders)]
        if on_progress is not None:
            on_progress(count)
    scan.directories.freeze()
    scan.names.freeze()
    scan.starts = np.array(starts, dtype=np.int64)
    for what, times in scan.troubles.items():
        logger.warning("%s: left out %d %s", root, times, what)
    if scan.others:
        kinds = ", ".join(f"{times:,} {suffix}" for suffix, times in scan.others.most_common(5))
        logger.info("%s: %d images; left out other files, most of all %s", root, count, kinds)
    return scan


def _list(scan: FolderScan, directory: bytes, ancestry: Ancestry) -> tuple[list[bytes], list[tuple[bytes, Ancestry]]]:
    """Images, and folders to enter, of one directory, each sorted."""
    files, folders = [], []
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        scan.troubles[CLOSED] += 1
        return [], []
    for entry in entries:
        if entry.name.startswith(b"."):
            continue
        try:
            if entry.is_dir():
                status = entry.stat()
                identity = (status.st_dev, status.st_ino)
                if identity in ancestry:
                    scan.troubles[LOOP] += 1
                else:
                    folders.append((entry.name, (*ancestry, identity)))
                continue
            if not entry.is_file():
                if entry.is_symlink():
                    scan.troubles[BROKEN_LINK] += 1
                continue
        except OSError:
            # A link in a circle has no status at all.
            scan.troubles[BROKEN_LINK] += 1
            continue
        suffix = os.path.splitext(entry.name)[1].decode("ascii", "replace").lower()
        if suffix in SUFFIXES:
            files.append(entry.name)
        elif suffix == ".tar":
            scan.tars.append(os.fsdecode(os.path.join(directory, entry.name)))
        elif not entry.name.endswith(INDEX_SUFFIX):
            scan.others[suffix or "without suffix"] += 1
    return files, folders
