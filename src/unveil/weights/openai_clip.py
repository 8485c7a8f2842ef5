"""CLIP's vision tower as OpenAI released it and open_clip writes it, to and from our ViT."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from unveil.config import UnveilError, ViTConfig

HEAD_WIDTH = 64
"""CLIP's ViTs have one head for each 64 of width; no shape in the file says so."""

_TOP = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.weight": "patch_embed.proj.weight",
    "ln_pre.weight": "norm_pre.weight",
    "ln_pre.bias": "norm_pre.bias",
    "ln_post.weight": "norm.weight",
    "ln_post.bias": "norm.bias",
}
_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK_NAME = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_LEADING_ONES = {"cls_token": 2, "pos_embed": 1}
"""Dimensions of size 1 that our tensors have in front of CLIP's."""


@dataclass(frozen=True)
class ClipTower:
    """A CLIP vision tower in our own terms."""

    config: ViTConfig
    state: dict[str, Tensor]
    """For `ViT(config)`."""
    projection: Float[Tensor, "d e"] | None
    """tokens @ projection: from the tower's width to the space shared with text; None where the file has none."""


def is_openai_clip(state: dict[str, Tensor]) -> bool:
    """Whether a state dict holds a CLIP ViT in OpenAI's layout, alone or beside its text tower."""
    return "visual.class_embedding" in state or "class_embedding" in state


def tower_from_openai(
    state: dict[str, Tensor], *, activation: Literal["gelu", "quick_gelu"], source: str = "this file"
) -> ClipTower:
    """Sizes and weights of the vision tower in `state`.

    Args:
        state: OpenAI's or open_clip's, the tower alone or under `visual.` beside the text tower.
        activation: OpenAI trained with "quick_gelu", open_clip's own models mostly with "gelu"; the file cannot tell.
        source: What errors call the file.

    Raises:
        UnveilError: not a CLIP ViT, or parts of it are missing or not known.
    """
    if not is_openai_clip(state):
        raise UnveilError(
            f"{source} is not a CLIP vision transformer in OpenAI's layout: it has no class_embedding "
            "(a CLIP with a ResNet has no patch features either)"
        )
    prefix = "visual." if "visual.class_embedding" in state else ""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.startswith(prefix) or name == f"{prefix}proj":
            continue
        ours = native_name(name)
        if ours is None:
            raise UnveilError(f"{source}: a CLIP vision transformer with {name!r} is not one of OpenAI's design")
        converted[ours] = value.float().reshape((1,) * _LEADING_ONES.get(ours, 0) + tuple(value.shape))
    projection = state.get(f"{prefix}proj")
    return ClipTower(
        _infer_config(converted, activation, source), converted, None if projection is None else projection.float()
    )


def openai_from_tower(state: dict[str, Tensor], projection: Tensor | None, *, prefix: str = "") -> dict[str, Tensor]:
    """The inverse: our ViT's weights under OpenAI's names, each with `prefix` ("visual." for a whole CLIP) in front.

    Raises:
        UnveilError: the ViT has parts that CLIP's design has no place for.
    """
    converted = {} if projection is None else {f"{prefix}proj": projection}
    for name, value in state.items():
        theirs = _to_openai(name)
        if theirs is None:
            raise UnveilError(
                f"{name} has no place in OpenAI's CLIP layout, which needs ViTConfig(qkv_bias='all', patch_bias=False, "
                "norm_before_blocks=True, layer_scale=None) and no mask token"
            )
        converted[prefix + theirs] = value.reshape(value.shape[_LEADING_ONES.get(name, 0) :])
    return converted


def native_name(name: str) -> str | None:
    """Our name of a tensor of CLIP's vision tower; None if it is none, or the projection."""
    name = name.removeprefix("visual.")
    if name in _TOP:
        return _TOP[name]
    matched = _BLOCK_NAME.fullmatch(name)
    if matched is None:
        return None
    for theirs, ours in _BLOCK.items():
        if matched[2].startswith(theirs):
            return f"blocks.{matched[1]}.{ours}{matched[2].removeprefix(theirs)}"
    return None


def _to_openai(name: str) -> str | None:
    for theirs, ours in _TOP.items():
        if name == ours:
            return theirs
    matched = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if matched is None:
        return None
    for theirs, ours in _BLOCK.items():
        if matched[2].startswith(ours):
            return f"transformer.resblocks.{matched[1]}.{theirs}{matched[2].removeprefix(ours)}"
    return None


def _infer_config(state: dict[str, Tensor], activation: Literal["gelu", "quick_gelu"], source: str) -> ViTConfig:
    needed = set(_TOP.values()) | {"blocks.0.mlp.fc1.weight"}
    if missing := sorted(needed - state.keys()):
        raise UnveilError(
            f"{source}: the CLIP vision transformer in it lacks {', '.join(missing)}: is the file complete?"
        )
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    if side * side + 1 != state["pos_embed"].shape[1] or width % HEAD_WIDTH:
        raise UnveilError(
            f"{source}: {state['pos_embed'].shape[1]} positions of width {width} do not make one of OpenAI's CLIPs, "
            f"which have a square grid and heads of {HEAD_WIDTH}"
        )
    return ViTConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        heads=width // HEAD_WIDTH,
        mlp_width=state["blocks.0.mlp.fc1.weight"].shape[0],
        qkv_bias="all",
        activation=activation,
        norm_epsilon=1e-5,
        patch_bias=False,
        norm_before_blocks=True,
    )
