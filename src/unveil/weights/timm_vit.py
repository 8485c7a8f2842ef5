"""timm's ViT and Eva, the released EVA-CLIP towers and MAE: our names but for layer scale, under various prefixes."""

import re

from torch import Tensor

PREFIXES = ("", "backbone.", "visual.trunk.", "visual.", "trunk.", "encoder.", "module.", "model.")
"""Where larger models keep such a network."""

_LAYER_SCALE = re.compile(r"(blocks\.\d+\.)ls([12])\.gamma")


def is_timm_vit(state: dict[str, Tensor]) -> bool:
    """Whether a state dict holds such a network under one of the known prefixes."""
    return _prefix(state) is not None


def native_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Name in the file -> our name, for everything under the prefix. Values need no change."""
    prefix = _prefix(state) or ""
    return {
        name: _LAYER_SCALE.sub(r"\1gamma_\2", name.removeprefix(prefix)) for name in state if name.startswith(prefix)
    }


def _prefix(state: dict[str, Tensor]) -> str | None:
    return next((prefix for prefix in PREFIXES if f"{prefix}patch_embed.proj.weight" in state), None)
