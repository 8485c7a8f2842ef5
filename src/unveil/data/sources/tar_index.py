"""Where each image of a WebDataset tar lies: found once by reading the headers, kept in a small file beside the tar."""

import contextlib
import io
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.decode import SUFFIXES
from unveil.data.sources.missing import missing_path
from unveil.data.sources.scan import INDEX_SUFFIX, NameTable

VERSION = 1
LABEL_SUFFIXES = (".cls", ".json")
"""In this order where a sample has both."""


@dataclass(frozen=True)
class TarIndex:
    """The images of one tar, in its order, as flat arrays."""

    names: NameTable
    offsets: np.ndarray
    """Int64 "n": first byte of each image's data."""
    sizes: np.ndarray
    """Int64 "n", bytes."""
    label_offsets: np.ndarray
    """Int64 "n", of the .cls or .json member of the same sample; its size is 0 where there is none."""
    label_sizes: np.ndarray
    label_is_json: np.ndarray
    """Bool "n"."""
    loss: str
    """What is wrong with the end of the tar; empty for a whole one."""

    def __len__(self) -> int:
        return len(self.names)


def read_tar_index(path: str) -> TarIndex:
    """The index beside the tar where its size and time of change still fit, else a new one, kept if the folder allows.

    Raises:
        UnveilError: cannot be opened, not a tar, compressed, or without one whole image.
    """
    if not os.path.exists(path):
        raise UnveilError(missing_path(path))
    status = os.stat(path)
    stamp = np.array([VERSION, status.st_size, status.st_mtime_ns], dtype=np.int64)
    place = Path(os.fsdecode(os.path.splitext(os.fsencode(path))[0] + INDEX_SUFFIX))
    index = _load(place, stamp)
    if index is None:
        try:
            index = _build(path, status.st_size)
        except OSError as error:
            raise UnveilError(f"cannot read {path}: {error.strerror or error}; check the file") from None
        _save(place, stamp, index)
    return index


def _load(place: Path, stamp: np.ndarray) -> TarIndex | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            columns = {name: stored[name] for name in _COLUMNS}
            names = NameTable.of(stored["name_bytes"], stored["name_offsets"])
            return TarIndex(names=names, loss=str(stored["loss"]), **columns)
    except Exception:
        # Missing, half written by another program, or of another version: it is only a copy of what the tar says.
        return None


def _save(place: Path, stamp: np.ndarray, index: TarIndex) -> None:
    temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            name_bytes, name_offsets = index.names.arrays()
            columns = {name: getattr(index, name) for name in _COLUMNS}
            np.savez(file, stamp=stamp, loss=index.loss, name_bytes=name_bytes, name_offsets=name_offsets, **columns)
        os.replace(temporary, place)
    except OSError:
        # A folder that cannot be written to costs the same scan next time, nothing else.
        with contextlib.suppress(OSError):
            os.unlink(temporary)


_COLUMNS = ("offsets", "sizes", "label_offsets", "label_sizes", "label_is_json")


class _Builder:
    """Collects images, and the labels that share their key (the path up to the first dot of the file name)."""

    def __init__(self) -> None:
        self.names = NameTable()
        self.rows: list[tuple[int, int]] = []
        self.labels: list[tuple[int, int, bool]] = []
        self.others: Counter[str] = Counter()
        self._key = b""
        self._of_key: list[int] = []
        self._label: tuple[int, int, bool] = (0, 0, False)

    def add(self, name: bytes, offset: int, size: int) -> None:
        folder, base = os.path.split(name)
        key = os.path.join(folder, base.split(b".")[0])
        if key != self._key:
            self._key, self._of_key, self._label = key, [], (0, 0, False)
        suffix = os.path.splitext(base)[1].decode("ascii", "replace").lower()
        if suffix in SUFFIXES:
            self.names.append(name)
            self._of_key.append(len(self.rows))
            self.rows.append((offset, size))
            self.labels.append(self._label)
        elif suffix in LABEL_SUFFIXES:
            if suffix == LABEL_SUFFIXES[0] or not self._label[1] or self._label[2]:
                self._label = (offset, size, suffix == LABEL_SUFFIXES[1])
                for row in self._of_key:
                    self.labels[row] = self._label
        else:
            self.others[suffix or "without suffix"] += 1

    def finish(self, loss: str) -> TarIndex:
        self.names.freeze()
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 2)
        labels = np.array(self.labels, dtype=np.int64).reshape(-1, 3)
        return TarIndex(self.names, rows[:, 0], rows[:, 1], labels[:, 0], labels[:, 1], labels[:, 2].astype(bool), loss)


def _build(path: str, file_size: int) -> TarIndex:
    builder = _Builder()
    with open(path, "rb") as file:
        if file_size == 0:
            raise UnveilError(f"{path} is empty (0 bytes); copy it again")
        if file.read(2) == b"\x1f\x8b":
            raise UnveilError(
                f"{path} is compressed, so that no image in it can be found by its place; gunzip it first"
            )
        file.seek(0)
        loss = _read_headers(path, file, file_size, builder)
    if not builder.rows:
        rest = ", ".join(f"{count:,} {suffix}" for suffix, count in builder.others.most_common(5)) or "no files"
        raise UnveilError(
            f"{path} holds no whole image ({loss or rest}); "
            + ("copy it again" if loss else "give a tar of image files, or move this one elsewhere")
        )
    return builder.finish(loss)


def _read_headers(path: str, file: io.BufferedReader, file_size: int, builder: _Builder) -> str:
    """Fill the builder with whole members; what is missing at the end, or nothing."""
    try:
        tar = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError:
        raise UnveilError(f"{path} is not a tar file; give a tar of images, or move it elsewhere") from None
    try:
        while (member := tar.next()) is not None:
            end = member.offset_data + member.size
            if member.isfile() and not member.issparse():
                if end > file_size:
                    return f"it ends inside {member.name}"
                builder.add(os.fsencode(member.name), member.offset_data, member.size)
            # tarfile keeps every member; a tar may have millions.
            tar.members.clear()  # type: ignore[attr-defined]
    except tarfile.TarError:
        return "it ends inside a member"
    file.seek(tar.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return "it ends without the mark that closes a tar"
    return "" if not any(block) else f"it is corrupt at byte {tar.offset:,}"
