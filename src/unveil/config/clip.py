"""What a CLIP looks like: a ViT, a text transformer, and the space that they share (paper section 2.3.5)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from unveil.config.errors import UnveilError
from unveil.config.model import (
    ActivationCheckpointing,
    ViTConfig,
    check_activation_checkpointing,
    vit_base,
    vit_giant,
    vit_tiny,
)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """CLIP's text transformer: causal, pre-norm, read out at the end-of-text token. The defaults are EVA CLIP-g's.

    Raises:
        UnveilError: sizes that do not divide.
    """

    context_length: int = 77
    """Tokens of a text, start and end among them."""
    vocabulary_size: int = 49408
    """Of CLIP's byte-pair encoding; the end of a text is its highest number."""
    width: int = 768
    heads: int = 12
    depth: int = 12
    mlp_width: int = 3072
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    """OpenAI trained with "quick_gelu", EVA and most of open_clip with "gelu"."""
    norm_epsilon: float = 1e-5
    activation_checkpointing: ActivationCheckpointing = False
    """As the ViT's."""

    causal: ClassVar[bool] = True
    qkv_bias: ClassVar[Literal["all"]] = "all"
    layer_scale: ClassVar[None] = None

    def __post_init__(self) -> None:
        sizes = (self.context_length, self.vocabulary_size, self.width, self.heads, self.depth, self.mlp_width)
        if min(sizes) < 1:
            raise UnveilError("every size of the text tower must be at least 1")
        if self.width % self.heads:
            raise UnveilError(f"model.text.width {self.width} is not a multiple of model.text.heads {self.heads}")
        check_activation_checkpointing(self.activation_checkpointing)


@dataclass(frozen=True, kw_only=True)
class ClipModelConfig:
    """Two towers and the space that they share.

    Raises:
        UnveilError: a size that is impossible.
    """

    vision: ViTConfig
    text: TextConfig = TextConfig()
    embedding_width: int = 1024
    """Of the shared space."""
    projection_bias: bool = True
    """Of the images' way into it: EVA's and timm's networks end in a layer with one, OpenAI's in a matrix alone. The
    texts' way has none."""
    projection_init_std: float | None = None
    """Deviation of the image projection's first weights; left out: 1 / sqrt(width), as OpenAI has it."""

    def __post_init__(self) -> None:
        if self.embedding_width < 1:
            raise UnveilError(f"model.embedding_width is {self.embedding_width}; it must be at least 1")
        if self.projection_init_std is not None and self.projection_init_std <= 0:
            raise UnveilError(f"model.projection_init_std is {self.projection_init_std}; it must be more than 0")


def eva_clip_giant(*, drop_path: float = 0.4) -> ClipModelConfig:
    """EVA CLIP-g (Table 10a): 1,136,435,841 parameters, the temperature among them.

    Released code: drop path 0.4; the projection starts with a deviation of 0.02, times 0.001.
    """
    return ClipModelConfig(vision=vit_giant(drop_path=drop_path), projection_init_std=0.02 * 0.001)


def clip_base(*, image_size: int = 224, patch_size: int = 16, drop_path: float = 0.0) -> ClipModelConfig:
    """A ViT-B of ours with the text tower of OpenAI's base models: 512 wide, 8 heads."""
    return ClipModelConfig(
        vision=vit_base(image_size=image_size, patch_size=patch_size, drop_path=drop_path),
        text=TextConfig(width=512, heads=8, mlp_width=2048),
        embedding_width=512,
        projection_bias=False,
    )


def clip_tiny(*, image_size: int = 64, patch_size: int = 8, drop_path: float = 0.0) -> ClipModelConfig:
    """For small data: a ViT-Ti with a text tower as wide and a third as deep."""
    return ClipModelConfig(
        vision=vit_tiny(image_size=image_size, patch_size=patch_size, drop_path=drop_path),
        text=TextConfig(width=192, heads=3, depth=4, mlp_width=768),
        embedding_width=192,
        projection_bias=False,
    )
