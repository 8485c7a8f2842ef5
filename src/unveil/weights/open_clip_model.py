"""Our CLIPs as models of open_clip's: the description that builds one there, and the weights that fill it."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unveil.config import ClipModelConfig, UnveilError, ViTConfig
from unveil.weights import open_clip, openai_clip
from unveil.weights.names import BACKBONE
from unveil.weights.own import native_names
from unveil.weights.timm_network import mlp_ratio, timm_network

OPEN_CLIPS_EPSILON = 1e-5
"""Of every norm in a tower of open_clip's own that does not ask for another."""


@dataclass(frozen=True, kw_only=True)
class OpenClipModel:
    """For an open_clip_config.json and the weights beside it."""

    description: dict[str, Any]
    """Its "model_cfg"."""
    state: dict[str, Tensor]
    config: ClipModelConfig
    """Ours, of the network as it was written: biases may have been joined, or become a part of something else."""


def to_open_clip(state: dict[str, Tensor], config: ClipModelConfig) -> OpenClipModel:
    """The model of open_clip's that computes the same, in this order of preference:

    - its own towers, where ours is of CLIP's design (all values stay);
    - a network that timm has a name for, as in EVA01-g-14 (all values stay);
    - its own image tower without a norm before the blocks, with the bias of the patches, which it has no place for,
      added to their positions (the same sums, in another order).

    Args:
        state: of `Clip(config)`.

    Raises:
        UnveilError: it has none.
    """
    names = native_names(state)
    native = {names[name]: value for name, value in state.items()}
    vision = config.vision
    if vision.relative_positions != "none":
        raise UnveilError("open_clip has no image tower with relative positions; choose --to safetensors")
    if not vision.norm_before_blocks and (trunk := _trunk(config)) is not None:
        name, separate_biases = trunk
        described = {"timm_model_name": name, "timm_pool": "token", "timm_proj": None}
        native = native if separate_biases else _joint_biases(native, vision)
        # Heads of timm's networks have a bias.
        native = {"projection.bias": native["projection.weight"].new_zeros(config.embedding_width)} | native
        written = replace(vision, qkv_bias=vision.qkv_bias if separate_biases else "all")
        return OpenClipModel(
            description=_description(config, described) | {"custom_text": True},
            state=open_clip.from_native(native),
            config=replace(config, vision=written, projection_bias=True),
        )
    _require_open_clips_own(config)
    return OpenClipModel(
        description=_description(config, _own_vision(vision)),
        state=openai_clip.from_native(_without_patch_bias(_joint_biases(native, vision))),
        config=replace(config, vision=replace(vision, qkv_bias="all", patch_bias=False)),
    )


def _description(config: ClipModelConfig, vision: dict[str, Any]) -> dict[str, Any]:
    text = config.text
    described: dict[str, Any] = {
        "embed_dim": config.embedding_width,
        "vision_cfg": {"image_size": config.vision.image_size} | vision,
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocabulary_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.depth,
            "mlp_ratio": mlp_ratio(text.mlp_width, text.width),
        }
        | _norm(text.norm_epsilon),
    }
    # For both towers, but for timm's networks, which keep their own.
    return described | ({"quick_gelu": True} if text.activation == "quick_gelu" else {})


def _own_vision(vision: ViTConfig) -> dict[str, Any]:
    described: dict[str, Any] = {
        "patch_size": vision.patch_size,
        "width": vision.width,
        "head_width": vision.width // vision.heads,
        "layers": vision.depth,
        "mlp_ratio": mlp_ratio(vision.mlp_width, vision.width),
    }
    described |= {} if vision.norm_before_blocks else {"no_ln_pre": True}
    return described | _norm(vision.norm_epsilon)


def _norm(epsilon: float) -> dict[str, Any]:
    return {} if epsilon == OPEN_CLIPS_EPSILON else {"norm_kwargs": {"eps": epsilon}}


def _trunk(config: ClipModelConfig) -> tuple[str, bool] | None:
    """The network of timm's that is this image tower by its name alone, for open_clip passes no settings on; and
    whether its queries and values have biases of their own. None where there is none."""
    vision = config.vision
    eva = vision.qkv_bias == "query_and_value" and vision.activation == "gelu"
    for separate_biases in (True, False) if eva else (False,):
        try:
            theirs = timm_network(
                vision,
                classes=config.embedding_width,
                pooling="cls",
                pooled_norm=False,
                separate_biases=separate_biases,
            )
        except UnveilError:
            return None
        if theirs.arguments.keys() <= {"num_classes", "global_pool"}:
            return theirs.name, separate_biases
    return None


def _require_open_clips_own(config: ClipModelConfig) -> None:
    vision = config.vision
    lacking = {
        "a bias on the images' projection (model.projection_bias)": config.projection_bias,
        "layer scale (model.vision.layer_scale)": vision.layer_scale is not None,
        "another activation in the image tower than in the text tower": vision.activation != config.text.activation,
    }
    if wanted := [what for what, is_wanted in lacking.items() if is_wanted]:
        raise UnveilError(f"open_clip has no model of these sizes with {wanted[0]}; choose --to safetensors")


def _joint_biases(native: dict[str, Tensor], vision: ViTConfig) -> dict[str, Tensor]:
    """One bias for queries, keys and values of the image tower: those that it lacks are zero, which changes nothing."""
    joint = dict(native)
    for number in range(vision.depth):
        stem = f"{BACKBONE}blocks.{number}.attn."
        zero = native[f"{stem}proj.bias"].new_zeros(vision.width)
        query, value = joint.pop(f"{stem}q_bias", zero), joint.pop(f"{stem}v_bias", zero)
        joint.setdefault(f"{stem}qkv.bias", torch.cat((query, zero, value)))
    return joint


def _without_patch_bias(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was added to each patch becomes a part of its position."""
    bias = native.pop(f"{BACKBONE}patch_embed.proj.bias", None)
    if bias is None:
        return native
    positions = native[f"{BACKBONE}pos_embed"].clone()
    positions[:, 1:] += bias
    return native | {f"{BACKBONE}pos_embed": positions}
