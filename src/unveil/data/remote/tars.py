"""One tar in object storage: its index on this machine, its members read as they are asked for."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from unveil.config.errors import UnveilError
from unveil.data.remote.cache import ByteCache
from unveil.data.remote.store import Described, describe, has_magic, match, read_if_there, read_range
from unveil.data.sources.index_file import TarIndex, load_index, save_index
from unveil.data.sources.tar_index import build_index, index_place

CACHE_FOLDER = "UNVEIL_CACHE"
"""Environment variable: the folder of indices and of the cache; else `unveil` in the user's cache folder."""
CACHE_SIZE = "UNVEIL_CACHE_GIB"
"""Environment variable: the most that the cache holds; 0: nothing."""
DEFAULT_GIB = 10.0

AT_ONCE = 32
"""Tars that are opened at the same time."""
BLOCK = 4 * 2**20
"""Bytes that are read at once where a tar without an index is read through."""


@dataclass(frozen=True)
class RemoteTar:
    """A tar at an address."""

    url: str
    said: Described

    def read(self, offset: int, size: int) -> bytes:
        """A member's data, from the cache where it is there.

        Raises:
            UnveilError: the store does not hand it over, not even when asked repeatedly.
        """
        cache = _cache()
        key = f"{self.url} {self.said.version} {offset} {size}"
        data = None if cache is None else cache.get(key)
        if data is None:
            data = read_range(self.url, offset, size)
            if cache is not None:
                cache.put(key, data)
        return data

    def index(self) -> TarIndex:
        """The one kept here, the one beside the tar, or one made by reading the tar through; it is kept here then.

        An index beside the tar counts where it is of a tar of the same size.

        Raises:
            UnveilError: not a tar, without one whole image, or the store does not answer.
        """
        name = hashlib.sha256(f"{self.url} {self.said.version} {self.said.size}".encode()).hexdigest()[:32]
        place = cache_folder() / "indices" / f"{name}.tar.index"
        stamp = (self.said.size,)
        index = load_index(place, stamp) or self._index_beside(place, stamp)
        if index is not None:
            return index
        built = build_index(self.url, io.BufferedReader(_RemoteFile(self), BLOCK), self.said.size)
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
        return (load_index(place, stamp) if save_index(place, stamp, built) else None) or built

    def _index_beside(self, place: Path, stamp: tuple[int, ...]) -> TarIndex | None:
        data = read_if_there(index_place(self.url.encode()).decode())
        if data is None:
            return None
        temporary = place.with_name(f".{place.name}.{os.getpid()}.writing")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            os.replace(temporary, place)
        except OSError as error:
            raise UnveilError(
                f"cannot write {place} ({error.strerror}); set {CACHE_FOLDER} to a folder that can be written to"
            ) from error
        return load_index(place, stamp)


def open_tars(
    urls: Sequence[str], on_progress: Callable[[int], None] | None = None
) -> list[tuple[RemoteTar, TarIndex]]:
    """Several at once, since each takes a store some round trips.

    Args:
        on_progress: called with the number of images found so far.

    Raises:
        UnveilError: one cannot be opened.
    """

    def open_one(url: str) -> tuple[RemoteTar, TarIndex]:
        tar = RemoteTar(url, describe(url))
        return tar, tar.index()

    opened: list[tuple[RemoteTar, TarIndex]] = []
    count = 0
    with ThreadPoolExecutor(min(AT_ONCE, len(urls))) as threads:
        for tar, index in threads.map(open_one, urls):
            opened.append((tar, index))
            count += len(index)
            if on_progress is not None:
                on_progress(count)
    return opened


def expand_address(given: str) -> list[str]:
    """The tars that are meant by an address: itself, those that match a pattern, or all below a folder.

    Raises:
        UnveilError: nothing there, or no tar.
    """
    if not has_magic(given) and _is_tar(given):
        return [given]
    found = [url for url in match(given) if _is_tar(url)]
    if not found:
        what, start = "there is no .tar below", f"{given.rstrip('/')}/"
        if has_magic(given):
            what, start = "nothing that ends in .tar matches", given.split("*")[0]
        raise UnveilError(f"{what} {given}; give the address of WebDataset tars, such as {start}000.tar")
    return found


def cache_folder() -> Path:
    """Of what was copied from stores."""
    if given := os.environ.get(CACHE_FOLDER):
        return Path(given)
    place = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(place) if os.path.isabs(place) else Path.home() / ".cache") / "unveil"


def _cache() -> ByteCache | None:
    text = os.environ.get(CACHE_SIZE, "") or str(DEFAULT_GIB)
    try:
        limit = int(float(text) * 2**30)
        if limit < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise UnveilError(f"{CACHE_SIZE} is {text!r}; give the most that is kept, in GiB, such as 50") from None
    return ByteCache(cache_folder() / "shards.sqlite", limit) if limit else None


def _is_tar(url: str) -> bool:
    return url.split("?")[0].lower().endswith(".tar")


class _RemoteFile(io.RawIOBase):
    """For reading a tar through; not by way of the cache, which is for images."""

    def __init__(self, tar: RemoteTar) -> None:
        self._tar = tar
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._tar.said.size}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._tar.said.size - self._place))
        if size:
            buffer[:size] = read_range(self._tar.url, self._place, size)
            self._place += size
        return size
