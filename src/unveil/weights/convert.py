"""From any family's layout to any other's."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unveil.config import BackboneConfig, ClipModelConfig, RevColV2Config, TextConfig, UnveilError, ViTConfig
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.weights import eva, open_clip, openai_clip, timm_vit
from unveil.weights.clip import is_whole
from unveil.weights.clip_text import text_config_of
from unveil.weights.families import Family, Recognized, recognize
from unveil.weights.infer import head_of
from unveil.weights.load import fill_backbone
from unveil.weights.names import BACKBONE, Part, part_of
from unveil.weights.report import LoadReport
from unveil.weights.revcolv2 import fill_columns

KEPT: dict[Family, frozenset[Part]] = {
    "native": frozenset(Part) - {Part.DECODER, Part.TOKENIZER},
    "eva": frozenset(Part) - {Part.DECODER, Part.TOKENIZER},
    "timm": frozenset({Part.FINAL_NORM, Part.HEAD, Part.POOLED_NORM, Part.PROJECTION}),
    "openai": frozenset({Part.FINAL_NORM, Part.PROJECTION, Part.TEXT}),
    "open_clip": frozenset({Part.FINAL_NORM, Part.PROJECTION, Part.TEXT}),
}
"""What each layout has a place for beside the trunk. A decoder is of use to nobody but its own training program."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Weights in another layout."""

    state: dict[str, Tensor]
    config: BackboneConfig
    """Of the network as it was written: with its new image and patch size."""
    model: BackboneConfig | ClipModelConfig
    """The same, and of a whole CLIP all of it."""
    report: LoadReport


def convert(
    state: dict[str, Tensor],
    config: ViTConfig,
    *,
    source: str,
    to: Family,
    image_size: int | None = None,
    patch_size: int | None = None,
    half: bool = False,
    joint_biases: bool = False,
    text: TextConfig | None = None,
) -> Converted:
    """Rename, and resize where another image or patch size is asked for; values are otherwise untouched.

    Args:
        state: as `read_weights` gives it.
        config: what it is (`infer`).
        image_size: side in pixels that the positions are resized for; None = the present one.
        patch_size: side in pixels; None = the present one.
        half: write floating-point numbers as float16.
        text: of a whole CLIP's text tower, where it is known better than by its shapes.
        joint_biases: one bias for queries, keys (zero) and values, as CLIP's layout has it, in the others too.

    Raises:
        UnveilError: the network has no place in the layout asked for, or sizes that do not divide.
    """
    found = recognize(state, source=source)
    config = replace(config, image_size=image_size or config.image_size, patch_size=patch_size or config.patch_size)
    if (to == "openai" or joint_biases) and config.qkv_bias == "query_and_value":
        config = replace(config, qkv_bias="all")
    backbone = found.backbone
    with torch.device("meta"):
        vit = ViT(config, mask_token="mask_token" in backbone, final_norm="norm.weight" in backbone)
    report = fill_backbone(vit, state, source=source)
    native = {BACKBONE + name: value for name, value in vit.state_dict().items()}
    left_out: dict[str, list[str]] = {}
    for theirs, ours in found.names.items():
        part = part_of(ours, masked=found.masked)
        if part is not None and part not in KEPT[to]:
            native.pop(ours, None)
            left_out.setdefault(part, []).append(theirs)
        elif part is not None and not ours.startswith(BACKBONE):
            native[ours] = found.native[ours]
    if to == "timm":
        _one_head(native, state, left_out)
    if half:
        native = {name: value.half() if value.is_floating_point() else value for name, value in native.items()}
    names, written = _released(native, to)
    renamed = {
        theirs: names[ours]
        for theirs, ours in found.names.items()
        if ours in names and not (theirs.endswith(names[ours]) or names[ours].endswith(theirs))
    }
    model, untold = _model(found, config, text, source=source, to=to)
    report = replace(
        report,
        loaded=list(written),
        renamed=renamed,
        left_out=left_out,
        notes=[*_notes(config, native, left_out, to), *untold],
    )
    return Converted(state=written, config=config, model=model, report=report)


def convert_columns(
    state: dict[str, Tensor],
    config: RevColV2Config,
    *,
    source: str,
    to: Family,
    image_size: int | None = None,
    patch_size: int | None = None,
    half: bool = False,
) -> Converted:
    """A RevColV2 for images of another size, or in float16: it has no other layout than ours.

    Positions are not learned, so that another image size changes no value.

    Raises:
        UnveilError: another layout or patch size, or a size that does not divide into mask units.
    """
    if to != "native":
        raise UnveilError(f"the layout {to} has no place for a RevColV2; leave --format out")
    if patch_size not in (None, config.patch_size):
        raise UnveilError("a RevColV2's patches have one size, and so have all its levels; leave --patch-size out")
    config = replace(config, image_size=image_size or config.image_size)
    network = RevColV2(config, mask_token=recognize(state, source=source).masked)
    report = fill_columns(network, state, source=source)
    native = {BACKBONE + name: value for name, value in network.state_dict().items()}
    # Their heads have the same names everywhere.
    native |= {name: value for name, value in state.items() if name.startswith(("head.", "fc_norm."))}
    if half:
        native = {name: value.half() if value.is_floating_point() else value for name, value in native.items()}
    return Converted(
        state=native, config=config, model=config, report=replace(report, loaded=list(native), left_out={})
    )


def _model(
    found: Recognized, config: ViTConfig, text: TextConfig | None, *, source: str, to: Family
) -> tuple[ViTConfig | ClipModelConfig, list[str]]:
    """What the written file is, and what a person should know where that is not known."""
    if not is_whole(found) or Part.TEXT not in KEPT[to]:
        return config, []
    try:
        text = text or text_config_of(found, source=source)
    except UnveilError as error:
        return config, [f"the new file says its image tower's sizes only: {error}"]
    width, has_bias = found.native["projection.weight"].shape[0], "projection.bias" in found.native
    return ClipModelConfig(vision=config, text=text, embedding_width=width, projection_bias=has_bias), []


def _one_head(native: dict[str, Tensor], state: dict[str, Tensor], left_out: dict[str, list[str]]) -> None:
    """timm's networks end in one linear layer: a probe's norm goes into it, and a classifier before a projection."""
    if "head.1.weight" in native:
        head = head_of(state)
        assert head is not None
        for name in [name for name in native if name.startswith("head.")]:
            del native[name]
        native["head.weight"], native["head.bias"] = head
    if "head.weight" in native:
        for name in [name for name in native if name.startswith("projection.")]:
            left_out.setdefault(Part.PROJECTION, []).append(name)
            del native[name]


def _released(native: dict[str, Tensor], to: Family) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Our name -> the layout's name, and the tensors under those."""
    match to:
        case "native":
            return {name: name for name in native}, native
        case "eva":
            return eva.released_names(native), eva.from_native(native)
        case "timm":
            return timm_vit.released_names(native), timm_vit.from_native(native)
        case "open_clip":
            return open_clip.released_names(native), open_clip.from_native(native)
        case "openai":
            return openai_clip.released_names(native), openai_clip.from_native(native)


def _notes(config: ViTConfig, native: dict[str, Tensor], left_out: dict[str, list[str]], to: Family) -> list[str]:
    notes = []
    if config.activation == "quick_gelu" and to in ("timm", "openai", "open_clip"):
        notes.append(
            "the network has quick GELU, which no name in the file says: open it in timm as a network with quickgelu "
            "in its name, in open_clip as one with -quickgelu"
        )
    if Part.POOLED_NORM in left_out and f"{BACKBONE}norm.weight" not in native:
        notes.append("the only norm after the last block belonged to the classifier and was left out with it")
    return notes
