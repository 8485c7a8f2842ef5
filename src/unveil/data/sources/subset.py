"""A part of a source, by place."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

from unveil.data.sources.base import Sample, Source


class SubsetSource:
    """Samples `places` of `source`, renumbered from 0."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        self.source = source
        self.places = tuple(places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.source[self.places[index]], index=index)

    def digest(self) -> dict[str, dict[str, Any]]:
        chosen = sha256(repr(self.places).encode()).hexdigest()
        return {
            f"{name}, a part": {"count": len(self), "sha256": f"{part['sha256']} {chosen}"}
            for name, part in self.source.digest().items()
        }
