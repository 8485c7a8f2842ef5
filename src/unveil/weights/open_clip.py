"""open_clip's models with a vision tower of timm's (EVA01-g-14 and others): the tower lies under `visual.trunk.`.

open_clip's own vision towers have OpenAI's layout: openai_clip.py.
"""

from collections.abc import Iterable

from torch import Tensor

from unveil.weights import timm_vit
from unveil.weights.names import is_text
from unveil.weights.text_tower import TEXT, native_text_name, released_text_name, turned

_TOWERS = ("visual.trunk.", "trunk.")


def is_open_clip(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has a timm ViT where open_clip keeps it."""
    return _tower(state) is not None


def native_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Name in the file -> our name. The head of the trunk, or open_clip's own after it, is the projection."""
    tower = _tower(state) or ""
    visual = tower.removesuffix("trunk.")
    trunk = timm_vit.native_names({name.removeprefix(tower): state[name] for name in state if name.startswith(tower)})
    names = {}
    for name in state:
        bare = name.removeprefix(tower)
        if name.startswith(f"{visual}head.proj."):
            names[name] = name.replace(f"{visual}head.proj.", "projection.")
        elif not name.startswith(tower):
            names[name] = native_text_name(name.removeprefix(TEXT)) or name
        elif trunk[bare].startswith("head."):
            names[name] = bare.replace("head.", "projection.")
        else:
            names[name] = trunk[bare]
    return names


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's -> ours. Values are untouched."""
    names = native_names(state)
    return {names[name]: turned(names[name], value) for name, value in state.items()}


def released_names(native: Iterable[str]) -> dict[str, str]:
    """Our name -> open_clip's, the projection as the trunk's head (as in EVA01-g-14), the text tower under `text.`."""
    names = {}
    for ours, theirs in timm_vit.released_names(native).items():
        text = released_text_name(ours)
        names[ours] = TEXT + text if text is not None else ours if is_text(ours) else f"{_TOWERS[0]}{theirs}"
    return names


def from_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours -> open_clip's. Values are untouched."""
    names = released_names(state)
    return {names[name]: turned(name, value) for name, value in state.items()}


def _tower(state: dict[str, Tensor]) -> str | None:
    return next((tower for tower in _TOWERS if f"{tower}patch_embed.proj.weight" in state), None)
