"""What a file of weights is, from its tensors alone: sizes, classification head, pooling."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.config import ClipModelConfig, RevColV2Config, UnveilError, ViTConfig
from unveil.config.serialize import from_json
from unveil.models.vit import ViT
from unveil.weights.families import recognize
from unveil.weights.read import read_metadata
from unveil.weights.sizes import sizes_of

NOTES = "unveil."
"""In front of what we write into a safetensors file's metadata, as JSON: each of `KNOWN`."""

KNOWN = ("model", "classes", "normalization", "pooling", "test_crop")

PROBE_EPSILON = 1e-6
"""Of the norm without weights in front of a linear probe's head (MAE's and EVA's released code)."""

Head = tuple[Float[Tensor, "classes d"], Float[Tensor, "classes"]]


def infer(state: dict[str, Tensor], *, source: str, heads: int | None = None) -> ViTConfig:
    """The configuration of the ViT in any supported layout.

    Args:
        state: as `read_weights` gives it.
        source: what errors call the file.
        heads: attention heads where they are known. None = those of the published ViT of this width.

    Raises:
        UnveilError: a layout that is not known, a network that is incomplete or of another design, or heads that
            nothing tells.
    """
    found = recognize(state, source=source)
    if any(name.startswith("bottom_up.") for name in found.backbone):
        raise UnveilError(f"{source} holds a RevColV2, of which the weights tell not all; give the folder of its run")
    if found.family == "native" and heads is None:
        raise UnveilError(
            f"{source} is from a run of unveil, whose number of attention heads is in the run's config.json; give the "
            "run folder, or --set model.heads=N"
        )
    config = sizes_of(found.backbone, heads=heads, source=source, activation=found.activation)
    with torch.device("meta"):
        ours = ViT(config, mask_token=True).state_dict()
    for name, value in found.backbone.items():
        if name not in ours or ours[name].shape != value.shape:
            raise UnveilError(
                f"{source}: a vision transformer whose {name} is {tuple(value.shape)} is of another design than those "
                "that can be loaded here (gated MLP, rotary positions, register tokens?)"
            )
    return config


def head_of(state: dict[str, Tensor]) -> Head | None:
    """Weight and bias of the classification head on pooled features; None where the file has none.

    A linear probe's norm (`head.0.running_*`) is folded into its linear layer (`head.1.*`). The predictor of masked
    pre-training and CLIP's projection are no classification heads.
    """
    found = recognize(state, source="this file")
    parts = found.native
    if found.masked:
        return None
    if "head.weight" in parts:
        weight = parts["head.weight"]
        return weight, parts.get("head.bias", weight.new_zeros(len(weight)))
    if "head.1.weight" not in parts:
        return None
    weight = parts["head.1.weight"].float()
    bias = parts["head.1.bias"].float() if "head.1.bias" in parts else weight.new_zeros(len(weight))
    scale = torch.rsqrt(parts["head.0.running_var"].float() + PROBE_EPSILON)
    return weight * scale, bias - weight @ (parts["head.0.running_mean"].float() * scale)


def pooling_of(state: dict[str, Tensor]) -> Literal["mean", "cls"]:
    """What a classification head in the file sees: the mean of the patches under `fc_norm`, or the normed cls token.

    A head on the mean of normed patches looks like one on the cls token: see `known_about` first.
    """
    return "mean" if "fc_norm.weight" in recognize(state, source="this file").native else "cls"


def known_about(file: Path) -> dict[str, Any]:
    """What a file says about itself, as JSON values: "model" (its ViTConfig, or of a whole CLIP its ClipModelConfig),
    "classes", "normalization", "pooling" and "test_crop".

    `unveil convert`, `export` and `probe` write them into safetensors files, and a run has them in the config.json
    beside its checkpoints; {} where nothing is said.

    Raises:
        UnveilError: the file or the configuration beside it is damaged.
    """
    if file.suffix == ".safetensors":
        metadata = read_metadata(file)
        said = {name: metadata[NOTES + name] for name in KNOWN if NOTES + name in metadata}
        if said:
            return {name: _json(text, file) for name, text in said.items()}
    run = file.parent.parent.parent / "config.json"
    if file.parent.parent.name != "checkpoints" or not run.is_file():
        return {}
    config = _json(run.read_text(encoding="utf-8"), run)
    said = {name: config.get(name) for name in ("model", "classes", "pooling", "test_crop")}
    return {"normalization": config.get("data", {}).get("normalization")} | said


def config_in(file: Path) -> ViTConfig | None:
    """The ViT that a file says it holds (see `known_about`), alone or in a CLIP; None where it does not say.

    Raises:
        UnveilError: the file or the configuration beside it is damaged, or not of a ViT.
    """
    model = known_about(file).get("model")
    return None if model is None else vision_of(model)


def clip_config_in(file: Path) -> ClipModelConfig | None:
    """The whole CLIP that a file says it holds; None where it says something else or nothing.

    Raises:
        UnveilError: the file or the configuration beside it is damaged.
    """
    model = known_about(file).get("model")
    return from_json(ClipModelConfig, model) if is_clip(model) else None


def vision_of(model: Any) -> ViTConfig:
    """The ViT of a configuration's "model": the whole of it, or a CLIP's image tower.

    Raises:
        UnveilError: it is damaged, or not of a ViT.
    """
    if columns_of(model) is not None:
        raise UnveilError(
            "the network is a RevColV2, and a ViT is wanted here: a CLIP's image tower, a teacher, or a ViT's weights; "
            "give those of a ViT"
        )
    return from_json(ClipModelConfig, model).vision if is_clip(model) else from_json(ViTConfig, model)


def columns_of(model: Any) -> RevColV2Config | None:
    """The RevColV2 of a configuration's "model"; None where it is of something else.

    Raises:
        UnveilError: it is damaged.
    """
    if isinstance(model, dict) and model.get("kind") == RevColV2Config.__name__:
        return from_json(RevColV2Config, model)
    return None


def columns_in(file: Path) -> RevColV2Config | None:
    """The RevColV2 that a file says it holds (see `known_about`); None where it says something else or nothing.

    Raises:
        UnveilError: the file or the configuration beside it is damaged.
    """
    return columns_of(known_about(file).get("model"))


def is_clip(model: Any) -> bool:
    """Whether a configuration's "model" is that of two towers."""
    return isinstance(model, dict) and model.get("kind") == ClipModelConfig.__name__


def _json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UnveilError(f"what {file} says about its network is damaged ({error}); restore the file") from error
