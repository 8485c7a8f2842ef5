"""A part of a source, by place."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from unveil.data.sources.base import Sample, Source


class SubsetSource:
    """Samples `places` of `source`, in that order, renumbered from 0."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        self.source = source
        self.places = np.array(places, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the whole source does."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return replace(self.source[int(self.places[index])], index=index)

    def digest(self) -> dict[str, dict[str, Any]]:
        """By part of the whole source; the hash covers the part and the chosen places, the count is the subset's."""
        return {
            f"{name}, a part": {
                "count": len(self),
                "sha256": sha256(part["sha256"].encode() + self.places.tobytes()).hexdigest(),
            }
            for name, part in self.source.digest().items()
        }
