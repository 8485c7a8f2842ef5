"""Fitting position tables and patch kernels to another grid or patch size."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unveil.config import UnveilError
from unveil.models.transformer import resize_relative_positions
from unveil.models.vit import resize_positions


def fit_positions(
    table: Float[Tensor, "1 t d"], grid: tuple[int, int], source: str = "this file"
) -> Float[Tensor, "1 u d"]:
    """Position table, cls first, of a square grid, for `grid`: bicubic, as the released code does it.

    Raises:
        UnveilError: the table is not one of a cls token and a square grid.
    """
    side = math.isqrt(table.shape[1] - 1)
    if side < 1 or 1 + side * side != table.shape[1]:
        raise UnveilError(f"{source}: {table.shape[1]} positions are not those of a cls token and a square grid")
    return table if (side, side) == grid else resize_positions(table, (side, side), grid)


def fit_relative_positions(
    table: Float[Tensor, "o heads"], grid: tuple[int, int], source: str = "this file"
) -> Float[Tensor, "p heads"]:
    """Table of the offsets on a square grid, the cls token's three rows last, for `grid`: bicubic.

    Raises:
        UnveilError: the table is not one of a square grid and a cls token.
    """
    width = math.isqrt(max(len(table) - 3, 0))
    if width % 2 == 0 or width * width + 3 != len(table):
        raise UnveilError(f"{source}: {len(table)} relative positions are not those of a square grid and a cls token")
    side = (width + 1) // 2
    return resize_relative_positions(table, (side, side), grid)


def fit_patches(kernel: Float[Tensor, "d c p p"], patch_size: int) -> Float[Tensor, "d c q q"]:
    """Patch-embedding kernel for another patch size: bicubic (released code, 14 to 16 pixels for detection)."""
    if kernel.shape[-1] == patch_size:
        return kernel
    resized = F.interpolate(kernel.float(), size=(patch_size, patch_size), mode="bicubic", align_corners=False)
    return resized.to(kernel.dtype)
