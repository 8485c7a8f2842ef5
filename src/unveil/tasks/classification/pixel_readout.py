"""How much of the pixels a map holds: ridge regression from each cell to the square of the image that it covers.

A cell is judged by what it says of its own square and of nothing else, by a linear map that is the same for all cells
of a level: what must be looked for elsewhere, or untangled first, does not count as held. What the cells of a level say
is put together to an image and compared with the original

- pixel by pixel. Coarse cells have more pixels to tell than they have channels, so this is also a question of room;
- and as small images, both reduced to their mean colours by the finest level's stride, so that all levels have the
  same small image to tell. A coarse cell that covers n x n finest ones has 3 n^2 numbers to tell, in RevColV2-B at most
  192 from 512 channels: here a level that does worse lacks the colours, not the room.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

RIDGE = 1e-4
"""Penalty of the regression: this times the number of cells, on channels of variance 1. Small, and there only to keep
channels that say nearly the same from cancelling each other in the last digits."""

LEAST_DEVIATION = 1e-6
"""A channel that varies less is constant."""


@dataclass(frozen=True)
class PixelReadout:
    """A linear map from a cell's channels to its square's pixels in 0 to 1, the same for all cells."""

    stride: int
    """Side of the square, pixels."""
    weight: Float[Tensor, "pixels c"]
    """Rows by colour, then row, then column of the square."""
    bias: Float[Tensor, "pixels"]

    def __call__(self, cells: Float[Tensor, "b c rows columns"]) -> Float[Tensor, "b 3 h w"]:
        """The image that the cells say; where they say so, darker than 0 or brighter than 1."""
        squares = torch.einsum("bcij,pc->bpij", cells, self.weight) + self.bias[:, None, None]
        return F.pixel_shuffle(squares, self.stride)


class CellSums:
    """What the regression needs to know of cells and their squares: sums of products in fp64, which add up over batches
    and processes.

    Args:
        width: channels of a cell.
        stride: side of its square, pixels.
    """

    def __init__(self, *, width: int, stride: int, device: torch.device) -> None:
        self.width = width
        self.stride = stride
        # The first row and column are those of a constant 1: number of cells, sums of channels, sums of pixels.
        self.sums = {
            "products": torch.zeros(1 + width, 1 + width, dtype=torch.float64, device=device),
            "with_pixels": torch.zeros(1 + width, 3 * stride**2, dtype=torch.float64, device=device),
        }

    def add(self, cells: Float[Tensor, "b c rows columns"], images: Float[Tensor, "b 3 h w"]) -> None:
        """Take these images in, with pixels in 0 to 1."""
        channels = cells.permute(0, 2, 3, 1).flatten(0, 2).double()
        channels = torch.cat([torch.ones_like(channels[:, :1]), channels], dim=1)
        squares = F.pixel_unshuffle(images, self.stride).permute(0, 2, 3, 1).flatten(0, 2).double()
        self.sums["products"] += channels.T @ channels
        self.sums["with_pixels"] += channels.T @ squares

    @property
    def count(self) -> int:
        """Cells taken in."""
        return int(self.sums["products"][0, 0])

    def fit(self) -> PixelReadout:
        """Least squares with a small penalty (`RIDGE`) on standardised channels."""
        products, with_pixels = (total / self.count for total in self.sums.values())
        mean, pixel_mean = products[0, 1:], with_pixels[0]
        covariance = products[1:, 1:] - mean.outer(mean)
        deviation = covariance.diagonal().clamp_min(LEAST_DEVIATION**2).sqrt()
        correlation = covariance / deviation.outer(deviation)
        correlation.diagonal().add_(RIDGE)
        to_pixels = (with_pixels[1:] - mean.outer(pixel_mean)) / deviation[:, None]
        weight = (torch.cholesky_solve(to_pixels, torch.linalg.cholesky(correlation)) / deviation[:, None]).T
        return PixelReadout(self.stride, weight.float(), (pixel_mean - weight @ mean).float())


@dataclass(frozen=True)
class PixelScore:
    """How near images come to others, over all pixels of all of them."""

    r2: float
    """Share of the variance about the others' mean colour that is explained: 1 at best, negative where the mean colour
    alone would be nearer."""
    psnr: float
    """10 log10 (1 / mean squared error), decibels."""


def pixel_sums(predicted: Float[Tensor, "b 3 h w"], images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "3 4"]:
    """Squared error, sum, sum of squares and number of pixels of each colour (fp64), which add up over batches and
    processes: see `pixel_score`."""
    images = images.double()
    parts = ((predicted.double() - images).square(), images, images.square(), torch.ones_like(images))
    return torch.stack([part.sum(dim=(0, 2, 3)) for part in parts], dim=1)


def pixel_score(sums: Float[Tensor, "3 4"]) -> PixelScore:
    """Of merged `pixel_sums`. Not finite where all images are of one colour, or nothing differs."""
    error, total, squares, count = sums.unbind(dim=1)
    variance = (squares - total.square() / count).sum()
    psnr = -10.0 * (error.sum() / count.sum()).log10()
    return PixelScore(r2=float(1.0 - error.sum() / variance), psnr=float(psnr))
