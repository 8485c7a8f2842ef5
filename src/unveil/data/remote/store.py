"""Reading from object storage through fsspec, once more where it fails."""

import logging
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from unveil.config.errors import UnveilError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

logger = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 10
"""Of one read; with the delays between them, an outage of a minute goes by."""
FIRST_DELAY, LONGEST_DELAY = 0.1, 20.0
"""Seconds; doubled from try to try."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
"""Which extra of unveil brings what fsspec needs for a scheme."""

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
_TIMES = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")
_VERSIONS = ("ETag", "etag", "md5Hash", "crc32c", *_TIMES)
"""What file systems call that by which another content is told from this one."""
_DENIED, _MISSING, _TRY_LATER = (401, 403), (404, 410), (408, 425, 429)
"""HTTP's answers."""


class _WholeFileError(OSError):
    """A web server took no notice of which part was asked for."""


@dataclass(frozen=True)
class Described:
    """What a store says of a file without reading it."""

    size: int
    """Bytes."""
    version: str
    """Another one where the content may have changed."""
    modified: int
    """Nanoseconds since 1970; 0 where the store does not say."""


def is_remote(path: str) -> bool:
    """Whether it is an address (scheme://...) and no path."""
    return _ADDRESS.match(path) is not None


def read_range(url: str, start: int, size: int) -> bytes:
    """`size` bytes from byte `start` on.

    Raises:
        UnveilError: they are not to be had.
    """

    def read(system: "AbstractFileSystem", path: str) -> bytes:
        data = system.cat_file(path, start=start, end=start + size)
        if len(data) > size:
            raise _WholeFileError(f"the server sends whole files only ({len(data):,} bytes for {size:,})")
        if len(data) != size:
            raise OSError(f"{len(data):,} bytes came where {size:,} were asked for")
        return data

    return _insist(url, read)


def read_if_there(url: str) -> bytes | None:
    """A whole file; None where there is none or it may not be read.

    Raises:
        UnveilError: the store cannot be reached.
    """
    try:
        return _insist(url, lambda system, path: system.cat_file(path))
    except UnveilError as error:
        if error.__cause__ is not None and _is_final(error.__cause__):
            return None
        raise


def describe(url: str) -> Described:
    """Raises UnveilError where there is no such file, or no word of its size."""
    said = _insist(url, lambda system, path: system.info(path))
    if not isinstance(said.get("size"), int):
        raise UnveilError(f"{url}: the server does not say how large it is, so that it cannot be read in parts")
    version = next((str(said[name]) for name in _VERSIONS if said.get(name)), "")
    return Described(said["size"], version, _nanoseconds(next((said[name] for name in _TIMES if said.get(name)), 0)))


def match(pattern: str) -> list[str]:
    """Addresses that match a pattern with * ? [], sorted; without one, of all files below a folder."""

    def look(system: "AbstractFileSystem", path: str) -> list[str]:
        system.invalidate_cache()
        found = system.glob(path) if has_magic(pattern) else system.find(path)
        return sorted(system.unstrip_protocol(name) for name in found)

    return _insist(pattern, look)


def has_magic(url: str) -> bool:
    """Whether it is a pattern. In https://, ? begins a query."""
    return any(mark in url for mark in ("*[" if url.lower().startswith("http") else "*?["))


def _insist(url: str, read: Callable[["AbstractFileSystem", str], T]) -> T:
    """What `read(file system, path)` returns at the first try that succeeds.

    Raises:
        UnveilError: what cannot succeed (no such file, not allowed, no back-end), or has failed `TRIES` times.
    """
    delay = FIRST_DELAY
    for attempt in range(1, TRIES + 1):
        try:
            # Asked for each time: fsspec keeps one for each process and thread, and one must not cross a fork.
            return read(*_file_system(url))
        except UnveilError:
            raise
        except Exception as error:
            # Every back-end has exceptions of its own for a connection that broke.
            if isinstance(error, _WholeFileError):
                raise UnveilError(
                    f"cannot read {url}: {_reason(error)}; use one that answers Range requests, or copy the tars here"
                ) from error
            if _is_final(error):
                raise UnveilError(f"cannot read {url}: {_reason(error)}; check the address and your access") from error
            if attempt == TRIES:
                raise UnveilError(
                    f"cannot read {url}: {_reason(error)}, {TRIES} times in a row; when the store answers again, the "
                    "same command goes on"
                ) from error
            logger.info("%s: %s; reading it again", url, _reason(error))
        # Not the global generator, which belongs to the run; and workers should not come back all at once.
        time.sleep(delay * random.SystemRandom().uniform(0.5, 1.0))
        delay = min(2 * delay, LONGEST_DELAY)
    raise AssertionError("the last try returns or raises")


def _file_system(url: str) -> tuple["AbstractFileSystem", str]:
    matched = _ADDRESS.match(url)
    assert matched is not None
    scheme = matched[1].lower()
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        install = f"pip install 'unveil[{extra}]'" if extra else f"install what fsspec needs for {scheme}://"
        raise UnveilError(f"{url} cannot be read without another package ({error}); {install}") from error
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in EXTRAS)
        raise UnveilError(f"{url} cannot be opened ({error}); addresses are {known}") from error


def _is_final(error: BaseException) -> bool:
    """Whether the next try would end like this one."""
    status = _status(error)
    if status is not None:
        return 400 <= status < 500 and status not in _TRY_LATER
    # fsspec says that there is no such file of a web address whose server did not answer, too.
    if type(error.__cause__).__module__.startswith("aiohttp"):
        return False
    return isinstance(error, _FINAL) or "Credentials" in type(error).__name__


def _status(error: BaseException) -> int | None:
    """HTTP's, of the answer that the error is about."""
    for found in (error, error.__cause__):
        if isinstance(status := getattr(found, "status", None), int):
            return status
    return None


def _reason(error: BaseException) -> str:
    status = _status(error)
    if status in _DENIED:
        return f"the server refuses it (HTTP {status})"
    if status is not None and status not in _MISSING:
        return f"the server answers HTTP {status}"
    if isinstance(error, FileNotFoundError):
        cause = error.__cause__
        return "there is no such file" if cause is None or _is_final(error) else _reason(cause)
    text = str(error).strip().split("\n")[0]
    return text if text and isinstance(error, OSError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _nanoseconds(moment: Any) -> int:
    match moment:
        case datetime():
            return int(moment.timestamp() * 1e9)
        case int() | float():
            return int(moment * 1e9)
        case str():
            for parse in (datetime.fromisoformat, parsedate_to_datetime):
                with suppress(ValueError):
                    return int(parse(moment).timestamp() * 1e9)
            return 0
    return 0
