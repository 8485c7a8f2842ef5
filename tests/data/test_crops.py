import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop as Reference

from unveil.config import CenterCrop, RandomResizedCrop
from unveil.data.crops import crop_box, least_side, resize_crop


@pytest.mark.parametrize("size", [(500, 375), (80, 400), (30, 31), (1000, 90)])
def test_random_boxes_are_distributed_like_torchvisions(size: tuple[int, int]) -> None:
    width, height = size
    rng = random.Random(0)
    boxes = [crop_box(size, RandomResizedCrop(), rng) for _ in range(3000)]
    ours = np.array([(x1 - x0, y1 - y0, x0, y0) for x0, y0, x1, y1 in boxes])
    image = torch.zeros(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [Reference.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    theirs = np.array([(w, h, left, top) for top, left, h, w in drawn])
    error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / 3000)
    # Half a pixel: their fallback rounds the middle down.
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= 4 * error + 0.51).all()
    assert (np.abs(ours.std(axis=0) - theirs.std(axis=0)) <= 0.05 * theirs.std(axis=0) + 0.6).all()
    assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in boxes)


def test_one_pixel_is_a_box() -> None:
    assert crop_box((1, 1), RandomResizedCrop(), random.Random(0)) == (0, 0, 1, 1)
    assert crop_box((1, 1), CenterCrop(), random.Random(0)) == (0, 0, 1, 1)
    assert resize_crop(Image.new("RGB", (1, 1), (3, 4, 5)), (0, 0, 1, 1), 4, True)[:, 2, 3].tolist() == [3, 4, 5]


def test_center_crop_is_the_middle_and_draws_nothing() -> None:
    rng = random.Random(0)
    assert crop_box((500, 300), CenterCrop(), rng) == (100, 0, 400, 300)
    assert crop_box((300, 500), CenterCrop(share=0.5), rng) == (75, 175, 225, 325)
    assert rng.random() == random.Random(0).random()


def test_resized_values_are_those_at_the_pixels_centres() -> None:
    """A bicubic kernel reproduces a straight ramp, so every value follows from where its centre lies."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (60, 200, 3))
    result = resize_crop(Image.fromarray(np.ascontiguousarray(ramp)), (40, 10, 120, 50), 20, False)
    assert result.shape == (3, 20, 20) and result.dtype == torch.uint8
    expected = 40 + (torch.arange(20) + 0.5) * (80 / 20) - 0.5
    assert (result.float() - expected).abs().max() <= 0.5


def test_whole_image_equals_pillow_and_flip_mirrors(photo) -> None:
    image = photo(3, 90, 70)
    result = resize_crop(image, (0, 0, 90, 70), 32, False)
    assert np.array_equal(result.permute(1, 2, 0), np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))
    assert torch.equal(resize_crop(image, (0, 0, 90, 70), 32, True), result.flip(2))


@pytest.mark.parametrize("crop", [RandomResizedCrop(), CenterCrop(share=0.875)])
def test_least_side_leaves_every_crop_twice_the_pixels(crop: RandomResizedCrop | CenterCrop) -> None:
    side = least_side(crop, 32)
    rng = random.Random(1)
    for size in ((side, side), (side, 2 * side), (3 * side, side)):
        boxes = [crop_box(size, crop, rng) for _ in range(500)]
        assert min(min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes) >= 63
    assert side <= math.ceil(64 / math.sqrt(0.2 * 0.75))
