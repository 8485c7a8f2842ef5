"""RevColV2's sizes: a reconstruction.

Neither the main paper's text nor its code were available: only the supplement, the abstract and a few statements about
the paper. What these do not say is inferred; the configurations below are chosen because they meet the two published
sizes, parameters and multiply-adds, and are not the authors'. So every choice is a setting.
"""

from dataclasses import dataclass
from typing import Literal

from unveil.config.errors import UnveilError
from unveil.config.model import ViTConfig

LevelKind = Literal["convolution", "transformer"]
"""The blocks of a level: ConvNeXt's as in RevCol, or a plain ViT's."""

Reversible = Literal["off", "column", "chain"]
"""What training keeps for backward: see `RevColV2Config.reversible`."""

LEAST_CHAINED_GAMMA = 0.5
"""Each column that is inverted divides by gamma, and the rounding errors with it. Over three columns in float32 they
stay near 1e-5 of a feature at 0.5 and are larger than the feature itself at 0.1."""


@dataclass(frozen=True, kw_only=True)
class RevColV2Config:
    """Bottom-up columns, a junction where mask tokens enter, and mirrored top-down columns (reconstruction).

    The defaults are the reconstruction of RevColV2-B. Tuples over levels begin at the finest.

    Raises:
        UnveilError: sizes that do not divide, or settings that contradict each other.
    """

    image_size: int = 224
    """Side of the square input that the positions are made for, pixels."""
    patch_size: int = 4
    """Side of the patches that the stem makes the finest level's cells of, pixels; each level above halves the map."""
    mask_unit: int = 32
    """Side of the squares that are hidden as a whole, pixels: a multiple of the coarsest cell, so that at every level a
    cell is either visible or hidden."""
    widths: tuple[int, ...] = (96, 192, 512, 512)
    layers: tuple[int, ...] = (1, 2, 2, 1)
    """Blocks of each level of a column."""
    kinds: tuple[LevelKind, ...] = ("convolution", "convolution", "transformer", "convolution")
    bottom_up_columns: int = 4
    top_down_columns: int = 4
    kernel_size: int = 3
    """Of the depthwise convolutions."""
    mlp_ratio: int = 4
    head_width: int = 64
    """Channels of an attention head."""
    layer_scale: float | None = 1e-6
    """Of the convolution blocks, at the start (RevCol); None: they have none. Transformer blocks have none."""
    gamma_init: float = 0.5
    """What a level's map of the previous column is multiplied by, channel by channel, at the start (RevCol)."""
    gamma_floor: float = 1e-3
    """Least magnitude of it (RevCol), so that the previous map can be had back by dividing."""
    drop_path: float = 0.0
    """Stochastic depth rate of each column's last block; the others rise to it linearly from 0 (RevCol)."""
    init_std: float = 0.02
    norm_epsilon: float = 1e-6
    reversible: Reversible = "column"
    """What training keeps for backward. "off": everything. "column": each column's maps; what is inside a column is
    computed again. "chain": the maps of the last column of each half alone; those before are had back by inversion,
    which is exact only up to rounding, grows with the number of columns, and needs gammas of at least 0.5."""
    functions_in_fp32: bool = False
    """Compute in float32 also where the run's precision is bf16 or fp16: what "chain" needs there."""

    def __post_init__(self) -> None:
        self._check_sizes()
        if not 0.0 <= self.drop_path < 1.0:
            raise UnveilError(f"model.drop_path {self.drop_path} is not in [0, 1)")
        if not 0.0 < self.gamma_floor <= self.gamma_init:
            raise UnveilError(
                f"model.gamma_floor {self.gamma_floor} must be more than 0 and at most model.gamma_init "
                f"{self.gamma_init}"
            )
        if self.reversible == "chain" and self.gamma_floor < LEAST_CHAINED_GAMMA:
            raise UnveilError(
                f"model.reversible=chain divides by gamma in every column, and with model.gamma_floor "
                f"{self.gamma_floor} rounding errors may outgrow the features; set model.gamma_floor="
                f"{LEAST_CHAINED_GAMMA} and model.gamma_init=1.0, or model.reversible=column"
            )

    def _check_sizes(self) -> None:
        if not len(self.widths) == len(self.layers) == len(self.kinds) >= 2:
            raise UnveilError(
                f"model.widths, model.layers and model.kinds must name the same levels, at least two; they name "
                f"{len(self.widths)}, {len(self.layers)} and {len(self.kinds)}"
            )
        columns = (self.bottom_up_columns, self.top_down_columns)
        sizes = (self.image_size, self.patch_size, self.mlp_ratio, self.head_width, self.kernel_size, *columns)
        if min(*sizes, *self.widths, *self.layers) < 1:
            raise UnveilError("every size of the model must be at least 1")
        if self.kernel_size % 2 == 0:
            raise UnveilError(f"model.kernel_size {self.kernel_size} is even; a cell needs as many neighbours each way")
        coarsest = self.strides[-1]
        if self.mask_unit < 1 or self.mask_unit % coarsest:
            raise UnveilError(
                f"model.mask_unit {self.mask_unit} is not a multiple of the coarsest cell, {coarsest} pixels; "
                f"try {max(self.mask_unit // coarsest, 1) * coarsest}"
            )
        if self.image_size % self.mask_unit:
            raise UnveilError(
                f"model.image_size {self.image_size} is not a multiple of model.mask_unit {self.mask_unit}; "
                f"try {max(self.image_size // self.mask_unit, 1) * self.mask_unit}"
            )
        for width, kind in zip(self.widths, self.kinds, strict=True):
            if width % 4:
                raise UnveilError(f"model.widths {self.widths}: positions need multiples of 4, and {width} is not one")
            if kind == "transformer" and width % self.head_width:
                raise UnveilError(
                    f"model.widths {self.widths}: a transformer level of {width} channels does not divide into heads "
                    f"of model.head_width {self.head_width}"
                )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels from cell to cell, by level."""
        return tuple(self.patch_size * 2**level for level in range(len(self.widths)))

    @property
    def width(self) -> int:
        """Channels of the coarsest level, which classifiers and linear probes read."""
        return self.widths[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of mask units at `image_size`."""
        side = self.image_size // self.mask_unit
        return side, side

    @property
    def blocks_of_column(self) -> int:
        return sum(self.layers)

    @property
    def columns(self) -> int:
        return self.bottom_up_columns + self.top_down_columns

    @property
    def depth(self) -> int:
        """Blocks of all columns: so many have stochastic depth."""
        return self.columns * self.blocks_of_column

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Of a column's blocks, in the order in which they are computed."""
        last = max(self.blocks_of_column - 1, 1)
        return tuple(self.drop_path * i / last for i in range(self.blocks_of_column))


BackboneConfig = ViTConfig | RevColV2Config
"""An image network of ours."""


def require_vit(model: BackboneConfig, what: str) -> ViTConfig:
    """The model itself, for `what` knows no other kind.

    Raises:
        UnveilError: it is a RevColV2.
    """
    if isinstance(model, RevColV2Config):
        raise UnveilError(f"{what} knows ViTs only, and the model is a RevColV2; choose a recipe or a run of a ViT")
    return model


def in_words(model: BackboneConfig) -> str:
    """Kind and sizes, without those of the image."""
    if isinstance(model, ViTConfig):
        return f"ViT {model.width} wide, {model.depth} deep"
    widths = " ".join(map(str, model.widths))
    return f"RevColV2 (reconstruction), {model.bottom_up_columns} + {model.top_down_columns} columns of {widths}"


def revcolv2_small(*, widths: tuple[int, int, int] = (64, 192, 192), head_width: int = 64) -> RevColV2Config:
    """For images of 32 px: three levels, two columns each way. Ours; no layer scale, which acts late from 1e-6."""
    return RevColV2Config(
        image_size=32,
        patch_size=2,
        mask_unit=8,
        widths=widths,
        layers=(1, 1, 1),
        kinds=("convolution", "transformer", "convolution"),
        bottom_up_columns=2,
        top_down_columns=2,
        head_width=head_width,
        layer_scale=None,
    )


def revcolv2_base(*, image_size: int = 224, drop_path: float = 0.0) -> RevColV2Config:
    """Reconstruction of RevColV2-B: 88 M parameters and 19 G multiply-adds at 224 (supplement, Table 5)."""
    return RevColV2Config(image_size=image_size, drop_path=drop_path)


def revcolv2_large(*, image_size: int = 224, drop_path: float = 0.0) -> RevColV2Config:
    """Reconstruction of RevColV2-L: 327 M parameters and 67 G multiply-adds at 224 (supplement, Table 5)."""
    return RevColV2Config(image_size=image_size, widths=(192, 384, 768, 1152), layers=(1, 2, 3, 1), drop_path=drop_path)
