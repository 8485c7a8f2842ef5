"""The offset index of one tar as a file: a row of fixed width for each image, which stays on the disk.

30 million images have 2 GB of rows. A process reads a row when it needs the sample, from the pages that the system
caches once for all processes; in its own memory it keeps a few hundred bytes for each tar.
"""

import contextlib
import json
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.sources.caption_text import LeftOut

VERSION = 3


class Row(NamedTuple):
    """One image of a tar."""

    offset: int
    """First byte of its data."""
    size: int
    """Bytes."""
    label_offset: int
    """Of the .cls or .json member of the same sample; its size is 0 where there is none."""
    label_size: int
    label_is_json: bool
    text_offset: int
    """Of the .txt or .json member of the same sample that holds captions."""
    text_size: int
    text_is_json: bool
    text_checksum: int
    """CRC-32 of that member."""
    caption_count: int
    """Captions in it that can be used; 0 where there is none."""
    name_start: int
    """Of its name, among those of all images."""
    name_size: int


ROW = struct.Struct("<QQQQ?QI?IIQI")
_FORMATS = ("<u8", "<u8", "<u8", "<u8", "?", "<u8", "<u4", "?", "<u4", "<u4", "<u8", "<u4")
COLUMNS = np.dtype(list(zip(Row._fields, _FORMATS, strict=True)))
"""The same, for numpy."""


@dataclass(frozen=True)
class HeldBytes:
    """In memory, where the folder of the tar cannot be written to."""

    data: bytes

    def read(self, start: int, size: int) -> bytes:
        return self.data[start : start + size]


@dataclass(frozen=True)
class StoredBytes:
    """From byte `first` of a file on. No open file is kept: those of thousands of tars would be too many."""

    file: str
    first: int
    whole: int
    """Bytes of that file; other processes may put an equal one in its place."""

    def read(self, start: int, size: int) -> bytes:
        """Raises UnveilError where the file is gone or another one by now."""
        try:
            with open(self.file, "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size == self.whole:
                    file.seek(self.first + start)
                    return file.read(size)
        except OSError:
            pass
        raise UnveilError(f"{self.file} was changed or removed while it was in use; run the same command again")


@dataclass(frozen=True)
class TarIndex:
    """The images of one tar, in its order."""

    count: int
    rows: HeldBytes | StoredBytes
    """`ROW` for each image."""
    names: HeldBytes | StoredBytes
    digest: str
    """SHA-256 over names and sizes."""
    captioned_digest: str
    """The same, with captions."""
    unlabelled: str
    """Name of the first image without a label; empty where all have one."""
    left_out: LeftOut
    """What cannot be used where images with captions are wanted."""
    loss: str
    """What is wrong with the end of the tar; empty for a whole one."""

    def __len__(self) -> int:
        return self.count

    def row(self, number: int) -> Row:
        return Row(*ROW.unpack(self.rows.read(number * ROW.size, ROW.size)))

    def name(self, row: Row) -> bytes:
        return self.names.read(row.name_start, row.name_size)

    def table(self) -> np.ndarray:
        """All rows at once, as `COLUMNS`."""
        return np.frombuffer(self.rows.read(0, self.count * ROW.size), dtype=COLUMNS)


def load_index(place: Path, stamp: tuple[int, ...]) -> TarIndex | None:
    """What `save_index` wrote; None where there is none, of another version, or with another start of a stamp."""
    try:
        with open(place, "rb") as file, zipfile.ZipFile(file) as archive:
            said = json.loads(archive.read("index.json"))
            if said["version"] != VERSION or said["stamp"][: len(stamp)] != list(stamp):
                return None
            left_out = LeftOut()
            for reason, count, example in said["left_out"]:
                left_out.add(reason, example, count)
            whole = os.fstat(file.fileno()).st_size
            rows, names = (
                StoredBytes(os.fspath(place), _first_byte(file.fileno(), archive.getinfo(member)), whole)
                for member in ("rows", "names")
            )
            texts = {name: said[name] for name in (*_TEXTS, "loss")}
            return TarIndex(count=said["count"], rows=rows, names=names, left_out=left_out, **texts)
    except Exception:
        # Missing, half written by another program, or of another version: it is only a copy of what the tar says.
        return None


def save_index(place: Path, stamp: tuple[int, ...], index: TarIndex) -> bool:
    """Whether the folder could be written to; if not, the same scan is needed next time, nothing else."""
    temporary = place.with_name(f".{place.name}.{os.getpid()}.writing")
    names = int(index.table()["name_size"].sum())
    said = {"version": VERSION, "stamp": stamp, "count": index.count, "loss": index.loss}
    said |= {name: getattr(index, name) for name in _TEXTS} | {"left_out": list(index.left_out)}
    try:
        # Stored, not deflated, so that a row can be read by its place.
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("index.json", json.dumps(said))
            archive.writestr("rows", index.rows.read(0, index.count * ROW.size))
            archive.writestr("names", index.names.read(0, names))
        os.replace(temporary, place)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return False
    return True


_TEXTS = ("digest", "captioned_digest", "unlabelled")


def _first_byte(descriptor: int, member: zipfile.ZipInfo) -> int:
    """Of a stored member's data: behind its header of 30 bytes, its name, and a field as long as the header says."""
    with open(descriptor, "rb", closefd=False, buffering=0) as file:
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
    return member.header_offset + 30 + int(name) + int(extra)
