"""The released checkpoints of EVA's masked pre-training (eva_psz14.pt), to and from the state of our task."""

from torch import Tensor

_HEAD_THERE, _HEAD_HERE, _BACKBONE = "lm_head.", "head.", "backbone."


def is_eva(state: dict[str, Tensor]) -> bool:
    """Whether a state dict is a masked-modelling network in the released layout, head included."""
    return "lm_head.weight" in state and "patch_embed.proj.weight" in state


def to_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Released -> state dict of `MaskedModelling`: the trunk under `backbone.`, lm_head as `head.`."""
    return {
        _HEAD_HERE + name.removeprefix(_HEAD_THERE) if name.startswith(_HEAD_THERE) else _BACKBONE + name: value
        for name, value in state.items()
    }


def from_native(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `MaskedModelling` -> released."""
    return {
        _HEAD_THERE + name.removeprefix(_HEAD_HERE)
        if name.startswith(_HEAD_HERE)
        else name.removeprefix(_BACKBONE): value
        for name, value in state.items()
    }
