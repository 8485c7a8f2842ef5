"""The timm network that has exactly our ViT's architecture: its name and the arguments of `timm.create_model`."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from unveil.config import UnveilError, ViTConfig

_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


@dataclass(frozen=True)
class TimmNetwork:
    """`timm.create_model(name, **arguments)`."""

    name: str
    arguments: dict[str, Any]

    def call(self) -> str:
        """The call as a person would write it, without `pretrained`."""
        return f"timm.create_model({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.arguments.items())])})"


def timm_network(
    config: ViTConfig, *, classes: int, pooling: Literal["mean", "cls"], pooled_norm: bool, separate_biases: bool
) -> TimmNetwork:
    """The nearest named network of timm, with whatever differs from it as arguments.

    Args:
        classes: rows of the head; 0 = none, the pooled features come out.
        pooling: mean of the patches, or the cls token.
        pooled_norm: whether the last norm comes after pooling.
        separate_biases: timm's `Eva`, whose queries and values have biases of their own; else `VisionTransformer`.

    Raises:
        UnveilError: timm has no network with such norms or activation.
    """
    import timm

    if config.relative_positions != "none":
        raise UnveilError(
            "timm has no plain ViT with relative positions (model.relative_positions "
            f"{config.relative_positions}); export to safetensors or onnx instead"
        )
    epsilon = 1e-5 if config.norm_before_blocks else 1e-6
    if config.norm_epsilon != epsilon or config.patch_bias == config.norm_before_blocks:
        raise UnveilError(
            f"timm has no ViT with model.norm_epsilon {config.norm_epsilon:g}, model.patch_bias {config.patch_bias} "
            f"and model.norm_before_blocks {config.norm_before_blocks} together; export to safetensors or onnx instead"
        )
    ends: dict[str, Any] = {"num_classes": classes, "global_pool": "avg" if pooling == "mean" else "token"}
    if pooled_norm != (pooling == "mean"):
        ends["use_fc_norm" if separate_biases else "fc_norm"] = pooled_norm
    size, patch, image = _SIZES.get(config.width, "base"), config.patch_size, config.image_size
    if separate_biases:
        named, fallback = f"eva_giant_patch{patch}_{image}", "eva_giant_patch14_224"
    elif config.norm_before_blocks:
        kind = "clip_quickgelu" if config.activation == "quick_gelu" else "clip"
        named, fallback = f"vit_{size}_patch{patch}_{kind}_{image}", f"vit_base_patch16_{kind}_224"
    else:
        named, fallback = f"vit_{size}_patch{patch}_{image}", "vit_base_patch16_224"
        if config.width == 1024 and timm.is_model(f"eva_large_patch{patch}_{image}"):
            named = f"eva_large_patch{patch}_{image}"
        if config.activation == "quick_gelu":
            ends["act_layer"] = "quick_gelu"
    if timm.is_model(named):
        with torch.device("meta"):
            network: Any = timm.create_model(named, **ends)
        if _sizes_of(network) == (
            config.width,
            config.depth,
            config.heads,
            config.mlp_width,
            config.qkv_bias != "none",
        ):
            return TimmNetwork(named, ends | _layer_scale(config))
    arguments = {
        "img_size": image,
        "patch_size": patch,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": mlp_ratio(config.mlp_width, config.width),
        "qkv_bias": config.qkv_bias != "none",
    }
    return TimmNetwork(named if timm.is_model(named) else fallback, arguments | _layer_scale(config) | ends)


def _layer_scale(config: ViTConfig) -> dict[str, float]:
    return {} if config.layer_scale is None else {"init_values": config.layer_scale}


def _sizes_of(network: Any) -> tuple[int, int, int, int, bool]:
    attention = network.blocks[0].attn
    has_bias = attention.qkv.bias is not None or getattr(attention, "q_bias", None) is not None
    hidden = network.blocks[0].mlp.fc1.out_features
    return network.embed_dim, len(network.blocks), attention.num_heads, hidden, has_bias


def mlp_ratio(mlp_width: int, width: int) -> float:
    """timm and open_clip multiply and cut off: in floating point the exact ratio may come out one too small."""
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else (mlp_width + 0.5) / width
