"""UCF-101 and Kinetics."""

import csv
import re
from pathlib import Path

from unveil.config import UnveilError
from unveil.tasks.classification.suites.suite import not_laid_out
from unveil.tasks.contrastive.suites.class_folders import spaced
from unveil.tasks.contrastive.suites.frames import VideoSource
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet, labelled

SUFFIXES = (".mp4", ".avi", ".mkv", ".webm")

TEST_LISTS = "ucfTrainTestlist"

_CLIP = re.compile(r"(.+)_(\d{6})_(\d{6})")
"""Kinetics' file names: YouTube's id, first and last second."""


def open_ucf101(suite: ZeroShotSuite, folder: Path, *, frames: int) -> LabelledSet:
    """The videos of the first test list.

    Raises:
        UnveilError: the lists are not there or are damaged.
    """
    lists = next((place / TEST_LISTS for place in (folder, folder.parent) if (place / TEST_LISTS).is_dir()), None)
    if lists is None:
        raise not_laid_out(suite, folder, f"there is no {TEST_LISTS}/ in it or beside it")
    try:
        index = [line.split() for line in (lists / "classInd.txt").read_text(encoding="utf-8").splitlines() if line]
        tests = (lists / "testlist01.txt").read_text(encoding="utf-8").split()
        place_of = {name: place for place, (_, name) in enumerate(index)}
        labels = {test: place_of[test.split("/")[0]] for test in tests}
    except (OSError, ValueError, KeyError) as error:
        raise not_laid_out(
            suite, folder, f"the lists in {lists} cannot be read ({type(error).__name__}: {error})"
        ) from None
    there = {test: label for test, label in labels.items() if (folder / test).is_file()}
    return _videos(
        suite,
        folder,
        [(str(folder / test), label) for test, label in there.items()],
        [_words(name) for name in place_of],
        frames,
        missing=len(labels) - len(there),
    )


def open_kinetics(suite: ZeroShotSuite, folder: Path, *, frames: int) -> LabelledSet:
    """The validation videos in class folders, or side by side with a table that says what they show.

    Raises:
        UnveilError: neither is there, the table is damaged, or a video is not in it.
    """
    validation = folder / "val"
    if not validation.is_dir():
        raise not_laid_out(suite, folder, "there is no val/ in it")
    folders = sorted(path for path in validation.iterdir() if path.is_dir() and not path.name.startswith("."))
    table = next((path for path in (folder / "annotations" / "val.csv", folder / "val.csv") if path.is_file()), None)
    if table is None:
        pairs = [(str(path), label) for label, place in enumerate(folders) for path in _files(place)]
        if not pairs:
            raise not_laid_out(suite, folder, "val/ has no folders of videos, and there is no annotations/val.csv")
        return _videos(suite, folder, pairs, [spaced(place.name) for place in folders], frames)
    label_of = _read_table(table)
    classes = sorted(set(label_of.values()))
    place_of = {name: place for place, name in enumerate(classes)}
    clips = {_clip(path): path for place in (validation, *folders) for path in _files(place)}
    pairs = [(str(clips[clip]), place_of[label]) for clip, label in label_of.items() if clip in clips]
    if strange := len(clips.keys() - label_of.keys()):
        example = next(path for clip, path in clips.items() if clip not in label_of)
        raise not_laid_out(
            suite, folder, f"{strange:,} of its {len(clips):,} videos are not in {table}, {example.name} for one"
        )
    return _videos(suite, folder, pairs, classes, frames, missing=len(label_of) - len(pairs))


def _videos(
    suite: ZeroShotSuite,
    folder: Path,
    pairs: list[tuple[str, int]],
    classes: list[str],
    frames: int,
    *,
    missing: int = 0,
) -> LabelledSet:
    if not pairs:
        raise not_laid_out(suite, folder, "it holds none of the videos of its list")
    source = VideoSource(tuple(path for path, _ in pairs), tuple(label for _, label in pairs), frames)
    notes = [f"{missing:,} of its {missing + len(pairs):,} videos are not there"] if missing else []
    if frames > 1:
        notes.append(f"features averaged over {frames} frames; the published numbers are of the centre frame")
    return labelled(suite, source, classes, notes=notes)


def _read_table(path: Path) -> dict[tuple[str, int], str]:
    """Class of each clip by YouTube's id and first second."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {(row["youtube_id"], int(float(row["time_start"]))): row["label"] for row in csv.DictReader(file)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnveilError(
            f"{path} is not Kinetics' table of label, youtube_id, time_start ({type(error).__name__}: {error}); "
            "download it again"
        ) from None


def _clip(path: Path) -> tuple[str, int]:
    match = _CLIP.fullmatch(path.stem)
    return (match[1], int(match[2])) if match else (path.stem, 0)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def _words(name: str) -> str:
    """ "ApplyEyeMakeup" in words, "YoYo" and "TaiChi" too."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
