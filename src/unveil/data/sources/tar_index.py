"""Where each image of a WebDataset tar lies: found once by reading the headers, kept in a small file beside the tar."""

import hashlib
import io
import os
import tarfile
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from unveil.config.errors import UnveilError
from unveil.data.decode import SUFFIXES
from unveil.data.sources.caption_text import (
    LARGEST_TEXT,
    NO_CAPTION,
    NO_IMAGE,
    TOO_LARGE,
    LeftOut,
    captions_in_json,
    captions_in_text,
)
from unveil.data.sources.index_file import ROW, HeldBytes, TarIndex, load_index, save_index
from unveil.data.sources.missing import missing_path
from unveil.data.sources.scan import INDEX_SUFFIX

LABEL_SUFFIXES = (".cls", ".json")
TEXT_SUFFIXES = (".txt", ".json")
"""In this order where a sample has both."""


def read_tar_index(path: str) -> TarIndex:
    """The index beside the tar where its size and time of change still fit, else a new one, kept if the folder allows.

    Raises:
        UnveilError: cannot be opened, not a tar, compressed, or without one whole image.
    """
    if not os.path.exists(path):
        raise UnveilError(missing_path(path))
    status = os.stat(path)
    stamp = (status.st_size, status.st_mtime_ns)
    place = Path(os.fsdecode(index_place(os.fsencode(path))))
    index = load_index(place, stamp)
    if index is not None:
        return index
    try:
        with open(path, "rb") as file:
            index = build_index(path, file, status.st_size)
    except OSError as error:
        raise UnveilError(f"cannot read {path}: {error.strerror or error}; check the file") from None
    return (load_index(place, stamp) if save_index(place, stamp, index) else None) or index


def index_place(path: bytes) -> bytes:
    """Of the index that is kept beside a tar."""
    return os.path.splitext(path)[0] + INDEX_SUFFIX


class _Label(NamedTuple):
    offset: int = 0
    size: int = 0
    is_json: bool = False


class _Text(NamedTuple):
    offset: int = 0
    size: int = 0
    is_json: bool = False
    checksum: int = 0
    captions: int = 0


class _Builder:
    """Collects images, and the labels and captions that share their key (the path up to the first dot of the name)."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file
        self.names: list[bytes] = []
        self.places: list[tuple[int, int]] = []
        self.labels: list[_Label] = []
        self.texts: list[_Text] = []
        self.left_out = LeftOut()
        self.others: Counter[str] = Counter()
        self._key = b""
        self._images: list[bytes] = []
        self._beside: dict[str, tuple[bytes, int, int]] = {}

    def add(self, name: bytes, offset: int, size: int) -> None:
        """The members of one sample follow one another; their order does not matter."""
        folder, base = os.path.split(name)
        key = os.path.join(folder, base.split(b".")[0])
        if key != self._key:
            self._finish_sample()
            self._key = key
        suffix = os.path.splitext(base)[1].decode("ascii", "replace").lower()
        if suffix in SUFFIXES:
            self.names.append(name)
            self.places.append((offset, size))
            self._images.append(name)
            return
        if suffix in LABEL_SUFFIXES + TEXT_SUFFIXES:
            self._beside[suffix] = name, offset, size
        if suffix not in LABEL_SUFFIXES:
            self.others[suffix or "without suffix"] += 1

    def finish(self, loss: str) -> TarIndex:
        self._finish_sample()
        digest, captioned = hashlib.sha256(), hashlib.sha256()
        rows = bytearray()
        start = 0
        for name, place, label, text in zip(self.names, self.places, self.labels, self.texts, strict=True):
            rows += ROW.pack(*place, *label, *text, start, len(name))
            start += len(name)
            seen = b"%s\0%d\0" % (name, place[1])
            digest.update(seen)
            captioned.update(seen + b"%d\0" % text.checksum)
        unlabelled = next((name for name, label in zip(self.names, self.labels, strict=True) if not label.size), b"")
        return TarIndex(
            count=len(self.names),
            rows=HeldBytes(bytes(rows)),
            names=HeldBytes(b"".join(self.names)),
            digest=digest.hexdigest(),
            captioned_digest=captioned.hexdigest(),
            unlabelled=unlabelled.decode("utf-8", "backslashreplace"),
            left_out=self.left_out,
            loss=loss,
        )

    def _finish_sample(self) -> None:
        """Give its images their label and captions, and tell what is no pair."""
        suffix = next((suffix for suffix in LABEL_SUFFIXES if suffix in self._beside), None)
        label = _Label() if suffix is None else _Label(*self._beside[suffix][1:], suffix == ".json")
        text, reasons = self._find_captions()
        self.labels += [label] * len(self._images)
        self.texts += [text] * len(self._images)
        if not self._images:
            alone = [self._beside[suffix][0] for suffix in TEXT_SUFFIXES if suffix in self._beside]
            reasons = [(NO_IMAGE, name) for name in alone[:1] if text.captions or reasons]
        elif not text.captions and not reasons:
            reasons = [(NO_CAPTION, name) for name in self._images]
        for reason, name in reasons:
            self.left_out.add(reason, name.decode("utf-8", "backslashreplace"))
        self._images, self._beside = [], {}

    def _find_captions(self) -> tuple[_Text, list[tuple[str, bytes]]]:
        """The first text of the sample that has any, and reasons and names of those that cannot be used."""
        reasons: list[tuple[str, bytes]] = []
        for suffix in TEXT_SUFFIXES:
            if suffix not in self._beside:
                continue
            name, offset, size = self._beside[suffix]
            if size > LARGEST_TEXT:
                reasons.append((TOO_LARGE, name))
                continue
            self.file.seek(offset)
            data = self.file.read(size)
            captions, troubles = captions_in_json(data) if suffix == ".json" else captions_in_text(data)
            reasons += [(reason, name) for reason in troubles]
            if captions:
                return _Text(offset, size, suffix == ".json", zlib.crc32(data), len(captions)), reasons
        return _Text(), reasons


def build_index(path: str, file: io.BufferedReader, file_size: int) -> TarIndex:
    """From the headers of an open tar.

    Raises:
        UnveilError: not a tar, compressed, or without one whole image; with `path` as its name.
    """
    if file_size == 0:
        raise UnveilError(f"{path} is empty (0 bytes); copy it again")
    if file.read(2) == b"\x1f\x8b":
        raise UnveilError(f"{path} is compressed, so that no image in it can be found by its place; gunzip it first")
    file.seek(0)
    builder = _Builder(file)
    loss = _read_headers(path, file, file_size, builder)
    index = builder.finish(loss)
    if not len(index):
        rest = ", ".join(f"{count:,} {suffix}" for suffix, count in builder.others.most_common(5)) or "no files"
        raise UnveilError(
            f"{path} holds no whole image ({loss or rest}); "
            + ("copy it again" if loss else "give a tar of image files, or move this one elsewhere")
        )
    return index


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
