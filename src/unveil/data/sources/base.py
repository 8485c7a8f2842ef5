"""What every source of images is: numbered samples, each of which may turn out to be unreadable."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image


@dataclass(frozen=True)
class Sample:
    """One decoded image of a source."""

    image: Image.Image
    """RGB, loaded."""
    name: str
    """What a person finds it by: a path, "shard.tar:member", "scene 17"."""
    label: int | None
    index: int
    """Its place in the source."""
    captions: tuple[str, ...] = ()
    """Texts that describe it."""


class Encoded(NamedTuple):
    """One image of a source as its file holds it."""

    data: bytes
    name: str
    """As in `Sample`, with the file's suffix."""
    label: int | None = None
    captions: tuple[str, ...] = ()


class Stamp(NamedTuple):
    """What can be told of a sample without reading it; another one where its file may have changed."""

    name: str
    """As in `Sample`."""
    size: int
    """Of the file or member, bytes; -1 where it is gone."""
    modified: int
    """Of the file or the tar around it, nanoseconds since 1970; -1 where it is gone."""


class UnreadableSample(Exception):
    """One sample cannot be decoded; the loader counts it, reports it and takes another."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@runtime_checkable
class Source(Protocol):
    """Numbered samples. Picklable, and safe to read from several processes at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read and decode one sample.

        Raises:
            UnreadableSample: this one cannot be decoded.
        """
        ...

    def digest(self) -> dict[str, dict[str, Any]]:
        """What the source holds, by part (directory or tar): {"count": samples, "sha256": over names and sizes}."""
        ...


@runtime_checkable
class EncodedSource(Source, Protocol):
    """A source of files whose bytes can be had."""

    def encoded(self, index: int) -> Encoded:
        """Read one sample without decoding it.

        Raises:
            UnreadableSample: its file cannot be read.
        """
        ...


@runtime_checkable
class Stamped(Source, Protocol):
    """A source of files."""

    def stamp(self, index: int) -> Stamp: ...


def read_whole(path: str, name: str) -> bytes:
    """A sample's file. Raises UnreadableSample where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UnreadableSample(name, error.strerror or str(error)) from None


class JoinedSource:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)
        self._ends = list(accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place = bisect_right(self._ends, index)
        start = self._ends[place] - len(self.sources[place])
        return replace(self.sources[place][index - start], index=index)

    def encoded(self, index: int) -> Encoded:
        """Raises TypeError where a source has none, UnreadableSample where it cannot be read."""
        place = bisect_right(self._ends, index)
        source = self.sources[place]
        if not isinstance(source, EncodedSource):
            raise TypeError(f"samples of {type(source).__name__} are no files")
        return source.encoded(index - self._ends[place] + len(source))

    def stamp(self, index: int) -> Stamp:
        """Raises TypeError where a source has none."""
        place = bisect_right(self._ends, index)
        source = self.sources[place]
        if not isinstance(source, Stamped):
            raise TypeError(f"samples of {type(source).__name__} have no stamps")
        return source.stamp(index - self._ends[place] + len(source))

    def digest(self) -> dict[str, dict[str, Any]]:
        parts: dict[str, dict[str, Any]] = {}
        for source in self.sources:
            for name, part in source.digest().items():
                key, copy = name, 2
                while key in parts:
                    key, copy = f"{name} ({copy})", copy + 1
                parts[key] = part
        return parts
