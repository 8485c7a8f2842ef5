"""What each level of RevColV2's last columns holds: its cells' means, for classes, and its maps, for pixels."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from unveil.data.normalization import Normalization, normalize
from unveil.models.revcolv2 import RevColV2
from unveil.tasks.classification.feature_table import FrozenFeatures

RAW_SIDE = 16
"""Of the small image whose pixels are probed beside the levels: as many numbers as a wide level has channels."""


@dataclass(frozen=True)
class Level:
    """One level of the last column of one half."""

    column: Literal["bottom_up", "top_down"]
    stride: int
    """Pixels from cell to cell, which is also the side of the square that a cell covers."""
    width: int
    """Channels."""


class LevelFeatures(FrozenFeatures):
    """All levels of both halves' last columns, nothing hidden.

    As one vector of an image: the mean over each level's cells, in the order of `levels`, and then the image's own
    pixels, reduced to `RAW_SIDE` x `RAW_SIDE`. `widths` tells the parts.

    Args:
        backbone: whatever it was made to read; all of it is computed.
        autocast: gives the format of the arithmetic.
    """

    def __init__(
        self,
        backbone: RevColV2,
        *,
        normalization: Normalization,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        super().__init__(backbone, pooling="mean", normalization=normalization, device=device, autocast=autocast)
        self.columns = backbone
        sizes = list(zip(backbone.config.strides, backbone.config.widths, strict=True))
        self.levels = (
            *(Level("bottom_up", stride, width) for stride, width in sizes),
            *(Level("top_down", stride, width) for stride, width in sizes),
        )

    @property
    def widths(self) -> list[int]:
        """Of each level's mean, and of the pixels."""
        return [*(level.width for level in self.levels), 3 * RAW_SIDE**2]

    @property
    def width(self) -> int:
        return sum(self.widths)

    def pool(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        means = [found.float().mean(dim=(2, 3)) for found in self._maps(images)]
        return torch.cat([*means, F.adaptive_avg_pool2d(images, RAW_SIDE).flatten(1)], dim=1)

    @torch.no_grad()
    def maps(self, images: UInt8[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """ "b c h/stride w/stride" of each of `levels`, on the device, fp32."""
        with self._autocast():
            found = self._maps(normalize(images.to(self.device, non_blocking=True), self.normalization))
        return [one.float() for one in found]

    def _maps(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        found = self.columns(images, need=("bottom_up", "levels"))
        return [*found.bottom_up.values(), *found.levels.values()]
