"""Crops finished on the device against those of the workers: the same draws, pixels within the stated tolerance."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.config import CenterCrop, RandomResizedCrop
from unveil.config.data import Crop
from unveil.data.crops import crop_box, resize_crop
from unveil.data.device_crops import TOLERANCE, DeviceCrops, collate_cuts, cut_out, resized
from unveil.data.samples.photos import PHOTOS, photo_path
from unveil.data.sources.base import Sample


def photos() -> Iterator[Image.Image]:
    """Photos of several sizes, and noise, on which every rounding shows."""
    for number, (width, height) in enumerate(((250, 187), (90, 130), (33, 400))):
        with Image.open(photo_path(*PHOTOS[number])) as photo:
            yield photo.convert("RGB").resize((width, height))
    yield Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 120, 3), dtype=np.uint8))


def sample_of(image: Image.Image) -> Sample:
    return Sample(image, "photo", None, 0)


@pytest.mark.parametrize("crop", [RandomResizedCrop(), CenterCrop(share=0.875)], ids=["random", "centre"])
@pytest.mark.parametrize("size", [24, 112])
def test_pixels_are_those_of_the_workers(crop: Crop, size: int) -> None:
    """Made smaller and larger, with and without the image's border, mirrored and not."""
    rng = random.Random(size)
    expected, cuts, mirrored = [], [], []
    for image in photos():
        for flip in (False, True, False):
            box = crop_box(image.size, crop, rng)
            expected.append(resize_crop(image, box, size, flip))
            cuts.append(cut_out(sample_of(image), box, size))
            mirrored.append(flip)
    batch = collate_cuts(cuts)
    found = resized(batch["cuts"], batch["extents"], batch["boxes"], torch.tensor(mirrored), size)
    differences = (found.int() - torch.stack(expected).int()).abs()
    assert differences.max().item() <= TOLERANCE
    # Few lie on an edge: of these 4 x 3 images about one in ten thousand.
    assert (differences > 0).double().mean().item() < 3e-4


def test_a_crop_beyond_the_image_sees_nothing_there() -> None:
    """A centre crop of an image smaller than its result, whose filter reaches over every border."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    box = crop_box(image.size, CenterCrop(), random.Random(0))
    batch = collate_cuts([cut_out(sample_of(image), box, 32)])
    found = resized(batch["cuts"], batch["extents"], batch["boxes"], torch.tensor([True]), 32)
    assert (found[0].int() - resize_crop(image, box, 32, True).int()).abs().max() <= TOLERANCE


def test_only_what_the_filter_sees_is_handed_over() -> None:
    image = Image.fromarray(np.zeros((400, 400, 3), dtype=np.uint8))
    cut = cut_out(sample_of(image), (100, 120, 200, 170), 50)
    # Twice as wide as its result: 2 x 2 pixels more on each side; as high as it: 2.
    assert cut.pixels.shape == (3, 54, 108) and cut.box == (4, 2, 104, 52)


def test_the_teacher_gets_the_same_crop_in_its_own_size() -> None:
    images = list(photos())
    boxes = [crop_box(image.size, RandomResizedCrop(), random.Random(3)) for image in images]
    batch = collate_cuts([cut_out(sample_of(image), box, 16) for image, box in zip(images, boxes, strict=True)])
    flipped = torch.tensor([True, False, False, True])
    finished = DeviceCrops(torch.device("cpu"), 24, 16)([batch | {"flipped": flipped, "names": list("abcd")}])[0]
    assert finished.keys() == {"image", "teacher_image", "flipped", "names"}
    for name, size in (("image", 24), ("teacher_image", 16)):
        expected = [resize_crop(i, b, size, f) for i, b, f in zip(images, boxes, flipped.tolist(), strict=True)]
        assert (finished[name].int() - torch.stack(expected).int()).abs().max() <= TOLERANCE


@pytest.mark.gpu
def test_a_gpu_keeps_the_tolerance() -> None:
    image = next(photos())
    box = crop_box(image.size, RandomResizedCrop(), random.Random(0))
    batch = collate_cuts([cut_out(sample_of(image), box, 112)]) | {"flipped": torch.tensor([False])}
    found = DeviceCrops(torch.device("cuda"), 112)([batch])[0]["image"]
    assert found.is_cuda and (found[0].cpu().int() - resize_crop(image, box, 112, False).int()).abs().max() <= TOLERANCE
