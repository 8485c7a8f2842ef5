"""Whole CLIPs, two towers and all, from any of the known layouts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unveil.config import ClipModelConfig, UnveilError
from unveil.config.override import override
from unveil.models.clip import Clip
from unveil.weights.clip_text import (
    UNTOLD_OF_TEXT,
    has_text,
    lack,
    leftovers,
    require_equal_shapes,
    text_config_of,
    told_heads,
)
from unveil.weights.families import Recognized, recognize
from unveil.weights.infer import clip_config_in, config_in
from unveil.weights.load import Weights, read_backbone
from unveil.weights.openai_clip import MARKS, is_openais_own
from unveil.weights.own import clip_names
from unveil.weights.report import LoadReport
from unveil.weights.sizes import sizes_of
from unveil.weights.text_tower import TEXT

UNTOLD = (
    "model.vision.heads",
    "model.vision.activation",
    "model.vision.norm_epsilon",
    *UNTOLD_OF_TEXT,
)
"""What no shape in a file tells."""

HARMLESS = {*MARKS, "attn_mask", f"{TEXT}attn_mask"}
"""Beside the weights, and following from their shapes."""


@dataclass(frozen=True, kw_only=True)
class ClipWeights:
    """A CLIP's weights, and the network that they belong to."""

    file: Path
    state: dict[str, Tensor]
    """For `Clip(config)`."""
    config: ClipModelConfig
    report: LoadReport


def read_clip(path: Path, *, weights: Weights = "ema", settings: Sequence[str] = ()) -> ClipWeights:
    """A whole CLIP from a run folder or a file: OpenAI's archives and state dicts, open_clip, EVA-CLIP, our own.

    Args:
        settings: NAME=VALUE for what no shape tells, of `UNTOLD`.

    Raises:
        UnveilError: nothing to read, a layout that is not known, a tower that is missing or of another design, or
            another setting.
    """
    for setting in settings:
        if setting.partition("=")[0] not in UNTOLD or "=" not in setting:
            raise UnveilError(f"--set {setting}: the file tells its sizes; only {', '.join(UNTOLD)} can be set")
    file, state = read_backbone(path, weights=weights)
    source = str(file)
    found = recognize(state, source=source)
    config = clip_config_in(file)
    if untold := config is None:
        vision = config_in(file)
        config = clip_config_of(
            found,
            source=source,
            vision_heads=told_heads(settings, "vision") if vision is None else vision.heads,
            text_heads=told_heads(settings, "text"),
        )
        config = config if vision is None else replace(config, vision=vision)
    config = override(_Model(config), settings).model
    own = _for_clip(found, config, source)
    left_out, unexpected = leftovers(found, set(own))
    notes = []
    if untold and found.family == "openai" and not is_openais_own(state) and not settings:
        notes.append(
            "nothing in the file tells its activation, GELU is taken; where it is quick GELU (what OpenAI trained and "
            "others saved again), --set model.vision.activation=quick_gelu and model.text.activation=quick_gelu"
        )
    report = LoadReport(
        source=source, layout=found.layout, loaded=list(own), left_out=left_out, unexpected=unexpected, notes=notes
    )
    return ClipWeights(file=file, state=own, config=config, report=report)


def clip_config_of(
    found: Recognized, *, source: str, vision_heads: int | None = None, text_heads: int | None = None
) -> ClipModelConfig:
    """The sizes of a whole CLIP, from shapes.

    Args:
        source: what errors call the file.
        vision_heads, text_heads: attention heads where they are known. None = those of published towers as wide.

    Raises:
        UnveilError: a tower or the projection is missing or of another design, or heads that nothing tells.
    """
    native = found.native
    if not is_whole(found):
        raise UnveilError(f"{source} is no whole CLIP: {lack(found)}; give a file that has both towers")
    if "logit_bias" in native:
        raise UnveilError(
            f"{source} was trained with SigLIP's loss, whose bias on the logits has no place in our CLIP; give "
            "open_clip's model name too: MODEL/FILE"
        )
    vision = sizes_of(
        found.backbone,
        heads=vision_heads,
        source=source,
        activation=found.activation,
        norm_epsilon=1e-5 if found.family == "openai" else None,
        setting="model.vision.heads",
    )
    return ClipModelConfig(
        vision=vision,
        text=text_config_of(found, source=source, heads=text_heads),
        embedding_width=native["projection.weight"].shape[0],
        projection_bias="projection.bias" in native,
    )


def is_whole(found: Recognized) -> bool:
    """Whether both towers are there, with what joins them."""
    return has_text(found) and {"projection.weight", "logit_scale"} <= found.native.keys()


def holds_clip(path: Path, *, weights: Weights = "ema") -> bool:
    """Whether a run folder or a file holds a whole CLIP; False for names, which are no paths.

    Raises:
        UnveilError: it cannot be read.
    """
    if not path.exists():
        return False
    file, state = read_backbone(path, weights=weights)
    return is_whole(recognize(state, source=str(file)))


@dataclass(frozen=True)
class _Model:
    """So that settings are called model.vision.heads, as everywhere."""

    model: ClipModelConfig


def _for_clip(found: Recognized, config: ClipModelConfig, source: str) -> dict[str, Tensor]:
    """The tensors that `Clip(config)` has, under its names.

    Raises:
        UnveilError: some are missing, of another shape, or belong to a tower of another design.
    """
    with torch.device("meta"):
        wanted = Clip(config).state_dict()
    names = clip_names(found.native)
    own = {names[name]: value for name, value in found.native.items() if names[name] in wanted}
    if "logit_scale" in own:
        # open_clip can keep it as a list of one.
        own["logit_scale"] = own["logit_scale"].reshape(())
    spare = [theirs for theirs, name in found.names.items() if names[name] not in wanted and name not in HARMLESS]
    # What else a task of ours keeps beside its CLIP is no part of it.
    require_equal_shapes(wanted, own, [] if found.family == "native" else spare, source)
    return own
