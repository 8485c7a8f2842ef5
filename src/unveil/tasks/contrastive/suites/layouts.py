"""Opening the benchmarks that are on disk."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unveil.config import UnveilError
from unveil.data.sources.missing import missing_path
from unveil.tasks.classification.suites.suite import locate
from unveil.tasks.contrastive.suites.birdsnap import open_birdsnap
from unveil.tasks.contrastive.suites.captions import open_coco, open_flickr30k
from unveil.tasks.contrastive.suites.class_folders import caltech_name, open_class_folders, uncamelled
from unveil.tasks.contrastive.suites.dtd import open_dtd
from unveil.tasks.contrastive.suites.imagenet import open_imagenet, open_objectnet
from unveil.tasks.contrastive.suites.names import OURS, Names
from unveil.tasks.contrastive.suites.stl10 import open_stl10
from unveil.tasks.contrastive.suites.suite import SUITES, ZeroShotSuite, zero_shot_suite
from unveil.tasks.contrastive.suites.torchvision_sets import open_fer2013, open_listed, open_pictured
from unveil.tasks.contrastive.suites.videos import open_kinetics, open_ucf101
from unveil.tasks.contrastive.suites.voc import open_voc2007
from unveil.tasks.contrastive.suites.zero_shot_set import BenchmarkSet, LabelledSet, complete

UNNAMED = "its files number its classes and name none; give their names with --class-names (docs/clip_evaluation.md)"


def open_zero_shot_suite(
    suite: ZeroShotSuite, folder: Path, *, names: Names = OURS, frames: int = 1, limit: int | None = None
) -> BenchmarkSet:
    """The benchmark in `folder`. The whole layout is checked here, before anything is evaluated.

    Args:
        names: lists that stand for ours.
        frames: of each video.
        limit: at most so many samples, evenly spread over the set.

    Raises:
        UnveilError: the folder does not hold this benchmark; the text says what was expected.
    """
    if not folder.is_dir():
        raise UnveilError(missing_path(str(folder)))
    found = _open(suite, folder, frames)
    return complete(names.of(found) if isinstance(found, LabelledSet) else found, limit)


def _open(suite: ZeroShotSuite, folder: Path, frames: int) -> BenchmarkSet:
    match suite.name:
        case "imagenet-1k" | "v2" | "adversarial" | "rendition" | "sketch":
            return open_imagenet(suite, folder)
        case "objectnet":
            return open_objectnet(suite, folder)
        case "cifar10" | "cifar100" | "gtsrb" | "mnist" | "pcam" | "pets":
            return open_pictured(suite, folder)
        case "food101" | "sun397" | "cars" | "fgvc-aircraft" | "flowers":
            return open_listed(suite, folder)
        case "dtd":
            return open_dtd(suite, folder)
        case "caltech101":
            return open_class_folders(suite, folder, caltech_name)
        case "eurosat":
            return open_class_folders(suite, folder, uncamelled)
        case "resisc45":
            return open_class_folders(suite, folder)
        case "rendered-sst2":
            return open_class_folders(suite, folder / "test")
        case "country211":
            # The folders are called AD, AE, ...: codes of countries, and no names.
            return replace(open_class_folders(suite, folder / "test"), classes=())
        case "fer2013":
            return open_fer2013(suite, folder)
        case "birdsnap":
            return open_birdsnap(suite, folder)
        case "stl10":
            return open_stl10(suite, folder)
        case "voc2007" | "voc2007-multilabel":
            return open_voc2007(suite, folder)
        case "ucf101":
            return open_ucf101(suite, folder, frames=frames)
        case "kinetics400" | "kinetics600" | "kinetics700":
            return open_kinetics(suite, folder, frames=frames)
        case "flickr30k":
            return open_flickr30k(suite, folder)
        case "coco":
            return open_coco(suite, folder)
    raise ValueError(f"no layout is known for {suite.name}")


def open_zero_shot_suites(
    given: Sequence[str],
    root: Path | None,
    *,
    names: Names = OURS,
    frames: int = 1,
    limit: int | None = None,
) -> tuple[list[BenchmarkSet], dict[str, str]]:
    """Those benchmarks that are there, in the order of `SUITES`, and for each of the others why it is left out.

    Args:
        given: "food101", or "food101=FOLDER" for one that lies elsewhere; "all" stands for every benchmark.
        root: the folder below which the others are looked for.

    Raises:
        UnveilError: an unknown name, a folder that does not hold what its name says, or no benchmark at all.
    """
    folders = _folders(given, root)
    found: list[BenchmarkSet] = []
    missing: dict[str, str] = {}
    for suite in SUITES:
        if suite.name not in folders:
            continue
        folder = folders[suite.name]
        if folder is None and root is not None and (folder := locate(suite, root)) is None:
            missing[suite.name] = f"{root} holds none of {', '.join(suite.folders)}"
        elif folder is not None:
            below = locate(suite, folder) or folder
            opened = open_zero_shot_suite(suite, below, names=names, frames=frames, limit=limit)
            if isinstance(opened, LabelledSet) and not opened.classes:
                missing[suite.name] = UNNAMED
            else:
                found.append(opened)
    if not found:
        raise UnveilError("; ".join(f"{name} is left out: {why}" for name, why in missing.items()))
    return found, missing


def _folders(given: Sequence[str], root: Path | None) -> dict[str, Path | None]:
    """Benchmarks by name, with the folders that were named for them."""
    folders: dict[str, Path | None] = {}
    for entry in given:
        name, equals, path = entry.partition("=")
        if equals and (not path or name == "all"):
            raise UnveilError(f"--suite {entry} names no folder of a suite; give NAME=FOLDER, or {name} alone")
        chosen = [suite.name for suite in SUITES] if name == "all" else [zero_shot_suite(name).name]
        for one in chosen:
            folders[one] = Path(path).expanduser() if path else folders.get(one)
    lacking = next((name for name, folder in folders.items() if folder is None), None)
    if root is None and lacking is not None:
        raise UnveilError(f"no folder is given in which {lacking} lies; give DATA, or --suite {lacking}=FOLDER")
    if root is not None and not root.is_dir():
        raise UnveilError(missing_path(str(root)))
    return folders
