"""Held cells against whole maps and the operations that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unveil.config import UnveilError
from unveil.models.cells import Cells, all_cells, visible_cells, visible_units

GRID = (2, 3)
"""Of mask units; a unit has 2 x 2 cells of the coarsest level, and there are three levels."""
MASK = torch.tensor([[True, False, True, True, False, True], [False, True, True, True, True, False]])


def some_cells() -> tuple[Cells, ...]:
    return visible_cells(visible_units(MASK, GRID), GRID, coarsest_in_unit=2, levels=3)


def visible_map(level: int) -> Tensor:
    """1 where a cell of this level is visible."""
    return (~MASK).float().view(2, 1, *GRID).repeat_interleave(8 >> level, 2).repeat_interleave(8 >> level, 3)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_held_cells_are_the_visible_ones(level: int) -> None:
    cells = some_cells()[level]
    whole = torch.randn(2, 5, 16 >> level, 24 >> level)
    held = cells.from_map(whole)
    assert held.shape == (2, 2 * (8 >> level) ** 2, 5)
    assert torch.equal(cells.to_map(held), whole * visible_map(level))
    filling = torch.randn(5)
    filled = cells.fill(held, filling).transpose(1, 2).unflatten(2, (cells.rows, cells.columns))
    assert torch.equal(filled, torch.where(visible_map(level) > 0, whole, filling[:, None, None]))


@pytest.mark.parametrize("hidden", [False, True])
def test_merge_and_spread_are_neighbouring_levels(hidden: bool) -> None:
    """Against a convolution of stride 2 and nearest enlargement on whole maps."""
    finer, coarser = some_cells()[:2] if hidden else all_cells(16, 24, 2)
    whole, weight = torch.randn(2, 5, 16, 24), torch.randn(7, 5, 2, 2)
    merged = finer.merge(finer.from_map(whole)) @ weight.permute(2, 3, 1, 0).flatten(0, 2)
    torch.testing.assert_close(merged, coarser.from_map(F.conv2d(whole, weight, stride=2)))
    small = torch.randn(2, 5, 8, 12)
    enlarged = F.interpolate(small, scale_factor=2.0, mode="nearest")
    assert torch.equal(coarser.spread(coarser.from_map(small)), finer.from_map(enlarged))


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UnveilError, match="the mask has 6 units, but the image has 2 x 2"):
        visible_units(MASK, (2, 2))
    uneven = MASK.clone()
    uneven[0, 1] = True
    with pytest.raises(UnveilError, match="hide from 4 to 5 units"):
        visible_units(uneven, GRID)
    with pytest.raises(UnveilError, match="hides all 6 units"):
        visible_units(torch.ones_like(MASK), GRID)
    assert torch.equal(visible_units(MASK, GRID), torch.tensor([[1, 4], [0, 5]]))
    assert torch.equal(visible_units(MASK, GRID, hidden=4), torch.tensor([[1, 4], [0, 5]]))
