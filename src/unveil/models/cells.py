"""The cells of a pyramid of maps, all of them or the visible ones alone, as rows of vectors.

A hidden cell is nowhere: not stored, not computed, never read. Only a convolution needs to know where cells lie; it is
given the whole map, with zeros where cells are hidden.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from unveil.config import UnveilError


@dataclass(frozen=True)
class Cells:
    """Which cells of one level's maps are held, and in which order.

    All cells are held row by row. Visible ones follow each other unit by unit, and within a unit so that the four cells
    below each cell of the next coarser level stand together.
    """

    rows: int
    columns: int
    places: Int64[Tensor, "bn"] | None
    """Where each visible cell is, counted row by row through the maps of the whole batch; None: all are held."""
    positions: Float[Tensor, "_ n d"] | None = None
    """What the cells are told of where they are, at the levels that ask for it."""

    def to_map(self, cells: Float[Tensor, "b n c"]) -> Float[Tensor, "b c h w"]:
        """The map that they lie in, zero where a cell is hidden."""
        if self.places is not None:
            samples, _, width = cells.shape
            hidden = cells.new_zeros(samples * self.rows * self.columns, width)
            cells = hidden.index_copy(0, self.places, cells.flatten(0, 1)).unflatten(0, (samples, -1))
        return cells.unflatten(1, (self.rows, self.columns)).permute(0, 3, 1, 2)

    def from_map(self, whole: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        """Of a map those that are held."""
        return self.held(whole.permute(0, 2, 3, 1).flatten(1, 2))

    def held(self, cells: Float[Tensor, "b hw c"]) -> Float[Tensor, "b n c"]:
        """Of all cells, row by row, those that are held."""
        if self.places is None:
            return cells
        return cells.flatten(0, 1).index_select(0, self.places).unflatten(0, (len(cells), -1))

    def fill(self, cells: Float[Tensor, "b n c"], filling: Float[Tensor, "c"]) -> Float[Tensor, "b hw c"]:
        """All cells, row by row, `filling` where they were hidden."""
        if self.places is None:
            return cells
        samples, _, width = cells.shape
        whole = filling.to(cells.dtype).expand(samples * self.rows * self.columns, width)
        return whole.index_copy(0, self.places, cells.flatten(0, 1)).unflatten(0, (samples, -1))

    def merge(self, cells: Float[Tensor, "b n c"]) -> Float[Tensor, "b n//4 4*c"]:
        """The four cells below each cell of the next coarser level as one: upper row first, left cell first."""
        if self.places is not None:
            return cells.unflatten(1, (-1, 4)).flatten(2)
        squares = cells.unflatten(1, (self.rows // 2, 2, self.columns // 2, 2))
        return squares.transpose(2, 3).flatten(3).flatten(1, 2)

    def spread(self, cells: Float[Tensor, "b n c"]) -> Float[Tensor, "b 4*n c"]:
        """Each cell four times, for the cells below it at the next finer level."""
        if self.places is not None:
            return cells.repeat_interleave(4, dim=1)
        whole = cells.unflatten(1, (self.rows, self.columns))
        return whole[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1).flatten(1, 4)


def all_cells(rows: int, columns: int, levels: int) -> tuple[Cells, ...]:
    """Every cell of every level, finest first. `rows` and `columns`: of the finest."""
    return tuple(Cells(rows >> level, columns >> level, None) for level in range(levels))


def visible_cells(
    units: Int64[Tensor, "b k"], unit_grid: tuple[int, int], *, coarsest_in_unit: int, levels: int
) -> tuple[Cells, ...]:
    """The cells of the visible mask units, finest level first.

    Args:
        units: their numbers, row by row on the grid of units, as many in every sample.
        coarsest_in_unit: cells of the coarsest level along the side of a unit.
    """
    side = coarsest_in_unit
    row, column = units // unit_grid[1], units % unit_grid[1]
    row, column = _squares(row, column, side)
    rows, columns = unit_grid[0] * side, unit_grid[1] * side
    found: list[Cells] = []
    for _ in range(levels):
        sample = torch.arange(len(units), device=units.device)[:, None]
        found.append(Cells(rows, columns, ((sample * rows + row) * columns + column).flatten()))
        row, column = _squares(row, column, 2)
        rows, columns = 2 * rows, 2 * columns
    return tuple(reversed(found))


def visible_units(
    mask: Bool[Tensor, "b n"], unit_grid: tuple[int, int], hidden: int | None = None
) -> Int64[Tensor, "b k"]:
    """The numbers of the units that are not hidden, ascending.

    Args:
        hidden: how many are in each sample, where the caller knows; None: looked up.

    Raises:
        UnveilError: the mask is of another grid, or hides everything, or not equally many units of each sample.
    """
    units = unit_grid[0] * unit_grid[1]
    if mask.shape[1] != units:
        raise UnveilError(f"the mask has {mask.shape[1]} units, but the image has {unit_grid[0]} x {unit_grid[1]}")
    if hidden is None:
        counts = mask.sum(dim=1).tolist()
        hidden = counts[0]
        if min(counts) < max(counts):
            raise UnveilError(
                f"the masks of a batch hide from {min(counts)} to {max(counts)} units, but columns compute equally "
                "many visible ones of each image; use masking RandomMasking, or BlockMasking with exact=true"
            )
    if hidden >= units:
        raise UnveilError(f"the mask hides all {units} units, and columns need one to look at")
    return mask.to(torch.uint8).argsort(dim=1, stable=True)[:, : units - hidden]


def _squares(
    row: Int64[Tensor, "b n"], column: Int64[Tensor, "b n"], side: int
) -> tuple[Int64[Tensor, "b m"], Int64[Tensor, "b m"]]:
    """Rows and columns of the side x side cells that each cell consists of, row by row within it."""
    steps = torch.arange(side, device=row.device)
    rows = (row[:, :, None, None] * side + steps[:, None]).expand(-1, -1, -1, side)
    columns = (column[:, :, None, None] * side + steps).expand(-1, -1, side, -1)
    return rows.flatten(1), columns.flatten(1)
