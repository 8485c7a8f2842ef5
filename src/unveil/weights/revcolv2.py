"""Loading RevColV2 (reconstruction) from our own runs: there are no released weights of another layout."""

from pathlib import Path

import torch
from torch import Tensor

from unveil.config import UnveilError
from unveil.models.revcolv2 import RevColV2
from unveil.weights.load import Weights, read_backbone
from unveil.weights.names import BACKBONE, Part
from unveil.weights.report import LoadReport

_MASK_TOKENS = "mask_tokens."


def load_columns(network: RevColV2, path: Path, *, weights: Weights = "ema") -> LoadReport:
    """Fill `network` from a run folder or a file of ours.

    Raises:
        UnveilError: nothing to read, or a network of another kind or shape; `network` is untouched.
    """
    file, state = read_backbone(path, weights=weights)
    return fill_columns(network, state, source=str(file))


def fill_columns(network: RevColV2, state: dict[str, Tensor], *, source: str) -> LoadReport:
    """Fill `network` from a state dict of ours. Its input may have another size: positions are not learned.

    Raises:
        UnveilError: a network of another kind or shape; `network` is untouched.
    """
    theirs = {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}
    if not any(name.startswith("bottom_up.") for name in theirs):
        raise UnveilError(f"{source} holds no RevColV2; give a run that trained one, or the weights' own model")
    own = network.state_dict()
    loaded = [name for name in own if name in theirs]
    lacking = [name for name in own if name not in theirs and not name.startswith(_MASK_TOKENS)]
    spare = [name for name in theirs if name not in own and not name.startswith(_MASK_TOKENS)]
    other = [name for name in loaded if theirs[name].shape != own[name].shape]
    if wrong := lacking + spare + other:
        raise UnveilError(
            f"{source}: the RevColV2 in it has other columns, levels or widths than the model (such as {wrong[0]}); "
            "choose a model of the same sizes"
        )
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(theirs[name])
    tokens = [name for name in theirs if name.startswith(_MASK_TOKENS)]
    left_out = {
        Part.MASK_TOKEN: [f"{BACKBONE}{name}" for name in tokens if name not in own],
        Part.PREDICTOR if tokens else Part.HEAD: [name for name in state if name.startswith("head.")],
        Part.POOLED_NORM: [name for name in state if name.startswith("fc_norm.")],
    }
    known = {f"{BACKBONE}{name}" for name in theirs} | {name for names in left_out.values() for name in names}
    return LoadReport(
        source=source,
        layout="our own run, RevColV2",
        loaded=loaded,
        missing=[name for name in own if name not in theirs],
        left_out={part: names for part, names in left_out.items() if names},
        unexpected=[name for name in state if name not in known],
    )
