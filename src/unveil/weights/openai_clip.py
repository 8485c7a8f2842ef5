"""CLIP as OpenAI released it and open_clip writes it, to and from ours."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from unveil.config import UnveilError, ViTConfig
from unveil.weights.names import BACKBONE, is_text
from unveil.weights.resblocks import native_block_name, released_block_name
from unveil.weights.sizes import sizes_of
from unveil.weights.text_tower import native_text_name, released_text_name, turned

MARKS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's released state dicts carry and open_clip's do not."""

_TOP = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.weight": "patch_embed.proj.weight",
    "ln_pre.weight": "norm_pre.weight",
    "ln_pre.bias": "norm_pre.bias",
    "ln_post.weight": "norm.weight",
    "ln_post.bias": "norm.bias",
}
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
    projection_bias: Float[Tensor, "e"] | None = None
    """What EVA-CLIP adds to that, and OpenAI does not."""


def is_openai_clip(state: dict[str, Tensor]) -> bool:
    """Whether a state dict holds a CLIP ViT in OpenAI's layout, alone or beside its text tower."""
    return "visual.class_embedding" in state or "class_embedding" in state


def is_openais_own(state: dict[str, Tensor]) -> bool:
    """Whether OpenAI itself wrote the file, so that the network was trained with quick GELU."""
    return MARKS[0] in state


def native_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Name in the file -> our name."""
    prefix = _prefix(state)
    names = {}
    for name in state:
        tower = name.removeprefix(prefix)
        ours = native_name(tower) if name.startswith(prefix) else None
        if ours is not None:
            names[name] = BACKBONE + ours
        elif name == f"{prefix}proj":
            names[name] = "projection.weight"
        else:
            names[name] = native_text_name(name) or name
    return names


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's or open_clip's -> ours."""
    names = native_names(state)
    native = {}
    for name, value in state.items():
        ours = names[name]
        ones = _LEADING_ONES.get(ours.removeprefix(BACKBONE), 0) if ours.startswith(BACKBONE) else 0
        value = turned(ours, value)
        native[ours] = value.t() if ours == "projection.weight" else value.reshape((1,) * ones + tuple(value.shape))
    return native


def released_names(native: Iterable[str]) -> dict[str, str]:
    """Our name -> OpenAI's: under `visual.` beside a text tower, else the tower alone.

    Raises:
        UnveilError: the network has parts that CLIP's design has no place for.
    """
    native = list(native)
    prefix = "visual." if any(is_text(name) for name in native) else ""
    names = {}
    for name in native:
        if name.startswith(BACKBONE):
            names[name] = prefix + _to_openai(name.removeprefix(BACKBONE))
        elif name == "projection.bias":
            raise UnveilError(
                "CLIP's projection in OpenAI's layout has no bias as this one has; use the layout open_clip"
            )
        elif name == "projection.weight":
            names[name] = f"{prefix}proj"
        else:
            names[name] = released_text_name(name) or name
    return names


def from_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours -> OpenAI's.

    Raises:
        UnveilError: the network has parts that CLIP's design has no place for.
    """
    names = released_names(state)
    released = {}
    for name, value in state.items():
        ones = _LEADING_ONES.get(name.removeprefix(BACKBONE), 0) if name.startswith(BACKBONE) else 0
        value = turned(name, value)
        released[names[name]] = value.t() if name == "projection.weight" else value.reshape(value.shape[ones:])
    return released


def tower_from_openai(
    state: dict[str, Tensor],
    *,
    activation: Literal["gelu", "quick_gelu"],
    source: str = "this file",
    heads: int | None = None,
) -> ClipTower:
    """Sizes and weights, in float32, of the vision tower in `state`.

    Args:
        state: OpenAI's or open_clip's, the tower alone or under `visual.` beside the text tower.
        activation: OpenAI trained with "quick_gelu", open_clip's own models mostly with "gelu"; the file cannot tell.
        source: What errors call the file.
        heads: None = those of the published CLIP of this width; no shape in the file tells.

    Raises:
        UnveilError: not a CLIP ViT, or parts of it are missing or not known.
    """
    if not is_openai_clip(state):
        raise UnveilError(
            f"{source} is not a CLIP vision transformer in OpenAI's layout: it has no class_embedding "
            "(a CLIP with a ResNet has no patch features either)"
        )
    prefix = _prefix(state)
    native = to_native({name: value for name, value in state.items() if name.startswith(prefix)})
    projection = native.pop("projection.weight", None)
    if foreign := [name for name in native if not name.startswith(BACKBONE)]:
        raise UnveilError(
            f"{source}: a CLIP vision transformer with {foreign[0].removeprefix(prefix)!r} is not of OpenAI's design"
        )
    tower = {name.removeprefix(BACKBONE): value.float() for name, value in native.items()}
    if missing := sorted(set(_TOP.values()) - tower.keys()):
        raise UnveilError(
            f"{source}: the CLIP vision transformer in it lacks {', '.join(missing)}: is the file complete?"
        )
    config = sizes_of(tower, heads=heads, source=source, activation=activation, norm_epsilon=1e-5)
    return ClipTower(config, tower, None if projection is None else projection.t().float())


def openai_from_tower(state: dict[str, Tensor], projection: Tensor | None, *, prefix: str = "") -> dict[str, Tensor]:
    """The inverse: our ViT's weights under OpenAI's names, each with `prefix` ("visual." for a whole CLIP) in front.

    Raises:
        UnveilError: the ViT has parts that CLIP's design has no place for.
    """
    native = {BACKBONE + name: value for name, value in state.items()}
    native |= {} if projection is None else {"projection.weight": projection.t()}
    return {prefix + name: value for name, value in from_native(native).items()}


def native_name(name: str) -> str | None:
    """The name in `ViT` of a tensor of CLIP's vision tower; None if it is none, or the projection."""
    if name in _TOP:
        return _TOP[name]
    return native_block_name(name)


def _prefix(state: dict[str, Tensor]) -> str:
    return "visual." if "visual.class_embedding" in state else ""


def _to_openai(name: str) -> str:
    """OpenAI's name of a tensor of `ViT`."""
    for theirs, ours in _TOP.items():
        if name == ours:
            return theirs
    if (released := released_block_name(name)) is not None:
        return released
    raise UnveilError(
        f"{name} has no place in OpenAI's CLIP layout, which needs ViTConfig(qkv_bias='all', patch_bias=False, "
        "norm_before_blocks=True, layer_scale=None) and no mask token"
    )
