"""The same network on timm's blocks, to compare speeds."""

from typing import cast

from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.config import UnveilError
from unveil.models.transformer import Block, take
from unveil.models.vit import ViT


class TimmBlock(nn.Module):
    """timm's block where ours was: it draws its drop path itself, and knows no bias of its attention.

    Of networks without a bias of the keys it is that of timm's EVA (`eva_giant_patch14_224`), else that of its ViT.
    """

    def __init__(self, backbone: ViT, drop_path: float) -> None:
        super().__init__()
        from timm.models.eva import EvaBlock
        from timm.models.vision_transformer import Block as ViTBlock

        config = backbone.config
        their_block = EvaBlock if config.qkv_bias == "query_and_value" else ViTBlock
        self.block = their_block(
            config.width,
            config.heads,
            mlp_ratio=config.mlp_width / config.width,
            qkv_bias=config.qkv_bias != "none",
            init_values=config.layer_scale,
            drop_path=drop_path,
        )

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        drop_path_noise: Float[Tensor, "b 2"] | None = None,
        bias: Float[Tensor, "heads t t"] | None = None,
        places: Int64[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b _ d"]:
        x = self.block(x)
        return x if places is None else take(x, places)


def use_timm_blocks(backbone: ViT) -> None:
    """Put timm's blocks, with fresh weights, in the place of ours.

    Raises:
        UnveilError: positions that timm's block has no place for.
    """
    if backbone.rel_pos_bias is not None:
        raise UnveilError(
            "timm's block has no relative positions to compare with; add --set model.relative_positions=none"
        )
    for number, block in enumerate(backbone.blocks):
        backbone.blocks[number] = TimmBlock(backbone, cast(Block, block).drop_path)
