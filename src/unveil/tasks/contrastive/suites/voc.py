"""PASCAL VOC 2007: the test images with all their classes, or their objects cut out."""

from pathlib import Path
from xml.etree import ElementTree

import torch

from unveil.tasks.classification.suites.suite import not_laid_out
from unveil.tasks.contrastive.suites.sources import Box, ListedImage, ListedSource
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet, MultiLabelSet, labelled

SIDES = ("xmin", "ymin", "xmax", "ymax")


def open_voc2007(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """Objects of the test images (difficult ones, too), or with "voc2007-multilabel" the images.

    Raises:
        UnveilError: the folder does not hold this set.
    """
    lists = folder / "ImageSets" / "Main"
    # Each class has a list of its own, whose name is the only place where the classes are named.
    classes = sorted(path.name.removesuffix("_test.txt") for path in lists.glob("*_test.txt"))
    if not classes or not (lists / "test.txt").is_file():
        raise not_laid_out(suite, folder, "there is no ImageSets/Main/test.txt, or none such as aeroplane_test.txt")
    numbers = (lists / "test.txt").read_text(encoding="utf-8").split()
    objects = [_objects(suite, folder, number, classes) for number in numbers]
    paths = [str(folder / "JPEGImages" / f"{number}.jpg") for number in numbers]
    if suite.name == "voc2007":
        cuts = tuple(
            ListedImage(path, label, box) for path, found in zip(paths, objects, strict=True) for label, box in found
        )
        return labelled(suite, ListedSource(cuts), classes)
    targets = torch.zeros(len(paths), len(classes), dtype=torch.bool)
    for row, found in enumerate(objects):
        targets[row, [label for label, _ in found]] = True
    if not targets.any():
        raise not_laid_out(suite, folder, "its annotations hold no object")
    source = ListedSource(tuple(ListedImage(path) for path in paths))
    return MultiLabelSet(suite=suite, source=source, classes=tuple(classes), count=len(classes), targets=targets)


def _objects(suite: ZeroShotSuite, folder: Path, number: str, classes: list[str]) -> list[tuple[int, Box]]:
    """Class and place of each object."""
    path = folder / "Annotations" / f"{number}.xml"
    try:
        root = ElementTree.parse(path).getroot()
        # The published evaluation cuts at these numbers as they stand, though they count pixels from 1.
        return [
            (classes.index(_text(entry, "name")), Box(*(int(_text(entry, f"bndbox/{side}")) for side in SIDES)))
            for entry in root.iter("object")
        ]
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise not_laid_out(suite, folder, f"Annotations/{path.name} cannot be read ({error})") from None


def _text(entry: ElementTree.Element, path: str) -> str:
    text = entry.findtext(path)
    if text is None:
        raise ValueError(f"an object has no {path}")
    return text
