"""Which family a file of weights belongs to, and its tensors under our own names."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from unveil.config import UnveilError
from unveil.weights import eva, open_clip, openai_clip, own, timm_vit
from unveil.weights.looks_like import looks_like
from unveil.weights.names import BACKBONE

Family = Literal["native", "eva", "timm", "openai", "open_clip"]


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """A state dict in our terms."""

    family: Family
    layout: str
    """The family in words."""
    names: dict[str, str]
    """Name in the file -> our name (see `unveil.weights.names`), for every tensor."""
    native: dict[str, Tensor]
    """Under our names. Values are the file's; CLIP's tokens in our shapes."""
    activation: Literal["gelu", "quick_gelu"]
    """Quick GELU where the file is OpenAI's own; no other file tells."""

    @property
    def backbone(self) -> dict[str, Tensor]:
        """For `ViT.load_state_dict`."""
        start = len(BACKBONE)
        return {name[start:]: value for name, value in self.native.items() if name.startswith(BACKBONE)}

    @property
    def masked(self) -> bool:
        """Whether it comes from masked pre-training with mask tokens, so that its `head` is a predictor."""
        return any(name.startswith(f"{BACKBONE}mask_token") for name in self.native)


def recognize(state: dict[str, Tensor], *, source: str) -> Recognized:
    """Find out which of the known layouts `state`, as `read_weights` gives it, has.

    Raises:
        UnveilError: none of them; says what it looks like instead.
    """
    family: Family
    names: dict[str, str]
    if own.is_own(state):
        family, layout, names = "native", "our own run", own.native_names(state)
        native = {names[name]: value for name, value in state.items()}
    elif openai_clip.is_openai_clip(state):
        family, layout = "openai", "CLIP in OpenAI's layout"
        names, native = openai_clip.native_names(state), openai_clip.to_native(state)
    elif open_clip.is_open_clip(state):
        family, layout = "open_clip", "open_clip with one of timm's networks"
        names, native = open_clip.native_names(state), open_clip.to_native(state)
    elif eva.is_eva(state):
        family, layout, names, native = "eva", eva.describe(state), eva.native_names(state), eva.to_native(state)
    elif timm_vit.is_timm_vit(state):
        family, layout = "timm", timm_vit.describe(state)
        names, native = timm_vit.native_names(state), timm_vit.to_native(state)
    else:
        raise UnveilError(
            f"{source} is no vision transformer that can be loaded here: {looks_like(state)}; known are our own runs, "
            "EVA, EVA-CLIP, timm's vit_* and eva_*, MAE, and CLIP by OpenAI or open_clip"
        )
    return Recognized(
        family=family,
        layout=layout,
        names=names,
        native=native,
        activation="quick_gelu" if openai_clip.is_openais_own(state) else "gelu",
    )
