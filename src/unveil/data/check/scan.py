"""Reading every image of a source once."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from unveil.data.check.fingerprint import FINGERPRINT, fingerprint
from unveil.data.processes import in_processes
from unveil.data.sources.base import EncodedSource, UnreadableSample

CHUNK = 256
"""Images that a worker reads before it answers."""


@dataclass(frozen=True)
class Scan:
    """What was seen of a source."""

    names: list[str]
    rows: np.ndarray
    """`FINGERPRINT` "n"; zeros for what cannot be read."""
    unreadable: dict[int, str]
    """Place -> reason."""


def scan_images(
    source: EncodedSource, *, workers: int = 0, on_progress: Callable[[int, int], None] | None = None
) -> Scan:
    """Decode every image.

    Args:
        on_progress: called with images done and in all.

    Raises:
        UnveilError: a worker was ended, or a store does not answer.
    """
    count = len(source)
    rows = np.zeros(count, dtype=FINGERPRINT)
    names = [""] * count
    unreadable: dict[int, str] = {}
    done = 0
    chunks = range(-(-count // CHUNK))
    for chunk, (found, called, reasons) in in_processes(_Reader(source), chunks, workers):
        start = chunk * CHUNK
        rows[start : start + len(found)] = found
        names[start : start + len(found)] = called
        unreadable |= reasons
        done += len(found)
        if on_progress is not None:
            on_progress(done, count)
    return Scan(names, rows, dict(sorted(unreadable.items())))


@dataclass(frozen=True)
class _Reader:
    source: EncodedSource

    def __call__(self, chunk: int) -> tuple[np.ndarray, list[str], dict[int, str]]:
        places = range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.source)))
        rows = np.zeros(len(places), dtype=FINGERPRINT)
        names, reasons = [], {}
        for number, place in enumerate(places):
            try:
                found = self.source.encoded(place)
                names.append(found.name)
                rows[number] = fingerprint(found)
            except UnreadableSample as error:
                names[number:] = [error.name]
                reasons[place] = error.reason
        return rows, names, reasons
