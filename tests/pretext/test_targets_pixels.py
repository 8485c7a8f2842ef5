"""Pixel targets by hand."""

import numpy as np
import torch

from unveil.pretext.targets.pixels import PixelPatches


def test_patches_are_rows_of_pixels_with_their_colours_together() -> None:
    images = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(1, 3, 4, 6)
    target = PixelPatches((2, 3), patch_size=2, normalize=False)
    patches = target(images)
    assert patches.shape == (1, 6, 12) and target.dim == 12 and target.image_size == 4
    # Patch 4 is the second row's middle one: pixels (2, 2), (2, 3), (3, 2), (3, 3), each with its three colours.
    by_hand = [images[0, colour, y, x].item() / 127.5 - 1 for y in (2, 3) for x in (2, 3) for colour in range(3)]
    assert np.allclose(patches[0, 4].numpy(), by_hand, atol=1e-6)


def test_normalized_by_each_patch() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    patches = PixelPatches((2, 2), patch_size=4, normalize=True)(images)
    raw = images[1, :, 4:, :4].permute(1, 2, 0).numpy().reshape(-1) / 127.5 - 1.0
    by_hand = (raw - raw.mean()) / np.sqrt(raw.var(ddof=1) + 1e-6)
    assert np.allclose(patches[1, 2].numpy(), by_hand, atol=1e-4)


def test_a_patch_of_one_colour_is_finite() -> None:
    patches = PixelPatches((1, 1), patch_size=4, normalize=True)(torch.full((1, 3, 4, 4), 200, dtype=torch.uint8))
    assert torch.equal(patches, torch.zeros(1, 1, 48))


def test_normalized_by_squares_within_each_patch() -> None:
    """Square by square from the picture: patches of 4, squares of 2."""
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = np.empty((8, 8, 3))
    for top in range(0, 8, 2):
        for left in range(0, 8, 2):
            raw = images[0, :, top : top + 2, left : left + 2].permute(1, 2, 0).numpy() / 127.5 - 1.0
            expected[top : top + 2, left : left + 2] = (raw - raw.mean()) / np.sqrt(raw.var(ddof=1) + 1e-6)
    target = PixelPatches((2, 2), patch_size=4, normalize=True, normalized_side=2)
    patches = target(images)
    for patch, (top, left) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        by_hand = expected[top : top + 4, left : left + 4].reshape(-1)
        assert np.allclose(patches[0, patch].numpy(), by_hand, atol=1e-4)
    whole = PixelPatches((2, 2), patch_size=4, normalize=True)
    assert target.name != whole.name
    same = PixelPatches((2, 2), patch_size=4, normalize=True, normalized_side=4)
    assert same.name == whole.name and torch.equal(same(images), whole(images))


def test_patches_are_put_together_to_the_image_again() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for settings in ({"normalize": False}, {"normalize": True}, {"normalize": True, "normalized_side": 2}):
        target = PixelPatches((2, 3), patch_size=4, **settings)
        assert torch.equal(target.pictures(target(images), images), images)
    # Nothing but the mean and the deviation of the image is added to what is predicted.
    grey = target.pictures(torch.zeros(2, 6, 48), images)
    assert np.allclose(grey[1, :, 2:4, 4:6].float(), images[1, :, 2:4, 4:6].float().mean(), atol=0.51)
