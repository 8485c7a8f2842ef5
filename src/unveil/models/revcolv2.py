"""RevColV2, a reversible autoencoder that is kept whole in transfer: a reconstruction (see `RevColV2Config`).

Known of the paper: bottom-up columns as RevCol's, with masked image patches as input; symmetric top-down columns that
receive their maps together with mask tokens and reconstruct the hidden pixels at the finest level of the last column;
classification reads the coarsest level of that column, the linear probe that of the bottom-up columns. All else is
inferred.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unveil.config import UnveilError
from unveil.config.revcolv2 import RevColV2Config
from unveil.models.cells import Cells, all_cells, visible_cells, visible_units
from unveil.models.revcolv2_blocks import Column, Level, Maps, Stem
from unveil.models.reversible import chained, recomputed
from unveil.models.vit import sine_cosine_positions

log = logging.getLogger(__name__)

Need = Literal["top", "levels", "bottom_up"]
"""The coarsest level of the last column; all its levels; all levels of the last bottom-up column."""

MOST_CHAINED_COLUMNS = 5
"""In one half: over five inverted columns with gammas of 0.5 float32 is 2e-4 of a feature wrong, over seven 2e-2."""


@dataclass(frozen=True)
class ColumnFeatures:
    """What was asked for of the columns."""

    patches: Float[Tensor, "b n d"]
    """The coarsest level of the last column that was computed, row by row; of bottom-up columns the visible cells."""
    grid: tuple[int, int]
    """Its rows and columns."""
    levels: dict[int, Float[Tensor, "b _ _ _"]]
    """The maps of the last column by stride in pixels: "b c h w"."""
    bottom_up: dict[int, Float[Tensor, "b _ _ _"]]
    """The maps of the last bottom-up column by stride in pixels; zero where cells are hidden."""

    @property
    def cls(self) -> Float[Tensor, "b d"]:
        """The mean of the patches, in the place of a cls token."""
        return self.patches.mean(dim=1)


class RevColV2(nn.Module):
    """Stem, bottom-up columns, the junction, top-down columns (reconstruction).

    At the junction every level's map gets its positions and, where cells are hidden, a mask token in their place; from
    there on all cells are computed.

    Args:
        config: sizes and variants.
        mask_token: whether there are tokens to put in place of hidden cells (masked pre-training).
        reads: what the task reads. Parameters that this does not depend on are kept, and frozen, so that they are in
            the weights for the next task and DDP waits for no gradient of theirs; what is not needed is not computed.
    """

    def __init__(self, config: RevColV2Config, *, mask_token: bool = False, reads: Need = "levels") -> None:
        super().__init__()
        self.config = config
        self.reads: Need = reads
        self.patch_embed = Stem(config)
        self.bottom_up = nn.ModuleList(
            Column(config, "bottom_up", first=number == 0) for number in range(config.bottom_up_columns)
        )
        self.mask_tokens = nn.ParameterList([torch.empty(width) for width in config.widths] if mask_token else [])
        self.top_down = nn.ModuleList(Column(config, "top_down") for _ in range(config.top_down_columns))
        for level, (width, stride) in enumerate(zip(config.widths, config.strides, strict=True)):
            side = config.image_size // stride
            table = sine_cosine_positions((side, side), width)
            self.register_buffer(f"positions_{level}", table, persistent=False)
        self._initialize()
        for column, finest in zip(self._columns(self.top_down), self._finest(reads), strict=True):
            for parameter in column.parameters_outside(finest):
                parameter.requires_grad_(False)
        most = max(config.bottom_up_columns, config.top_down_columns)
        if config.reversible == "chain" and most > MOST_CHAINED_COLUMNS:
            log.warning(
                "model.reversible=chain over %d columns: in float32 gradients may be wrong by a percent or more where "
                "gammas are near 0.5; model.reversible=column is exact",
                most,
            )

    def _initialize(self) -> None:
        """RevCol's: normal weights, biases 0. Mask tokens as MAE's."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=self.config.init_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in self.mask_tokens:
            nn.init.normal_(token, std=self.config.init_std)

    def embed(
        self, images: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b n"] | None = None, hidden: int | None = None
    ) -> tuple[Float[Tensor, "b m c"], tuple[Cells, ...]]:
        """The stem's map, which all bottom-up columns take, and the cells of every level that they compute.

        Raises:
            UnveilError: see `forward`.
        """
        rows, columns = self._size_of(images)
        levels = len(self.config.widths)
        if mask is None:
            cells = all_cells(rows, columns, levels)
        else:
            cells_of_unit = self.config.mask_unit // self.config.patch_size
            unit_grid = (rows // cells_of_unit, columns // cells_of_unit)
            units = visible_units(mask, unit_grid, hidden)
            coarsest = self.config.mask_unit // self.config.strides[-1]
            cells = visible_cells(units, unit_grid, coarsest_in_unit=coarsest, levels=levels)
        cells = tuple(
            replace(one, positions=self._positions_of(level, one, images)) if kind == "transformer" else one
            for level, (one, kind) in enumerate(zip(cells, self.config.kinds, strict=True))
        )
        return self.patch_embed(images, cells[0]), cells

    def junction(self, maps: Maps, cells: tuple[Cells, ...], finest: int = 0) -> dict[int, Tensor]:
        """The last bottom-up column's maps as the first top-down column takes them: whole, each cell with its position.

        Raises:
            ValueError: cells are hidden and there are no mask tokens.
        """
        hides = cells[0].places is not None
        if hides and not len(self.mask_tokens):
            raise ValueError("this RevColV2 was built without mask tokens: RevColV2(config, mask_token=True)")
        whole: dict[int, Tensor] = {}
        for level in range(finest, len(cells)):
            here = cells[level]
            filled = here.fill(maps[level], self.mask_tokens[level]) if hides else maps[level]
            whole[level] = filled + self._positions(level, (here.rows, here.columns))
        return whole

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        mask: Bool[Tensor, "b n"] | None = None,
        *,
        hidden: int | None = None,
        drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
        need: tuple[Need, ...] | None = None,
    ) -> ColumnFeatures:
        """Run the network, as much of it as is needed.

        Args:
            images: Normalised, any size that divides into mask units.
            mask: of mask units, row by row, True = hidden; equally many in each image.
            hidden: so many, where the caller knows: otherwise the mask is looked at, for which a GPU's queue must
                empty and a compiled graph must break.
            drop_path_noise: Uniform in [0, 1) for each sample, block and branch; None keeps every branch.
            need: What is wanted; None: what the network was made for (`reads`).

        Raises:
            UnveilError: the images do not divide into mask units, or the mask hides not equally much of each; with
                `reversible="chain"` also where that cannot be (see `chained`).
        """
        wanted = (self.reads,) if need is None else need
        stem, cells = self.embed(images, mask, hidden)
        upward, downward = self._by_column(drop_path_noise)
        maps = self._run(self.bottom_up, cells, {}, stem, upward, [0] * len(self.bottom_up))
        bottom_up = self._by_stride(maps, cells) if "bottom_up" in wanted else {}
        top, grid = len(cells) - 1, (cells[-1].rows, cells[-1].columns)
        if not {"top", "levels"} & set(wanted):
            return ColumnFeatures(patches=maps[top], grid=grid, levels={}, bottom_up=bottom_up)
        finest = self._finest("levels" if "levels" in wanted or self._chains() else "top")
        maps = self.junction(maps, cells, max(0, finest[0] - 1))
        whole = all_cells(cells[0].rows, cells[0].columns, len(cells))
        maps = self._run(self.top_down, whole, maps, None, downward, finest)
        levels = self._by_stride(maps, whole) if "levels" in wanted else {}
        return ColumnFeatures(patches=maps[top], grid=grid, levels=levels, bottom_up=bottom_up)

    def feature_maps(self, images: Float[Tensor, "b 3 h w"]) -> dict[int, Float[Tensor, "b _ _ _"]]:
        """All levels of the last column by stride in pixels: what detection and segmentation read."""
        return self(images, need=("levels",)).levels

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Every parameter once, input side first: the stem with the mask tokens, then by the length of the way there.

        RevCol's released code counts the shortest way: block i of column j (its blocks in the order in which they are
        computed, both from 0) is in group i + j + 1. Fusions go with their level's first block, gammas with their
        column's. The last group is empty: the head's.
        """
        config = self.config
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(config.blocks_of_column + config.columns + 1)]
        names = {parameter: name for name, parameter in self.named_parameters()}

        def add(group: int, parameters: Iterable[nn.Parameter]) -> None:
            groups[group] += [(names[parameter], parameter) for parameter in parameters]

        add(0, [*self.patch_embed.parameters(), *self.mask_tokens])
        for number, column in enumerate(cast(list[Column], self.shard_units()), start=1):
            add(number, column.gamma)
            for index in column.order:
                level, first = cast(Level, column.levels[index]), number + column.starts[index]
                for fusion in (level.down, level.up):
                    add(first, () if fusion is None else fusion.parameters())
                for i, block in enumerate(level.blocks):
                    add(first + i, block.parameters())
        return groups

    def no_weight_decay(self) -> set[str]:
        """Parameters that are spared beside vectors: none. Gammas, layer scales and mask tokens are vectors."""
        return set()

    def shard_units(self) -> list[nn.Module]:
        """The pieces that sharding treats as wholes: the columns. `reversible="chain"` goes without sharding."""
        return [*self.bottom_up, *self.top_down]

    def _run(
        self,
        columns: nn.ModuleList,
        cells: tuple[Cells, ...],
        maps: Maps,
        stem: Tensor | None,
        noise: Tensor | None,
        finest: list[int],
    ) -> dict[int, Tensor]:
        """`columns` one after the other, of each the levels from its `finest` on."""
        if self._chains():
            return chained(self._columns(columns), cells, maps, stem, noise)
        recompute = self.config.reversible == "column" and torch.is_grad_enabled()
        current = dict(maps)
        for number, column in enumerate(self._columns(columns)):
            of_column = None if noise is None else noise[:, number]
            run = partial(recomputed, column) if recompute else column
            current = run(cells, current, stem, of_column, finest[number])
        return current

    def _chains(self) -> bool:
        return self.config.reversible == "chain" and torch.is_grad_enabled()

    def _finest(self, reads: Need) -> list[int]:
        """The finest level of each top-down column on which what is read depends; one beyond the coarsest where none.

        A level takes of the column before its own and the next finer one.
        """
        last, top = len(self.top_down) - 1, len(self.config.widths) - 1
        match reads:
            case "top":
                return [max(0, top - (last - number)) for number in range(last + 1)]
            case "levels":
                return [0] * (last + 1)
            case "bottom_up":
                return [top + 1] * (last + 1)

    def _by_column(self, drop_path_noise: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """For the blocks of each bottom-up and each top-down column."""
        if drop_path_noise is None:
            return None, None
        noise = drop_path_noise.unflatten(1, (self.config.columns, self.config.blocks_of_column))
        return noise[:, : len(self.bottom_up)], noise[:, len(self.bottom_up) :]

    def _by_stride(self, maps: Maps, cells: tuple[Cells, ...]) -> dict[int, Tensor]:
        return {stride: cells[level].to_map(maps[level]) for level, stride in enumerate(self.config.strides)}

    def _columns(self, columns: nn.ModuleList) -> Sequence[Column]:
        return cast(Sequence[Column], list(columns))

    def _size_of(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the finest level."""
        height, width = images.shape[-2:]
        unit = self.config.mask_unit
        if height % unit or width % unit:
            raise UnveilError(f"an image of {height} x {width} pixels does not divide into units of {unit} x {unit}")
        return height // self.config.patch_size, width // self.config.patch_size

    def _positions(self, level: int, grid: tuple[int, int]) -> Float[Tensor, "1 n d"]:
        """MAE's sines and cosines for all cells of a level; for another size than they were made for, interpolated."""
        table = self.get_buffer(f"positions_{level}")
        side = self.config.image_size // self.config.strides[level]
        if grid != (side, side):
            image = table.T.unflatten(1, (side, side))[None]
            table = F.interpolate(image, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T
        return table[None]

    def _positions_of(self, level: int, cells: Cells, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "_ n d"]:
        """Of the cells that are held."""
        table = self._positions(level, (cells.rows, cells.columns))
        if cells.places is None:
            return table
        return table[0, cells.places % table.shape[1]].unflatten(0, (len(images), -1))
