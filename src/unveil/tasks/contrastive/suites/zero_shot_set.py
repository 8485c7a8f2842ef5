"""One benchmark, opened: its images or videos, and the names or captions that they are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from unveil.config import UnveilError
from unveil.data.sources.base import Source
from unveil.data.sources.subset import SubsetSource
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Images or videos of one class each."""

    suite: ZeroShotSuite
    source: Source
    """Its labels are places in `classes`."""
    classes: tuple[str, ...]
    """As the set's files name them, made readable. Empty where they name none and a list of names is needed."""
    count: int
    """Of classes."""
    in_imagenet: tuple[int, ...] = ()
    """Which of ImageNet-1K's classes they are, where they are such."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the name."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers must know."""


@dataclass(frozen=True, kw_only=True)
class MultiLabelSet(LabelledSet):
    """Images that show several classes."""

    targets: Bool[Tensor, "n c"]
    """Which classes each image shows."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSet:
    """Images with captions."""

    suite: ZeroShotSuite
    source: Source
    captions: tuple[tuple[str, ...], ...]
    """Of each image."""
    notes: tuple[str, ...] = ()


BenchmarkSet = LabelledSet | RetrievalSet


def labelled(suite: ZeroShotSuite, source: Source, classes: Sequence[str], *, notes: Sequence[str] = ()) -> LabelledSet:
    """A set whose own files name the classes."""
    return LabelledSet(suite=suite, source=source, classes=tuple(classes), count=len(classes), notes=tuple(notes))


def complete(found: BenchmarkSet, limit: int | None) -> BenchmarkSet:
    """The set with the notes that it needs, and with at most `limit` of its samples, evenly spread.

    Raises:
        UnveilError: it is empty.
    """
    suite, count = found.suite, len(found.source)
    if count == 0:
        raise UnveilError(f"the folder of {suite.name} holds none of its {suite.unit}; unpack it again")
    notes = [*found.notes, *([suite.note] if suite.note else [])]
    if count != suite.images:
        notes.append(f"not the whole set: {count:,} {suite.unit} of {suite.images:,}")
    if limit is None or limit >= count:
        return replace(found, notes=tuple(notes))
    places = [number * count // limit for number in range(limit)]
    notes.append(f"limited to {limit:,} of {count:,} {suite.unit}")
    source = SubsetSource(found.source, places)
    match found:
        case RetrievalSet():
            captions = tuple(found.captions[place] for place in places)
            return replace(found, source=source, captions=captions, notes=tuple(notes))
        case MultiLabelSet():
            return replace(found, source=source, targets=found.targets[torch.tensor(places)], notes=tuple(notes))
        case _:
            return replace(found, source=source, notes=tuple(notes))
