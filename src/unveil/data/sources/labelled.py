"""Labelled images from what a person types: class folders, tars with labels, tables of path and label."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.order import sample_rng
from unveil.data.sources.base import Encoded, EncodedSource, JoinedSource, Sample, Source
from unveil.data.sources.delimited import TABLE_SUFFIXES
from unveil.data.sources.folder import FolderSource
from unveil.data.sources.missing import missing_path
from unveil.data.sources.open import expand_path
from unveil.data.sources.scan import scan_folder
from unveil.data.sources.shards import ShardSource
from unveil.data.sources.subset import SubsetSource
from unveil.data.sources.table import TableSource

logger = logging.getLogger(__name__)

CLASSES_FILE = "classes.txt"
"""Beside tars or in the folder above: name of class 0, 1, ... line by line."""

TRAINING_FOLDER = "train"
VALIDATION_FOLDERS = ("val", "valid", "validation", "test")
"""The first that is there."""

HELD_OUT = 5
"""One in so many images is kept for validation where there is no set for it."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class LabelledSource:
    """A source whose labels are numbered as `classes` are."""

    source: Source
    numbers: Mapping[int, int]
    """The source's label -> ours."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the source does, UnveilError where the label is of no class."""
        sample = self.source[index]
        return replace(sample, label=self._number(sample.name, sample.label))

    def encoded(self, index: int) -> Encoded:
        """Raises as reading it does; TypeError where it is no file."""
        if not isinstance(self.source, EncodedSource):
            raise TypeError(f"samples of {type(self.source).__name__} are no files")
        found = self.source.encoded(index)
        return found._replace(label=self._number(found.name, found.label))

    def digest(self) -> dict[str, dict[str, Any]]:
        return self.source.digest()

    def _number(self, name: str, label: int | None) -> int:
        number = None if label is None else self.numbers.get(label)
        if number is None:
            raise UnveilError(_out_of_range(name, label, self.numbers))
        return number


def open_labelled(
    paths: Sequence[str],
    *,
    classes: tuple[str, ...] | None = None,
    shortest_side: int | None = None,
    on_progress: Progress | None = None,
) -> tuple[Source, tuple[str, ...]]:
    """All images of `paths` with their labels, joined in order, and the names of the classes.

    Each path is a folder of class folders, a .tar or a folder of tars (labels in .cls or .json members, named by a
    `classes.txt`), a .csv or .tsv of path and label, or a pattern of such. Labels that are integers without names are
    named by their numerals. Classes that nothing orders otherwise are sorted.

    Args:
        classes: the names in the order of the labels that are wanted. Class folders and names in tables are looked up
            there; integers are looked up where the names are numerals, else they are places in it.
        shortest_side: see `decode_image`.
        on_progress: called with the number of images found so far in the part that is being opened.

    Raises:
        UnveilError: nothing there, images without a label, or a class that is not one of `classes`. A tar's label that
            is of no class is an error when its image is read.
    """
    if not paths:
        raise UnveilError("no labelled images are given; name a folder of class folders, a .csv, or .tar shards")
    found = [path for given in paths for path in expand_path(given)]
    parts = [
        part
        for _, together in groupby(found, _tar_folder)
        for part in _open(list(together), shortest_side, on_progress)
    ]
    classes = classes or _classes_of(parts)
    sources = [LabelledSource(part.source, _numbers(part, classes), classes) for part in parts]
    _say_what_is_missing(parts, classes)
    return (sources[0] if len(sources) == 1 else JoinedSource(sources)), classes


def find_splits(data: str) -> tuple[str, str | None]:
    """Training and validation folder inside `data`; `data` itself and None where it is not divided into such.

    A train/ without a validation folder counts where it stands alone; among others it is a class of that name.
    """
    data = os.path.expanduser(data)
    train = os.path.join(data, TRAINING_FOLDER)
    if not os.path.isdir(train):
        return data, None
    folders = {entry.name for entry in os.scandir(data) if entry.is_dir() and not entry.name.startswith(".")}
    validation = next((os.path.join(data, name) for name in VALIDATION_FOLDERS if name in folders), None)
    if validation is None and folders != {TRAINING_FOLDER}:
        return data, None
    return train, validation


def hold_out(source: Source, *, most: int | None = None) -> tuple[Source, Source]:
    """Four fifths of a source, or more, and the rest, drawn sample by sample; the same for every seed of a run.

    Args:
        most: samples that are held out at most; None = any number.

    Raises:
        UnveilError: too few images to hold any out.
    """
    count = len(source) // HELD_OUT
    count = count if most is None else min(count, most)
    if count == 0:
        raise UnveilError(
            f"{len(source)} images are too few to hold a fifth out for validation; give validation images of "
            "their own (--validation PATH)"
        )
    order = sorted(range(len(source)), key=lambda place: sample_rng(0, place).random())
    return SubsetSource(source, sorted(order[count:])), SubsetSource(source, sorted(order[:count]))


def read_classes(path: str) -> tuple[str, ...]:
    """Names of the classes, one a line.

    Raises:
        UnveilError: no such file, not text, an empty line between names, or a name that stands there twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            names = file.read().rstrip().split("\n")
    except FileNotFoundError:
        raise UnveilError(missing_path(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnveilError(f"cannot read {path} ({error}); give a text file with one class name a line") from None
    names = [name.strip() for name in names]
    if "" in names:
        line = f"line {names.index('') + 1} is empty" if len(names) > 1 else "it is empty"
        raise UnveilError(f"{path} should hold one class name a line, and {line}")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UnveilError(f"{path} names the class {twice[0]!r} twice; the number of a class must be certain")
    return tuple(names)


@dataclass(frozen=True)
class _Part:
    path: str
    source: FolderSource | ShardSource | TableSource
    classes: tuple[str, ...] | None
    """What the source's labels are places in; None: they are integers without names."""


def _tar_folder(path: str) -> str:
    """The same for tars that lie side by side; any other path stands alone."""
    is_tar = path.lower().endswith(".tar") and not os.path.isdir(path)
    return os.path.join(os.path.dirname(path), "*.tar") if is_tar else path


def _open(paths: list[str], shortest_side: int | None, on_progress: Progress | None) -> list[_Part]:
    """Parts of one path, or of tars that lie side by side."""
    path = paths[0]
    if os.path.isdir(path):
        scan = scan_folder(path, on_progress)
        parts = []
        if len(scan.names) or not scan.tars:
            folder = FolderSource(path, labelled=True, shortest_side=shortest_side, scan=scan)
            parts.append(_Part(path, folder, folder.classes))
        if scan.tars:
            parts.append(_open_tars(path, scan.tars, shortest_side, on_progress))
        return parts
    if path.lower().endswith(".tar"):
        return [_open_tars(path, paths, shortest_side, on_progress)]
    if path.lower().endswith(TABLE_SUFFIXES):
        table = TableSource(path, shortest_side=shortest_side, on_progress=on_progress)
        return [_Part(path, table, table.classes)]
    raise UnveilError(
        f"{path} says nothing about classes; give a folder of class folders, a .csv or .tsv of path,label, or a .tar "
        "with labels"
    )


def _open_tars(path: str, tars: list[str], shortest_side: int | None, on_progress: Progress | None) -> _Part:
    source = ShardSource(tars, labelled=True, shortest_side=shortest_side, on_progress=on_progress)
    folder = os.path.dirname(os.path.abspath(tars[0]))
    beside = (os.path.join(place, CLASSES_FILE) for place in (folder, os.path.dirname(folder)))
    names = next((read_classes(file) for file in beside if os.path.isfile(file)), None)
    return _Part(path, source, names)


def _classes_of(parts: Sequence[_Part]) -> tuple[str, ...]:
    """Of all parts together: in their own order where they agree on one, else sorted."""
    named = {part.classes for part in parts if part.classes is not None}
    if named and any(part.classes is None for part in parts):
        bare = next(part.path for part in parts if part.classes is None)
        raise UnveilError(
            f"the labels of {bare} are integers and other parts of the data name their classes; say what the integers "
            "mean with --classes FILE (one name a line)"
        )
    if len(named) == 1:
        return next(iter(named))
    if named:
        return tuple(sorted(set().union(*named)))
    numbers: set[int] = set()
    for part in parts:
        labels = part.source.labels()
        assert labels is not None
        numbers.update(np.unique(labels).tolist())
    if min(numbers) < 0:
        part = next(part for part in parts if min(numbers) in np.asarray(part.source.labels()))
        raise UnveilError(f"{part.path}: a label is {min(numbers)}; labels are numbers from 0 on, or names")
    return tuple(str(number) for number in sorted(numbers))


def _numbers(part: _Part, classes: tuple[str, ...]) -> dict[int, int]:
    """The part's labels -> places in `classes`."""
    place_of = {name: place for place, name in enumerate(classes)}
    if part.classes is not None:
        found = {number: place_of[name] for number, name in enumerate(part.classes) if name in place_of}
        if len(found) < len(part.classes):
            _check_known(part, part.classes, place_of)
        return found
    if all(name.isdecimal() for name in classes):
        numbers = {int(name): place for place, name in enumerate(classes)}
    else:
        numbers = {place: place for place in range(len(classes))}
    if isinstance(part.source, TableSource):
        labels = part.source.labels()
        strange = np.flatnonzero(~np.isin(labels, list(numbers)))
        if len(strange):
            raise UnveilError(_out_of_range(part.source.name(int(strange[0])), int(labels[strange[0]]), numbers))
    return numbers


def _check_known(part: _Part, names: tuple[str, ...], place_of: Mapping[str, int]) -> None:
    """Raises UnveilError where images belong to a class that is not known; an empty folder is none of those."""
    labels = part.source.labels()
    assert labels is not None
    counts = Counter(labels.tolist())
    strange = [name for number, name in enumerate(names) if name not in place_of and counts[number]]
    if strange:
        known = ", ".join(list(place_of)[:5]) + (", ..." if len(place_of) > 5 else "")
        what = "the class" if len(strange) == 1 else f"{len(strange)} classes such as"
        raise UnveilError(
            f"{part.path} has {what} {strange[0]!r}, which is not among the {len(place_of)} that are known ({known}); "
            "give both sets the same class names, or take those images out"
        )


def _say_what_is_missing(parts: Sequence[_Part], classes: tuple[str, ...]) -> None:
    """Log which classes have no image, where that is known without reading one."""
    if any(isinstance(part.source, ShardSource) for part in parts):
        return
    found: set[int] = set()
    for part in parts:
        labels, numbers = part.source.labels(), _numbers(part, classes)
        assert labels is not None
        found.update(numbers[label] for label in np.unique(labels).tolist())
    absent = [name for place, name in enumerate(classes) if place not in found]
    if absent:
        logger.warning(
            "%s: no image of %d of the %d classes (%s)",
            " and ".join(part.path for part in parts),
            len(absent),
            len(classes),
            ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else ""),
        )


def _out_of_range(name: str, label: int | None, numbers: Mapping[int, int]) -> str:
    known = sorted(numbers)
    consecutive = known == list(range(len(known)))
    range_of = f"0 to {known[-1]}" if consecutive else ", ".join(map(str, known[:5])) + (", ..." * (len(known) > 5))
    return (
        f"the label of {name} is {label}, and the {len(known)} classes are numbered {range_of}; mend the label, or "
        "give the right list of names with --classes FILE"
    )
