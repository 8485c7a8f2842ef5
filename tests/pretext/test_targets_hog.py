"""Histograms of oriented gradients, compared with scikit-image's."""

import numpy as np
import pytest
import torch
from skimage.feature import hog
from torch import Tensor

from unveil.config import HogTarget, UnveilError
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.build import build_target
from unveil.pretext.targets.hog import HogPatches


def pictures(side: int, count: int = 2) -> Tensor:
    """Smooth ones, so that directions are not noise, with a corner of one colour."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 255
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)
    images[:, :, : side // 3, : side // 3] = 77
    return images


@pytest.mark.parametrize(("patch_size", "cells", "orientations"), [(16, 2, 9), (4, 1, 9), (14, 2, 6)])
def test_the_same_as_scikit_image(patch_size: int, cells: int, orientations: int) -> None:
    """Colour by colour: of several, scikit-image would take the one of the largest gradient at each pixel."""
    grid = (3, 3)
    images = pictures(3 * patch_size)
    target = HogPatches(HogTarget(orientations=orientations, cells=cells), grid, patch_size=patch_size)
    found = target(images)
    assert found.shape == (2, 9, target.dim) and target.dim == cells * cells * 3 * orientations
    side = patch_size // cells
    for number, image in enumerate(images.numpy()):
        expected = np.stack(
            [
                hog(
                    colour / 255,
                    orientations=orientations,
                    pixels_per_cell=(side, side),
                    cells_per_block=(1, 1),
                    block_norm="L2",
                    feature_vector=False,
                )[:, :, 0, 0]
                for colour in image
            ],
            axis=2,
        )
        # Rows and columns of cells, colour, bin -> patch, cell by cell.
        expected = expected.reshape(3, cells, 3, cells, 3, orientations).transpose(0, 2, 1, 3, 4, 5)
        np.testing.assert_allclose(found[number].numpy(), expected.reshape(9, -1), atol=2e-4)


def test_a_patch_of_one_colour_is_zeros_and_opposite_directions_are_one() -> None:
    target = HogPatches(HogTarget(cells=1), (1, 1), patch_size=8)
    assert not target(torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)).any()
    ramp = (torch.arange(8) * 20).to(torch.uint8).expand(1, 3, 8, 8)
    torch.testing.assert_close(target(ramp), target(ramp.flip(3)))
    torch.testing.assert_close(target(ramp)[0, 0].view(3, 9)[0], torch.eye(9)[0])


def test_it_is_a_target_and_resizes_images() -> None:
    target = build_target(HogTarget(), grid=(2, 2), patch_size=16)
    assert isinstance(target, Target) and target.image_size == 32
    assert target(pictures(48)).shape == (2, 4, target.dim)
    with pytest.raises(UnveilError, match=r"patches of 15 pixels .* target\.cells"):
        build_target(HogTarget(), grid=(2, 2), patch_size=15)
    with pytest.raises(UnveilError, match="at least 1"):
        HogTarget(cells=0)
