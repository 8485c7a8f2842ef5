"""DTD, the textures of Cimpoi et al. 2014."""

from pathlib import Path

from unveil.tasks.classification.suites.suite import not_laid_out
from unveil.tasks.contrastive.suites.class_folders import spaced
from unveil.tasks.contrastive.suites.sources import ListedImage, ListedSource
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet, labelled


def open_dtd(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """Its first test list. torchvision's reader knows the folder only inside another of the same name.

    Raises:
        UnveilError: the list is not there.
    """
    tests = folder / "labels" / "test1.txt"
    if not tests.is_file() or not (folder / "images").is_dir():
        raise not_laid_out(suite, folder, "there is no labels/test1.txt or no images/ in it")
    lines = tests.read_text(encoding="utf-8").split()
    classes = sorted({line.split("/")[0] for line in lines})
    images = [ListedImage(str(folder / "images" / line), classes.index(line.split("/")[0])) for line in lines]
    return labelled(suite, ListedSource(tuple(images)), [spaced(name) for name in classes])
