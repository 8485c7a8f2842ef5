"""STL-10: pixels and labels in two bare files."""

from pathlib import Path

import numpy as np

from unveil.tasks.classification.suites.suite import not_laid_out
from unveil.tasks.contrastive.suites.sources import ArraySource
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet, labelled

SIDE = 96


def open_stl10(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """The test images. torchvision's reader would hash the 3 GB of unlabelled ones first, in every process.

    Raises:
        UnveilError: a file is missing, or they do not fit together.
    """
    pixels, labels, names = (folder / name for name in ("test_X.bin", "test_y.bin", "class_names.txt"))
    for file in (pixels, labels, names):
        if not file.is_file():
            raise not_laid_out(suite, folder, f"there is no {file.name} in it")
    classes = names.read_text(encoding="utf-8").split()
    numbers = np.fromfile(labels, dtype=np.uint8).astype(np.int64) - 1
    size = 3 * SIDE * SIDE
    if pixels.stat().st_size != len(numbers) * size or not len(numbers):
        raise not_laid_out(suite, folder, f"test_X.bin has not {size:,} bytes for each of {len(numbers):,} labels")
    if numbers.min() < 0 or numbers.max() >= len(classes):
        raise not_laid_out(suite, folder, f"test_y.bin has labels beyond the {len(classes)} classes")
    # Columns come before rows in the file.
    images = np.memmap(pixels, dtype=np.uint8, mode="r").reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)
    return labelled(suite, ArraySource(images, numbers.tolist(), str(pixels)), classes)
