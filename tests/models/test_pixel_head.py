"""Which pixels of the picture the head's numbers stand for."""

import dataclasses

import torch
import torch.nn.functional as F

from tests.models.revcolv2_tiny import TINY
from unveil.models.pixel_head import PixelHead
from unveil.pretext.targets.pixels import PixelPatches


def test_a_head_that_copies_gives_the_targets_of_the_units() -> None:
    """Its norm and layer taken out, on a map of each cell's own 4 x 4 pixels: what `PixelPatches` says of the image."""
    head = PixelHead(dataclasses.replace(TINY, widths=(48, 12, 16, 20)))
    head.norm, head.proj = torch.nn.Identity(), torch.nn.Identity()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    cells = F.pixel_unshuffle(images / 127.5 - 1.0, 4).unflatten(1, (3, 16)).transpose(1, 2).flatten(1, 2)
    units = torch.tensor([[5, 0, 3], [1, 1, 4]])
    expected = PixelPatches((2, 3), patch_size=32, normalize=False)(images)
    expected = expected.gather(1, units[:, :, None].expand(-1, -1, 32 * 32 * 3))
    assert torch.equal(head(cells, units), expected)


def test_each_cell_answers_for_itself() -> None:
    head = PixelHead(TINY)
    finest = torch.randn(1, 8, 16, 16)
    before = head(finest, torch.tensor([[3]])).view(32, 32, 3)
    finest[0, :, 8 + 2, 8 + 5] = torch.randn(8)
    changed = (head(finest, torch.tensor([[3]])).view(32, 32, 3) != before).any(dim=2)
    assert changed[8:12, 20:24].all() and changed.sum() == 16
