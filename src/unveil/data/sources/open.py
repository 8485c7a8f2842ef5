"""From what a person types to a source: folders, tars, single images, patterns of tars."""

import glob
import os
import re
from collections.abc import Callable, Sequence
from itertools import product

from unveil.config.errors import UnveilError
from unveil.data.decode import SUFFIXES
from unveil.data.remote.store import is_remote
from unveil.data.remote.tars import expand_address
from unveil.data.sources.base import JoinedSource, Source
from unveil.data.sources.folder import FolderSource
from unveil.data.sources.missing import missing_path
from unveil.data.sources.scan import scan_folder
from unveil.data.sources.shards import ShardSource

PACKED = (".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz", ".7z")
"""Suffixes of archives that cannot be read at random."""

_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_images(
    paths: Sequence[str], *, shortest_side: int | None = None, on_progress: Callable[[int], None] | None = None
) -> Source:
    """All images of `paths`, joined in order.

    Each path is a folder (searched to any depth for images and for tars of images), a .tar, an image, or a pattern of
    such: "shards/{000..010}.tar", "shards/*.tar", "{train,extra}/". A path that exists is never taken for a pattern.
    Tars may lie in object storage: "s3://bucket/shards/{000..010}.tar", "s3://bucket/shards/".

    Args:
        shortest_side: see `decode_image`.
        on_progress: called with the number of images found so far in the part that is being opened.

    Raises:
        UnveilError: nothing given, nothing there (with the nearest name that is), or nothing that is an image.
    """
    if not paths:
        raise UnveilError("no images are given; name a folder, a .tar, or several of them")
    sources: list[Source] = []
    tars: list[str] = []

    def close_tars() -> None:
        if tars:
            sources.append(ShardSource(list(tars), shortest_side=shortest_side, on_progress=on_progress))
            tars.clear()

    for path in (found for given in paths for found in expand_path(given)):
        if os.path.isdir(path):
            close_tars()
            scan = scan_folder(path, on_progress)
            if len(scan.names) or not scan.tars:
                sources.append(FolderSource(path, shortest_side=shortest_side, scan=scan))
            if scan.tars:
                tars += scan.tars
                close_tars()
        elif is_remote(path) or path.lower().endswith(".tar"):
            tars.append(path)
        else:
            close_tars()
            sources.append(_one_file(path, shortest_side))
    close_tars()
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def _one_file(path: str, shortest_side: int | None) -> Source:
    if os.path.splitext(path)[1].lower() not in SUFFIXES:
        advice = f"give a folder, a .tar, or an image ({' '.join(sorted(SUFFIXES))})"
        if path.lower().endswith(PACKED):
            advice = "unpack it first"
        raise UnveilError(f"{path} is neither a folder nor a tar nor an image by its name; {advice}")
    return FolderSource(path, shortest_side=shortest_side)


def expand_path(given: str) -> list[str]:
    """The existing paths, or the addresses of tars, that are meant by one argument, in order.

    Raises:
        UnveilError: nothing there.
    """
    if is_remote(given):
        return [url for address in _expand_braces(given) for url in expand_address(address)]
    given = os.path.expanduser(given)
    if os.path.exists(given):
        return [given]
    found: list[str] = []
    for path in _expand_braces(given):
        matches = [path]
        if not os.path.exists(path) and glob.has_magic(path):
            matches = [match for match in sorted(glob.glob(path, recursive=True)) if os.path.exists(match)]
        if not matches or not os.path.exists(matches[0]):
            raise UnveilError(missing_path(path) + (f" (from the pattern {given})" if path != given else ""))
        found += matches
    return found


def _expand_braces(pattern: str) -> list[str]:
    """Like a shell: {a,b} and {000..010}, keeping leading zeros."""
    pieces = _BRACES.split(pattern)
    choices = []
    for place, piece in enumerate(pieces):
        numbers = _RANGE.fullmatch(piece)
        if place % 2 == 0:
            choices.append([piece])
        elif numbers:
            first, last = numbers.groups()
            width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
            choices.append([str(number).zfill(width) for number in range(int(first), int(last) + 1)])
        else:
            choices.append(piece.split(","))
    return ["".join(parts) for parts in product(*choices)]
