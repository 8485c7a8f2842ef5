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
        patches = self._patches(images)
        if not self._normalize:
            return patches
        squares = self._squares(patches)
        mean, deviation = _mean_and_deviation(squares)
        return ((squares - mean) / deviation).flatten(2)

    @torch.no_grad()
    def pictures(
        self, patches: Float[Tensor, "b n d"], images: UInt8[Tensor, "b 3 h w"]
    ) -> UInt8[Tensor, "b 3 height width"]:
        """Patches as this target has them, put together to images.

        Normalised ones get the mean and the deviation that `images` have there: those are not in them.
        """
        if self._normalize:
            mean, deviation = _mean_and_deviation(self._squares(self._patches(images)))
            patches = (self._squares(patches) * deviation + mean).flatten(2)
        side = self._patch_size
        pixels = patches.unflatten(2, (side, side, 3)).unflatten(1, self.grid).permute(0, 5, 1, 3, 2, 4)
        return ((pixels.flatten(4).flatten(2, 3) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def _patches(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        rows, columns = self.grid
        side = self._patch_size
        pixels = fit_images(images, (rows * side, columns * side)) / 127.5 - 1.0
        patches = pixels.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 3, 5, 1)
        return patches.reshape(len(images), rows * columns, self.dim)

    def _squares(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n rows inner columns inner 3"]:
        """The squares of each patch that are normalised each for itself."""
        inner = self._normalized_side
        along = self._patch_size // inner
        return patches.unflatten(2, (along, inner, along, inner, 3))


def _mean_and_deviation(squares: Float[Tensor, "b n rows inner columns inner 3"]) -> tuple[Tensor, Tensor]:
    """Of each square, over its pixels and colours."""
    variance, mean = torch.var_mean(squares, dim=(3, 5, 6), keepdim=True, unbiased=True)
    return mean, (variance + EPSILON).sqrt()
