"""What a network looks like (paper Table 3a and the sizes below it)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from unveil.config.errors import UnveilError

ActivationCheckpointing = bool | int | Literal["selective"]
"""What backward recomputes: everything in every block (True) or in every k-th (k), of which the input is kept; in every
block all but matrix products and attention ("selective"); nothing (False). The numbers are the same."""


def recomputes(setting: ActivationCheckpointing, number: int) -> bool:
    """Whether the setting is for the block of this number, from 0 on: every second one are 1, 3, 5, ..."""
    if isinstance(setting, bool | str):
        return setting is not False
    return (number + 1) % setting == 0


def check_activation_checkpointing(setting: ActivationCheckpointing) -> None:
    """Raises UnveilError for a number that cannot be."""
    if not isinstance(setting, bool | str) and setting < 1:
        raise UnveilError(
            f"activation_checkpointing is {setting}; give true, false, selective, or 1 or more for every k-th block"
        )


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """EVA's plain ViT. The defaults are EVA's own; the last settings let the ViTs of timm, OpenAI and open_clip fit.

    Raises:
        UnveilError: sizes that do not divide.
    """

    image_size: int = 224
    """Side of the square input that the position table is made for, pixels."""
    patch_size: int = 14
    width: int = 1408
    depth: int = 40
    heads: int = 16
    mlp_width: int = 6144
    drop_path: float = 0.0
    """Stochastic depth rate of the last block; the others rise to it linearly from 0."""
    init_std: float = 0.02
    position_init: Literal["normal", "sine_cosine"] = "normal"
    """What the learned positions start from. Sines and cosines of row and column (MAE's table) spare a small network on
    little data the time to find out which patches are neighbours: docs/lab_book.md."""
    relative_positions: Literal["none", "shared"] = "none"
    """"shared": each head adds to its logits a learned number for the offset between two patches, the same in all
    blocks (BEiT, feature distillation); on top of the positions of their own that patches have. EVA has none."""
    qkv_bias: Literal["query_and_value", "all", "none"] = "query_and_value"
    layer_scale: float | None = None
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    norm_epsilon: float = 1e-6
    patch_bias: bool = True
    norm_before_blocks: bool = False
    """A LayerNorm between the positions and the first block, as CLIP's towers have it."""
    activation_checkpointing: ActivationCheckpointing = False
    """Save memory by computing what backward needs once more: in all blocks (true), in every k-th (k), or in all, but
    without matrix products and attention (selective)."""

    causal: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.image_size, self.patch_size, self.width, self.depth, self.heads, self.mlp_width) < 1:
            raise UnveilError("every size of the model must be at least 1")
        if self.image_size % self.patch_size:
            raise UnveilError(
                f"model.image_size {self.image_size} is not a multiple of model.patch_size {self.patch_size}; "
                f"try {self.image_size // self.patch_size * self.patch_size or self.patch_size}"
            )
        if self.width % self.heads:
            raise UnveilError(f"model.width {self.width} is not a multiple of model.heads {self.heads}")
        if not 0.0 <= self.drop_path < 1.0:
            raise UnveilError(f"model.drop_path {self.drop_path} is not in [0, 1)")
        check_activation_checkpointing(self.activation_checkpointing)

    @property
    def mask_unit(self) -> int:
        """Side of the squares that masked pre-training hides as a whole, pixels: a patch."""
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        side = self.image_size // self.patch_size
        return side, side


def vit_tiny(*, image_size: int = 224, patch_size: int = 14, drop_path: float = 0.0) -> ViTConfig:
    return ViTConfig(
        image_size=image_size, patch_size=patch_size, width=192, depth=12, heads=3, mlp_width=768, drop_path=drop_path
    )


def vit_small(*, image_size: int = 224, patch_size: int = 14, drop_path: float = 0.0) -> ViTConfig:
    return ViTConfig(
        image_size=image_size, patch_size=patch_size, width=384, depth=12, heads=6, mlp_width=1536, drop_path=drop_path
    )


def vit_base(*, image_size: int = 224, patch_size: int = 14, drop_path: float = 0.0) -> ViTConfig:
    return ViTConfig(
        image_size=image_size, patch_size=patch_size, width=768, depth=12, heads=12, mlp_width=3072, drop_path=drop_path
    )


def vit_large(*, image_size: int = 224, patch_size: int = 14, drop_path: float = 0.0) -> ViTConfig:
    return ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=1024,
        depth=24,
        heads=16,
        mlp_width=4096,
        drop_path=drop_path,
    )


def vit_giant(*, image_size: int = 224, patch_size: int = 14, drop_path: float = 0.0) -> ViTConfig:
    """EVA's own (Table 3a): 1.0 B parameters. Released code: init_std 0.015."""
    return ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=1408,
        depth=40,
        heads=16,
        mlp_width=6144,
        drop_path=drop_path,
        init_std=0.015,
    )
