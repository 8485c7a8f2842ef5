"""A ViT's configuration from the shapes of its tensors; what no shape tells is looked up or asked for."""

import math
import re
from typing import Literal

from torch import Tensor

from unveil.config import UnveilError, ViTConfig

HEAD_WIDTHS = {1152: 72, 1280: 80, 1408: 88, 1664: 104, 1792: 112}
"""Width of a head in published ViTs that do not have the usual 64: so400m, huge (MAE, DINO, CLIP), giant (EVA, CLIP),
bigG and e. They all have 16 heads; by width alone the families agree."""

USUAL_HEAD_WIDTH = 64

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def published_heads(width: int) -> int | None:
    """Attention heads of the published ViTs of this width; None where there is none."""
    head_width = HEAD_WIDTHS.get(width, USUAL_HEAD_WIDTH)
    return None if width % head_width else width // head_width


def heads_for(width: int, source: str, setting: str = "model.heads") -> int:
    """The same for a file.

    Args:
        setting: what a person gives heads with, for errors.

    Raises:
        UnveilError: no published ViT is that wide.
    """
    heads = published_heads(width)
    if heads is None:
        raise UnveilError(
            f"{source}: no shape in it tells the number of attention heads, and {width} is the width of no ViT known "
            f"here; give it with --set {setting}=N"
        )
    return heads


def sizes_of(
    backbone: dict[str, Tensor],
    *,
    heads: int | None,
    source: str,
    activation: Literal["gelu", "quick_gelu"] = "gelu",
    norm_epsilon: float | None = None,
    setting: str = "model.heads",
) -> ViTConfig:
    """The configuration of the `ViT` whose state dict this is; only shapes are looked at.

    Args:
        heads: None = those of the published ViT of this width.
        setting: what a person gives heads with, for errors.
        norm_epsilon: None = 1e-5 for towers with a norm before their blocks (CLIP), else 1e-6 (EVA, timm, MAE).

    Raises:
        UnveilError: tensors are missing, the positions are not a cls token and a square grid, or the heads not known.
    """
    needed = (
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.mlp.fc1.weight",
    )
    if missing := [name for name in needed if name not in backbone]:
        raise UnveilError(
            f"{source}: the vision transformer in it lacks {', '.join(missing)}: the file is not complete, or the "
            "network of another design (without cls token, with rotary or relative positions)"
        )
    kernel = backbone["patch_embed.proj.weight"]
    positions = backbone["pos_embed"].shape[1] - 1
    side = math.isqrt(max(positions, 0))
    if side < 1 or side * side != positions or kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise UnveilError(
            f"{source}: {positions + 1} positions and patches of shape {tuple(kernel.shape[1:])} are not those of one "
            "cls token and a square grid of square patches; register tokens and other shapes cannot be loaded"
        )
    width, _, patch, _ = kernel.shape
    parts = [_BLOCK.fullmatch(name) for name in backbone]
    first = {part[2] for part in parts if part and part[1] == "0"}
    pre_norm = "norm_pre.weight" in backbone
    return ViTConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=1 + max(int(part[1]) for part in parts if part),
        heads=heads or heads_for(width, source, setting),
        mlp_width=backbone["blocks.0.mlp.fc1.weight"].shape[0],
        relative_positions="shared" if "rel_pos_bias.relative_position_bias_table" in backbone else "none",
        qkv_bias="query_and_value" if "attn.q_bias" in first else "all" if "attn.qkv.bias" in first else "none",
        # The starting value, which those in the file replace.
        layer_scale=1e-5 if "gamma_1" in first else None,
        activation=activation,
        norm_epsilon=norm_epsilon or (1e-5 if pre_norm else 1e-6),
        patch_bias="patch_embed.proj.bias" in backbone,
        norm_before_blocks=pre_norm,
    )
