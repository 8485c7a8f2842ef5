"""What RevColV2's columns are made of: ConvNeXt and ViT blocks on held cells, fusion of neighbouring levels, columns.

The stem, the fusion, the ConvNeXt block and gamma are RevCol's (released code); the top-down column is its mirror image
(reconstruction).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unveil.config import ViTConfig
from unveil.config.revcolv2 import RevColV2Config
from unveil.models.cells import Cells
from unveil.models.transformer import Block

Direction = Literal["bottom_up", "top_down"]

Maps = Mapping[int, Float[Tensor, "b _ _"]]
"""Held cells by level, 0 the finest; levels that nobody needs are left out."""


class StreamNorm(nn.LayerNorm):
    """The norm that a stream of residual blocks begins with: in the parameters' format, whatever autocast computes in.

    So are the sums that run through blocks and columns from there on.
    """

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return super().forward(x).to(self.weight.dtype)


class Stem(nn.Module):
    """A linear map of each patch's pixels (RevCol's convolution, as wide as its stride), and a norm."""

    def __init__(self, config: RevColV2Config) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(3 * config.patch_size**2, config.widths[0])
        self.norm = StreamNorm(config.widths[0], eps=config.norm_epsilon)

    def forward(self, images: Float[Tensor, "b 3 h w"], cells: Cells) -> Float[Tensor, "b n c"]:
        """`cells`: of the finest level. Of hidden ones no pixel is read."""
        side = self.patch_size
        pixels = images.unflatten(3, (cells.columns, side)).unflatten(2, (cells.rows, side))
        patches = cells.held(pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))
        return self.norm(self.proj(patches))


class ConvBlock(nn.Module):
    """ConvNeXt's block as RevCol has it: depthwise convolution, norm, two linear layers, layer scale, residual.

    The convolution sees zeros where cells are hidden; all else works on held cells alone.
    """

    def __init__(self, config: RevColV2Config, width: int, drop_path: float) -> None:
        super().__init__()
        kernel = config.kernel_size
        self.drop_path = drop_path
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=config.norm_epsilon)
        self.fc1 = nn.Linear(width, config.mlp_ratio * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(config.mlp_ratio * width, width)
        scale = config.layer_scale
        self.layer_scale = None if scale is None else nn.Parameter(torch.full((width,), scale))

    def forward(
        self, x: Float[Tensor, "b n c"], cells: Cells, drop_path_noise: Float[Tensor, "b 2"] | None = None
    ) -> Float[Tensor, "b n c"]:
        """`drop_path_noise`: in [0, 1), of which the first column counts: there is one branch."""
        mixed = cells.from_map(self.depthwise(cells.to_map(x)))
        branch = self.fc2(self.act(self.fc1(self.norm(mixed))))
        if self.layer_scale is not None:
            branch = branch * self.layer_scale
        if drop_path_noise is not None and self.drop_path > 0.0:
            kept = (drop_path_noise[:, 0] >= self.drop_path).to(branch.dtype)
            branch = branch * (kept / (1.0 - self.drop_path))[:, None, None]
        return x + branch


class Down(nn.Module):
    """From a level to the next coarser one: a 2 x 2 convolution of stride 2, written as a linear layer, and a norm."""

    def __init__(self, inside: int, outside: int, epsilon: float) -> None:
        super().__init__()
        self.proj = nn.Linear(4 * inside, outside)
        self.norm = StreamNorm(outside, eps=epsilon)

    def forward(self, x: Float[Tensor, "b n c"], cells: Cells) -> Float[Tensor, "b m d"]:
        """`cells`: of the finer level."""
        return self.norm(self.proj(cells.merge(x)))


class Up(nn.Module):
    """From a level to the next finer one: a linear layer, a norm, and each cell four times."""

    def __init__(self, inside: int, outside: int, epsilon: float) -> None:
        super().__init__()
        self.proj = nn.Linear(inside, outside)
        self.norm = StreamNorm(outside, eps=epsilon)

    def forward(self, x: Float[Tensor, "b m d"], cells: Cells) -> Float[Tensor, "b n c"]:
        """`cells`: of the coarser level."""
        return cells.spread(self.norm(self.proj(x)))


class Level(nn.Module):
    """F of one level of a column: the fused maps of its two neighbouring levels, then blocks.

    Args:
        level: 0 the finest.
        down, up: whether there is a finer, a coarser neighbour to take from. A level without either takes the stem's
            map as it is.
        rates: of stochastic depth, block by block.
        positions: whether the blocks are told where their cells are (`Cells.positions`).
    """

    def __init__(
        self, config: RevColV2Config, level: int, rates: tuple[float, ...], *, down: bool, up: bool, positions: bool
    ) -> None:
        super().__init__()
        widths, epsilon = config.widths, config.norm_epsilon
        width = widths[level]
        self.level = level
        self.positions = positions
        self.down = Down(widths[level - 1], width, epsilon) if down else None
        self.up = Up(widths[level + 1], width, epsilon) if up else None
        self.blocks = nn.ModuleList(
            ConvBlock(config, width, rate) if config.kinds[level] == "convolution" else _vit_block(config, width, rate)
            for rate in rates
        )

    def forward(
        self,
        finer: Float[Tensor, "b n_finer c_finer"] | None,
        coarser: Float[Tensor, "b n_coarser c_coarser"] | None,
        cells: tuple[Cells, ...],
        drop_path_noise: Float[Tensor, "b blocks 2"] | None,
    ) -> Float[Tensor, "b n c"]:
        """F.

        Args:
            finer: the finer neighbour's map (where there is none: the stem's), coarser: the coarser neighbour's.
            cells: of all levels.
            drop_path_noise: of this level's blocks.
        """
        parts: list[Tensor] = []
        if finer is not None:
            parts.append(finer if self.down is None else self.down(finer, cells[self.level - 1]))
        if coarser is not None and self.up is not None:
            parts.append(self.up(coarser, cells[self.level + 1]))
        x = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        here = cells[self.level]
        if self.positions and here.positions is not None:
            x = x + here.positions
        for i, block in enumerate(self.blocks):
            noise = None if drop_path_noise is None else drop_path_noise[:, i]
            x = block(x, here, noise) if isinstance(block, ConvBlock) else block(x, noise)
        return x


def _vit_block(config: RevColV2Config, width: int, drop_path: float) -> Block:
    """A plain ViT's (MAE's), without layer scale."""
    sizes = ViTConfig(
        width=width,
        depth=1,
        heads=width // config.head_width,
        mlp_width=config.mlp_ratio * width,
        qkv_bias="all",
        norm_epsilon=config.norm_epsilon,
    )
    return Block(sizes, drop_path)


class Column(nn.Module):
    """One column: c_l = F_l(neighbours) + gamma_l * p_l, with p the maps of the column before.

    Bottom-up (RevCol) from the finest level on: F_l takes this column's c of the finer level (the finest takes the
    stem's map) and p of the coarser one. Top-down, its mirror image (reconstruction), from the coarsest level on: F_l
    takes this column's c of the coarser level and p of the finer one. Either way every p_l can be had back, in the
    opposite order: p_l = (c_l - F_l) / gamma_l.

    Args:
        first: of the bottom-up columns, before which there is none: no p, no gamma.
    """

    def __init__(self, config: RevColV2Config, direction: Direction, *, first: bool = False) -> None:
        super().__init__()
        self.config = config
        self.direction = direction
        levels = range(len(config.widths))
        self.order = tuple(levels) if direction == "bottom_up" else tuple(reversed(levels))
        """In which the levels are computed."""
        self.starts: dict[int, int] = {}
        """The number of each level's first block, counted in that order."""
        blocks = 0
        for level in self.order:
            self.starts[level] = blocks
            blocks += config.layers[level]
        self.levels = nn.ModuleList(
            Level(
                config,
                level,
                config.drop_path_rates[self.starts[level] : self.starts[level] + config.layers[level]],
                down=level > 0,
                up=level < levels[-1] and not first,
                positions=first and config.kinds[level] == "transformer",
            )
            for level in levels
        )
        self.gamma = nn.ParameterList(
            [] if first else [torch.full((width,), config.gamma_init) for width in config.widths]
        )

    def forward(
        self,
        cells: tuple[Cells, ...],
        previous: Maps,
        stem: Float[Tensor, "b n c"] | None,
        drop_path_noise: Float[Tensor, "b blocks 2"] | None,
        finest: int = 0,
    ) -> dict[int, Tensor]:
        """The maps of this column.

        Args:
            cells: of all levels.
            previous: the maps of the column before; empty for the first.
            stem: of a bottom-up column.
            drop_path_noise: of this column's blocks, in the order in which they are computed.
            finest: top-down, the finest level that is needed.
        """
        current: dict[int, Tensor] = {}
        for level in self.order:
            if level < finest:
                break
            inner = self.inner(level, self.neighbours(level, current, previous, stem), cells, drop_path_noise)
            current[level] = inner + self.scale(level) * previous[level] if previous else inner
        return current

    def neighbours(
        self, level: int, current: Maps, previous: Maps, stem: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What F of a level takes: from the finer level (or the stem), from the coarser one."""
        bottom_up = self.direction == "bottom_up"
        finer, coarser = (current, previous) if bottom_up else (previous, current)
        return (stem if level == 0 else finer[level - 1]), coarser.get(level + 1)

    def inner(
        self,
        level: int,
        neighbours: tuple[Tensor | None, Tensor | None],
        cells: tuple[Cells, ...],
        drop_path_noise: Float[Tensor, "b blocks 2"] | None,
    ) -> Float[Tensor, "b n c"]:
        """F of a level."""
        start = self.starts[level]
        noise = None if drop_path_noise is None else drop_path_noise[:, start : start + self.config.layers[level]]
        if not self.config.functions_in_fp32:
            return self.levels[level](*neighbours, cells, noise)
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.levels[level](*neighbours, cells, noise)

    def scale(self, level: int) -> Float[Tensor, "c"]:
        """Gamma of a level, its magnitude at least `gamma_floor`.

        Below the floor its gradient is still that of gamma itself, so that it finds its way out again.
        """
        gamma, floor = self.gamma[level], self.config.gamma_floor
        floored = torch.where(gamma < 0.0, gamma.clamp(max=-floor), gamma.clamp(min=floor))
        return gamma + (floored - gamma).detach()

    def parameters_outside(self, finest: int) -> list[nn.Parameter]:
        """Parameters that no level from `finest` on depends on, in a top-down column."""
        outside = [parameter for level in range(finest) for parameter in self.levels[level].parameters()]
        return outside + [self.gamma[level] for level in range(min(finest, len(self.gamma)))]
