"""The quickstart's images: the embedded scenes, or class folders of a person's own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from unveil.build import build_source
from unveil.config import CenterCrop, UnveilError
from unveil.config.quickstart import QuickstartConfig
from unveil.data.crops import crop_box, resize_crop
from unveil.data.order import sample_rng
from unveil.data.samples.garments import CLASS_NAMES
from unveil.data.sources.base import Source, UnreadableSample
from unveil.data.sources.folder import FolderSource
from unveil.data.sources.labelled import hold_out
from unveil.quickstart.story import BATCH, Images

TEST_FOLDERS = ("test", "val", "valid", "validation")
FEWEST_IMAGES = 20
DECODED_SIDE = 512
"""Camera photos are decoded to about this short side: finer than any teacher looks, four times as fast."""


def open_data(config: QuickstartConfig, data: Path | None) -> tuple[Source, Source, tuple[str, ...]]:
    """Training source, test source, class names.

    Raises:
        UnveilError: fewer than two classes, or too few images to hold some out.
    """
    if data is None:
        return build_source(config.pretrain.data.source), build_source(config.test), CLASS_NAMES
    test_folder = next((data / name for name in TEST_FOLDERS if (data / name).is_dir()), None)
    if not (data / "train").is_dir():
        test_folder = None
    found = _class_folders(data if test_folder is None else data / "train")
    assert found.classes is not None
    if len(found.classes) < 2 or len(found) < FEWEST_IMAGES:
        raise UnveilError(
            f"{data} has {len(found.classes)} class folders with {len(found)} images in all; the quickstart needs 2 "
            f"classes and {FEWEST_IMAGES} images, as {data}/<class>/<image>"
        )
    if test_folder is None:
        return *hold_out(found), found.classes
    test = _class_folders(test_folder)
    if found.classes != test.classes:
        raise UnveilError(
            f"{data / 'train'} has the classes {', '.join(found.classes)}, {test_folder} has "
            f"{', '.join(test.classes or ())}; give both the same class folders"
        )
    return found, test, found.classes


def _class_folders(folder: Path) -> FolderSource:
    return FolderSource(str(folder), labelled=True, shortest_side=DECODED_SIDE)


def read_images(source: Source, size: int, done: Callable[[float], None]) -> Images:
    """All readable images of a source, centre crops of one size, with their labels and captions."""
    pixels, labels, places, captions = [], [], [], []
    for place in range(len(source)):
        try:
            sample = source[place]
        except UnreadableSample:
            continue
        box = crop_box(sample.image.size, CenterCrop(), sample_rng(0, place))
        pixels.append(resize_crop(sample.image, box, size, False))
        labels.append(sample.label)
        places.append(place)
        captions.append(sample.captions)
        if place % 500 == 0:
            done(place / len(source))
    return Images(torch.stack(pixels), torch.tensor(labels), torch.tensor(places), tuple(captions))


def labelled_batches(images: Images) -> Iterator[dict[str, Any]]:
    """Evaluation batches of images that are in memory."""
    for start in range(0, len(images.labels), BATCH):
        pixels, labels = images.pixels[start : start + BATCH], images.labels[start : start + BATCH]
        numbers = torch.arange(start, start + len(labels))
        yield {
            "image": pixels,
            "label": labels,
            "valid": torch.ones(len(labels), dtype=torch.bool),
            "sample_numbers": numbers,
        }
