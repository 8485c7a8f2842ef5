"""Captions for images that have none, only a class: sentences with its name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from unveil.data.sources.base import Sample, Source


@dataclass(frozen=True)
class ClassCaptions:
    """The samples of a labelled source, each with the sentences about its class as captions."""

    source: Source
    sentences: Sequence[Sequence[str]]
    """By label: of each class one or more."""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the source does, ValueError for a sample without a label."""
        sample = self.source[index]
        if sample.label is None:
            raise ValueError(f"{sample.name} has no label, so that no sentence is about it")
        return replace(sample, captions=tuple(self.sentences[sample.label]))

    def digest(self) -> dict[str, dict[str, Any]]:
        """By part of the source; the hash covers the sentences."""
        words = json.dumps([list(of_class) for of_class in self.sentences]).encode()
        return {
            name: {**part, "sha256": sha256(part["sha256"].encode() + words).hexdigest()}
            for name, part in self.source.digest().items()
        }
