"""The released checkpoints of EVA: masked pre-training, fine-tuned, linear probe, EVA-CLIP (baaivision/EVA, EVA-01).

The trunk's names are ours. What differs: `lm_head`, the predictor, is our `head`; EVA-CLIP keeps its tower under
`visual.` with the projection as `visual.head`, and its text tower under `text.`, temperature included.
"""

from collections.abc import Iterable

from torch import Tensor

from unveil.weights.names import BACKBONE, is_backbone, is_text
from unveil.weights.text_tower import TEXT, native_text_name, released_text_name, turned

_TOWER = "visual."


def is_eva(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has EVA's layout: its own biases in a bare network, or a tower under `visual.`."""
    if "decoder_embed.weight" in state:
        # EVA-L, trained as a masked autoencoder, has MAE's layout.
        return False
    return f"{_TOWER}patch_embed.proj.weight" in state or (
        "patch_embed.proj.weight" in state and ("lm_head.weight" in state or "blocks.0.attn.q_bias" in state)
    )


def describe(state: dict[str, Tensor]) -> str:
    """Which of the releases it is."""
    if f"{_TOWER}patch_embed.proj.weight" in state:
        return "EVA-CLIP"
    if "lm_head.weight" in state:
        return "EVA, masked pre-training"
    if "head.0.running_mean" in state:
        return "EVA, linear probe"
    return "EVA (released or timm's), classifier" if "head.weight" in state else "EVA (released or timm's)"


def native_name(name: str, *, is_clip: bool) -> str:
    """Our name of a tensor of an EVA (`is_clip`: EVA-CLIP) checkpoint."""
    if is_clip:
        if name == f"{_TOWER}head.weight" or name == f"{_TOWER}head.bias":
            return name.replace(f"{_TOWER}head", "projection")
        if name.startswith(_TOWER):
            return BACKBONE + name.removeprefix(_TOWER)
        if name == f"{TEXT}logit_scale":
            return "logit_scale"
        return native_text_name(name.removeprefix(TEXT)) or name
    if name.startswith("lm_head."):
        return name.removeprefix("lm_")
    return BACKBONE + name if is_backbone(name) else name


def native_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Name in the file -> our name."""
    is_clip = f"{_TOWER}patch_embed.proj.weight" in state
    return {name: native_name(name, is_clip=is_clip) for name in state}


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released -> ours. Values are untouched."""
    names = native_names(state)
    return {names[name]: turned(names[name], value) for name, value in state.items()}


def released_names(native: Iterable[str]) -> dict[str, str]:
    """Our name -> the released one: EVA-CLIP's where there is a projection or a text tower, else the bare network's."""
    native = list(native)
    is_clip = any(name.startswith("projection.") or is_text(name) for name in native)
    is_masked = f"{BACKBONE}mask_token" in native
    names = {}
    for name in native:
        if name.startswith(BACKBONE):
            names[name] = (_TOWER if is_clip else "") + name.removeprefix(BACKBONE)
        elif name.startswith("projection."):
            names[name] = f"{_TOWER}head.{name.removeprefix('projection.')}"
        elif name.startswith("head.") and is_masked:
            names[name] = f"lm_{name}"
        else:
            text = released_text_name(name)
            names[name] = f"{TEXT}logit_scale" if name == "logit_scale" else name if text is None else TEXT + text
    return names


def from_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours -> released. Values are untouched."""
    names = released_names(state)
    return {names[name]: turned(name, value) for name, value in state.items()}
