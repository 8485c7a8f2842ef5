"""Images with captions from what a person types: tars, tables, JSON lines, COCO's annotations."""

import glob
import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from typing import Any

import numpy as np

from unveil.config.errors import UnveilError
from unveil.data.sources.base import Encoded, JoinedSource, Sample
from unveil.data.sources.caption_files import CaptionedFiles, json_rows, table_rows
from unveil.data.sources.caption_text import LeftOut
from unveil.data.sources.coco_captions import CAPTIONS_FILE, read_coco_captions
from unveil.data.sources.delimited import TABLE_SUFFIXES
from unveil.data.sources.labelled import TRAINING_FOLDER, VALIDATION_FOLDERS, find_splits
from unveil.data.sources.open import PACKED, expand_path
from unveil.data.sources.shards import ShardSource

logger = logging.getLogger(__name__)

JSON_LINES = ".jsonl"
LISTS = tuple(f"captions{suffix}" for suffix in (*TABLE_SUFFIXES, JSON_LINES))
"""Names under which a folder's list is found."""
ANNOTATIONS = "annotations"
"""COCO's folder of JSON files."""

Progress = Callable[[int], None]


class CaptionedShards:
    """The images of some tars that have captions.

    Raises:
        UnveilError: there is none.
    """

    def __init__(self, shards: ShardSource) -> None:
        self.shards = shards
        self.images_found = len(shards)
        counts = shards.caption_counts()
        self._places = np.flatnonzero(counts)
        self._captions = int(counts.sum())
        if not len(self._places):
            raise UnveilError(
                f"no image of {', '.join(shards.paths[:3])} has a caption ({shards.left_out()}); it is the .txt, "
                'or "caption" in the .json, that has the name of the image and lies next to it in the tar'
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the image cannot be decoded, or the tar not be read."""
        return replace(self.shards[self._place(index)], index=index)

    def encoded(self, index: int) -> Encoded:
        """Raises UnreadableSample where the tar cannot be read."""
        return self.shards.encoded(self._place(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """Of one image, without decoding it. Raises UnreadableSample where the tar cannot be read."""
        return self.shards.captions(self._place(index))

    def caption_count(self) -> int:
        """Of all images together."""
        return self._captions

    def left_out(self) -> LeftOut:
        """What of the tars is no image with a caption."""
        return self.shards.left_out()

    def digest(self) -> dict[str, dict[str, Any]]:
        """By tar; over names, sizes and captions."""
        return self.shards.digest()

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return int(self._places[index])


class CaptionedSource:
    """A source of images with one caption or more each: parts, one after the other."""

    def __init__(self, parts: Sequence[CaptionedFiles | CaptionedShards]) -> None:
        self.parts = tuple(parts)
        self._joined = JoinedSource(self.parts)
        self._ends = list(accumulate(len(part) for part in self.parts))
        self.images_found = sum(part.images_found for part in self.parts)
        """With those that are left out."""

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the image cannot be decoded."""
        return self._joined[index]

    def encoded(self, index: int) -> Encoded:
        """Raises UnreadableSample where the file cannot be read."""
        return self._joined.encoded(index)

    def captions(self, index: int) -> tuple[str, ...]:
        """Of one image, without decoding it. Raises UnreadableSample where they cannot be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        place = bisect_right(self._ends, index)
        part = self.parts[place]
        return part.captions(index - (self._ends[place] - len(part)))

    def caption_count(self) -> int:
        """Of all images together."""
        return sum(part.caption_count() for part in self.parts)

    def left_out(self) -> LeftOut:
        """What of the data is no image with a caption."""
        left_out = LeftOut()
        for part in self.parts:
            left_out.merge(part.left_out())
        return left_out

    def digest(self) -> dict[str, dict[str, Any]]:
        """By list or tar; the hashes cover the captions."""
        return self._joined.digest()


def open_captioned(
    paths: Sequence[str], *, shortest_side: int | None = None, on_progress: Progress | None = None
) -> CaptionedSource:
    """All images of `paths` that have captions, joined in order. What is left out is logged.

    Each path is a .tar (WebDataset: .txt or .json members), a .csv, .tsv or .jsonl of path and caption, COCO's
    captions_*.json, a folder that holds tars, or one captions.csv, .tsv or .jsonl, or one captions_*.json (in
    annotations/), or a pattern of such.

    Args:
        shortest_side: see `decode_image`.
        on_progress: called with the number of images found so far in the part that is being opened.

    Raises:
        UnveilError: nothing there, nothing that has captions, or a list that cannot be read.
    """
    if not paths:
        raise UnveilError(
            "no images with captions are given; name .tar shards, a .csv of path,caption, or COCO's folder"
        )
    files = [file for given in paths for path in expand_path(given) for file in _files_of(path)]
    parts: list[CaptionedFiles | CaptionedShards] = []
    for are_tars, together in groupby(files, _is_tar):
        if are_tars:
            shards = ShardSource(list(together), captioned=True, shortest_side=shortest_side, on_progress=on_progress)
            parts.append(CaptionedShards(shards))
        else:
            parts += [_open_list(path, shortest_side, on_progress) for path in together]
    source = CaptionedSource(parts)
    if left_out := source.left_out():
        logger.warning("left out: %s", left_out)
    return source


def find_captioned_splits(data: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What of `data` is for training and what for validation, as `open_captioned` takes them.

    COCO's captions_train*.json and captions_val*.json; tars called train-*.tar and val-*.tar (or valid, validation,
    test); folders of these names. `data` itself and nothing where it is not divided into such.
    """
    data = os.path.expanduser(data)
    if not os.path.isdir(data):
        return (data,), ()
    for word in VALIDATION_FOLDERS:
        words = (TRAINING_FOLDER, word)
        coco = [tuple(file for file in _coco_files(data) if _split_of(file).startswith(word)) for word in words]
        if all(coco):
            return coco[0], coco[1]
        # A pattern, since a configuration names its data, and tars may be thousands.
        tars = [os.path.join(glob.escape(data), f"{word}-*.tar") for word in words]
        if all(glob.glob(pattern) for pattern in tars):
            return (tars[0],), (tars[1],)
    train, validation = find_splits(data)
    if not _sets_in(train):
        return (data,), ()
    return (train,), (() if validation is None else (validation,))


def _open_list(path: str, shortest_side: int | None, on_progress: Progress | None) -> CaptionedFiles:
    folder, suffix, left_out = os.path.dirname(path), os.path.splitext(path)[1].lower(), LeftOut()
    if suffix in TABLE_SUFFIXES:
        rows = table_rows(path)
    elif suffix == JSON_LINES:
        rows = json_rows(path)
    elif suffix == ".json":
        folder, rows, left_out = read_coco_captions(path)
    else:
        advice = "unpack it first" if suffix in PACKED else "give .tar shards, a .csv, .tsv or .jsonl, or COCO's folder"
        raise UnveilError(f"{path} is no list of images with captions by its name; {advice}")
    return CaptionedFiles(path, folder, rows, left_out=left_out, shortest_side=shortest_side, on_progress=on_progress)


def _files_of(path: str) -> list[str]:
    """The list, or the tars, that a folder holds; any other path itself."""
    if not os.path.isdir(path):
        return [path]
    sets = _sets_in(path)
    if len(sets) == 1:
        return sets[0]
    if sets:
        names = ", ".join(os.path.relpath(files[0], path) for files in sets)
        raise UnveilError(f"{path} holds more than one set of captions ({names}); name the one that you mean")
    folders = [entry.path for entry in os.scandir(path) if entry.is_dir()]
    near = ", ".join(sorted(folder for folder in folders if _sets_in(folder))[:5])
    raise UnveilError(
        f"{path} holds no images with captions: no .tar, no {' or '.join(LISTS)}, no {ANNOTATIONS}/captions_*.json"
        + (f"; there are in {near}" if near else "")
    )


def _sets_in(folder: str) -> list[list[str]]:
    """Each list that is called `LISTS`, each of COCO's files, and all tars together."""
    lists = [file for name in LISTS if os.path.isfile(file := os.path.join(folder, name))]
    tars = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if _is_tar(name)]
    return [*([file] for file in lists + _coco_files(folder)), *([tars] if tars else [])]


def _coco_files(folder: str) -> list[str]:
    """In the folder itself or in its annotations/."""
    places = (folder, os.path.join(folder, ANNOTATIONS))
    return [
        os.path.join(place, name)
        for place in places
        if os.path.isdir(place)
        for name in sorted(os.listdir(place))
        if CAPTIONS_FILE.fullmatch(name)
    ]


def _split_of(file: str) -> str:
    """train2017 of captions_train2017.json."""
    return os.path.basename(file).removeprefix("captions_")


def _is_tar(path: str) -> bool:
    return path.lower().endswith(".tar")
