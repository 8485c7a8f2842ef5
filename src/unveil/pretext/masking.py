"""Which patches are hidden: block-wise (BEiT, EVA) or uniformly at random (MAE). True = hidden.

A grid is held as one Python integer, patch (row, column) at bit row * columns + column: a rectangle is then one bit
pattern, shifted to its place, and counting is `int.bit_count`.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from unveil.config import BlockMasking, RandomMasking, UnveilError
from unveil.config import pretext as config

ATTEMPTS = 10
"""Rectangles tried before the mask is taken as it is."""

LEAST_SHARE = 0.75
"""Of the patches asked for: single ones make up what rectangles leave below it."""


@runtime_checkable
class Masking(Protocol):
    """Draws masks. Small, frozen and picklable: it lives in the data workers."""

    def __call__(self, rng: random.Random, grid: tuple[int, int]) -> Bool[Tensor, "n"]:
        """A mask of rows x columns patches, row by row, True = hidden; between 1 and `limit(grid)` of them are."""
        ...

    def limit(self, grid: tuple[int, int]) -> int:
        """Most patches that are ever hidden on this grid."""
        ...


def masking_function(config: config.Masking) -> Masking:
    """The masking that the configuration describes."""
    match config:
        case BlockMasking():
            return BlockwiseMasking(config)
        case RandomMasking():
            return UniformMasking(config)


@dataclass(frozen=True)
class BlockwiseMasking:
    """Rectangles of random area, shape and place until enough is hidden (BEiT, algorithm 1; released EVA code).

    Each round tries up to ten rectangles and takes the first that hides something new and not too much; a round that
    takes none ends the mask, so a few patches fewer than asked may be hidden. On narrow grids, small ones and at high
    ratios that could be most of them: below three quarters of what is asked, single patches are added up to there.
    (At EVA's 105 of 256 the rectangles alone always reach that.) Exact masks are filled up to what is asked (BEiT v2).
    """

    config: BlockMasking

    def limit(self, grid: tuple[int, int]) -> int:
        """Raises UnveilError where that leaves no patch visible."""
        patches = grid[0] * grid[1]
        count = self.config.count
        return _checked(max(round(self.config.ratio * patches), 1) if count is None else count, grid)

    def __call__(self, rng: random.Random, grid: tuple[int, int]) -> Bool[Tensor, "n"]:
        rows, columns = grid
        remaining = self.limit(grid)
        smallest = self.config.min_block or max(min(16, rows * columns // 16), 1)
        widest = math.log(1.0 / self.config.min_aspect)
        patterns = _rectangles(rows, columns)
        draw, exp, sqrt = rng.random, math.exp, math.sqrt
        hidden = 0
        while remaining:
            for _ in range(ATTEMPTS):
                # Where less than the smallest block remains the range runs backwards, as in the released code.
                area = smallest + (remaining - smallest) * draw()
                aspect = exp(widest * (2.0 * draw() - 1.0))
                height, width = round(sqrt(area * aspect)), round(sqrt(area / aspect))
                if not (0 < height < rows and 0 < width < columns):
                    continue
                top, left = int(draw() * (rows - height + 1)), int(draw() * (columns - width + 1))
                new = patterns[height][width] << (top * columns + left) & ~hidden
                if 0 < (gained := new.bit_count()) <= remaining:
                    hidden |= new
                    remaining -= gained
                    break
            else:
                break
        asked = self.limit(grid)
        while asked - remaining < (1.0 if self.config.exact else LEAST_SHARE) * asked:
            patch = 1 << int(draw() * rows * columns)
            if not hidden & patch:
                hidden |= patch
                remaining -= 1
        return _unpack(hidden, rows * columns)


@dataclass(frozen=True)
class UniformMasking:
    """Exactly round(ratio x patches) patches, each subset as likely as any other (MAE). At least one, never all."""

    config: RandomMasking

    def limit(self, grid: tuple[int, int]) -> int:
        """Raises UnveilError where that leaves no patch visible."""
        return _checked(max(round(self.config.ratio * grid[0] * grid[1]), 1), grid)

    def __call__(self, rng: random.Random, grid: tuple[int, int]) -> Bool[Tensor, "n"]:
        patches = grid[0] * grid[1]
        mask = bytearray(patches)
        for patch in rng.sample(range(patches), self.limit(grid)):
            mask[patch] = 1
        return torch.frombuffer(mask, dtype=torch.bool)


def _checked(count: int, grid: tuple[int, int]) -> int:
    patches = grid[0] * grid[1]
    if count >= patches:
        raise UnveilError(
            f"masking hides {count} patches, but the grid of {grid[0]} x {grid[1]} has {patches} and one must stay "
            "visible; lower masking.count or masking.ratio, or make the image larger or the patches smaller"
        )
    return count


@lru_cache(maxsize=16)
def _rectangles(rows: int, columns: int) -> list[list[int]]:
    """Bit patterns of the rectangles at the top left: [height][width]."""
    patterns = [[0] * columns]
    for height in range(1, rows):
        bottom = (height - 1) * columns
        patterns.append([patterns[-1][width] | ((1 << width) - 1) << bottom for width in range(columns)])
    return patterns


def _unpack(bits: int, count: int) -> Tensor:
    """The lowest `count` bits as a tensor, lowest first."""
    digits = bytearray(format(bits, f"0{count}b").encode())
    digits.reverse()
    return torch.frombuffer(digits, dtype=torch.uint8) == ord("1")
