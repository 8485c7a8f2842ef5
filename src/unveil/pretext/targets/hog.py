"""Histograms of oriented gradients as targets (MaskFeat, Wei et al. 2022, section 3)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from unveil.config import HogTarget, UnveilError
from unveil.pretext.targets.inference import fit_images

EPSILON = 1e-5
"""Under the root of a histogram's norm (Dalal and Triggs, 2005, in scikit-image's reading): a cell of one colour, which
has no gradient, becomes zeros."""


class HogPatches:
    """Each patch's histograms, cell by cell, of each of them red, green and blue: dim = cells^2 * 3 * orientations.

    The gradient at a pixel is the difference of its two neighbours, 0 at the image's border; its magnitude counts for
    the bin of its direction, of which opposite ones are one. Each histogram has length 1.
    """

    def __init__(self, config: HogTarget, grid: tuple[int, int], *, patch_size: int) -> None:
        """Raises UnveilError where cells do not divide the patch."""
        if patch_size % config.cells:
            raise UnveilError(
                f"patches of {patch_size} pixels do not divide into {config.cells} cells a side; give another "
                "target.cells"
            )
        self.grid = grid
        self.image_size = grid[0] * patch_size
        self.dim = config.cells**2 * 3 * config.orientations
        self._orientations = config.orientations
        self._cells = config.cells
        self._cell = patch_size // config.cells
        self.name = f"hog/{config.orientations}/{grid[0]}x{grid[1]} of {config.cells}x{config.cells} cells"

    def to(self, place: torch.device | str) -> "HogPatches":
        """Nothing to move."""
        return self

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        rows, columns = self.grid
        side = self._cell * self._cells
        histograms = self._histograms(fit_images(images, (rows * side, columns * side)) / 255.0)
        lengths = (histograms.square().sum(dim=-1, keepdim=True) + EPSILON**2).sqrt()
        cells = (histograms / lengths).unflatten(2, (rows, self._cells)).unflatten(4, (columns, self._cells))
        # b, colour, row, cell row, column, cell column, bin -> b, row, column, cell row, cell column, colour, bin.
        return cells.permute(0, 2, 4, 3, 5, 1, 6).reshape(len(images), rows * columns, self.dim)

    def _histograms(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 rows columns bins"]:
        """Of each cell, before it is normalised: the mean over its pixels."""
        down, right = torch.zeros_like(pixels), torch.zeros_like(pixels)
        down[:, :, 1:-1] = pixels[:, :, 2:] - pixels[:, :, :-2]
        right[:, :, :, 1:-1] = pixels[:, :, :, 2:] - pixels[:, :, :, :-2]
        direction = torch.atan2(down, right).remainder(math.pi)
        bins = (direction * (self._orientations / math.pi)).long().clamp_(max=self._orientations - 1)
        magnitude = torch.hypot(down, right)
        # Bin by bin: all of them at once would take nine times the images' memory.
        histograms = [
            F.avg_pool2d(torch.where(bins == number, magnitude, 0.0), self._cell)
            for number in range(self._orientations)
        ]
        return torch.stack(histograms, dim=-1)
