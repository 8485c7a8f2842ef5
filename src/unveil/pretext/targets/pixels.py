"""The hidden patches' own pixels as targets (MAE, section 3: normalised pixels)."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unveil.pretext.targets.inference import fit_images

EPSILON = 1e-6
"""Added to a patch's variance: a patch of one colour becomes zeros. Its unit is that of pixels in -1 to 1."""


class PixelPatches:
    """Each patch's pixels in -1 to 1, row by row, the colours of a pixel together: dim = patch_size^2 * 3.

    Normalised, each patch has its own mean subtracted and is divided by its own standard deviation (the unbiased one,
    as in MAE's released code), both over all its pixels and colours; with `normalized_side` so has each square of that
    side within the patch.
    """

    def __init__(
        self, grid: tuple[int, int], *, patch_size: int, normalize: bool, normalized_side: int | None = None
    ) -> None:
        self.grid = grid
        self.image_size = grid[0] * patch_size
        self.dim = patch_size * patch_size * 3
        self.name = f"pixels/{'normalized' if normalize else 'raw'}/{grid[0]}x{grid[1]} of {patch_size} px"
        if normalized_side not in (None, patch_size):
            self.name += f" in squares of {normalized_side}"
        self._patch_size = patch_size
        self._normalize = normalize
        self._normalized_side = normalized_side or patch_size

    def to(self, place: torch.device | str) -> "PixelPatches":
        """Nothing to move."""
        return self

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        rows, columns = self.grid
        side = self._patch_size
        pixels = fit_images(images, (rows * side, columns * side)) / 127.5 - 1.0
        patches = pixels.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 3, 5, 1)
        patches = patches.reshape(len(images), rows * columns, self.dim)
        if not self._normalize:
            return patches
        inner = self._normalized_side
        squares = patches.view(len(images), rows * columns, side // inner, inner, side // inner, inner, 3)
        variance, mean = torch.var_mean(squares, dim=(3, 5, 6), keepdim=True, unbiased=True)
        return ((squares - mean) / (variance + EPSILON).sqrt()).flatten(2)
