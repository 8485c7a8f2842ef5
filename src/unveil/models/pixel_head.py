"""From the finest level of RevColV2's last column to the pixels of hidden units (reconstruction)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.config.revcolv2 import RevColV2Config


class PixelHead(nn.Module):
    """A norm and a linear layer at every cell of the finest level, which answers with the cell's pixels."""

    def __init__(self, config: RevColV2Config) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.cells_of_unit = config.mask_unit // config.patch_size
        self.norm = nn.LayerNorm(config.widths[0], eps=config.norm_epsilon)
        self.proj = nn.Linear(config.widths[0], 3 * config.patch_size**2)
        nn.init.trunc_normal_(self.proj.weight, std=config.init_std)
        nn.init.zeros_(self.proj.bias)

    def forward(self, finest: Float[Tensor, "b c h w"], units: Int64[Tensor, "b k"]) -> Float[Tensor, "b k pixels"]:
        """The pixels of the mask units with these numbers, row by row, the colours of a pixel together."""
        side, patch = self.cells_of_unit, self.patch_size
        rows, columns = finest.shape[2] // side, finest.shape[3] // side
        by_unit = finest.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 3, 5, 1)
        sample = torch.arange(len(units), device=units.device)[:, None]
        wanted = by_unit[sample, units // columns, units % columns]
        pixels = self.proj(self.norm(wanted)).unflatten(4, (patch, patch, 3))
        return pixels.permute(0, 1, 2, 4, 3, 5, 6).flatten(2)
