"""Sets with one folder for each class, whose names say what it shows."""

import re
from collections.abc import Callable
from pathlib import Path

from unveil.config import UnveilError
from unveil.data.sources.folder import FolderSource
from unveil.tasks.classification.suites.suite import not_laid_out
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet, labelled

BACKGROUND = "BACKGROUND_Google"
"""Caltech-101's folder of images that show none of its objects."""


def spaced(name: str) -> str:
    """ "baseball_diamond" or "apse/indoor" in words."""
    return re.sub(r"[_/]+", " ", name).strip()


def uncamelled(name: str) -> str:
    """ "AnnualCrop" in words: "annual crop"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def caltech_name(name: str) -> str:
    """The background's folder names its origin and not what it shows."""
    return "background" if name == BACKGROUND else spaced(name)


def open_class_folders(suite: ZeroShotSuite, folder: Path, name_of: Callable[[str], str] = spaced) -> LabelledSet:
    """Images in folders of their classes, which are numbered in the order of the folders' names.

    Args:
        name_of: what a folder's name means.

    Raises:
        UnveilError: no images there, or images beside the folders.
    """
    if not folder.is_dir():
        raise not_laid_out(suite, folder.parent, f"there is no {folder.name}/ in it")
    try:
        source = FolderSource(folder, labelled=True)
    except UnveilError as error:
        raise not_laid_out(suite, folder, str(error)) from None
    assert source.classes is not None
    return labelled(suite, source, [name_of(name) for name in source.classes])
