"""CLIP's text towers in files: their sizes, how they are loaded on their own, and what a CLIP is checked for."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unveil.config import TextConfig, UnveilError
from unveil.config.override import override
from unveil.models.text import TextTower
from unveil.weights.families import Recognized, recognize
from unveil.weights.infer import clip_config_in
from unveil.weights.load import read_backbone
from unveil.weights.names import BACKBONE, part_of
from unveil.weights.own import clip_names
from unveil.weights.report import LoadReport
from unveil.weights.sizes import USUAL_HEAD_WIDTH
from unveil.weights.text_tower import TEXT

UNTOLD_OF_TEXT = ("model.text.heads", "model.text.activation")
"""What no shape in a file tells."""

_BLOCK = re.compile(r"text\.blocks\.(\d+)\.")


def has_text(found: Recognized) -> bool:
    """Whether there is a text tower of CLIP's design."""
    return {f"{TEXT}token_embedding.weight", f"{TEXT}projection.weight"} <= found.native.keys()


def text_config_of(found: Recognized, *, source: str, heads: int | None = None) -> TextConfig:
    """The sizes of a text tower, from shapes.

    Args:
        source: what errors call the file.
        heads: attention heads where they are known. None = one for each 64 channels, as all published towers have it.

    Raises:
        UnveilError: a tower that is not complete or of another design, or heads that nothing tells.
    """
    native = found.native
    try:
        vocabulary_size, width = native[f"{TEXT}token_embedding.weight"].shape
        context_length = native[f"{TEXT}positional_embedding"].shape[0]
        mlp_width = native[f"{TEXT}blocks.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise UnveilError(
            f"{source}: its text tower lacks {error}: the file is not complete, or the tower not of OpenAI's design; "
            "give open_clip's model name too: MODEL/FILE"
        ) from error
    if heads is None and width % USUAL_HEAD_WIDTH:
        raise UnveilError(
            f"{source}: no shape in it tells the number of attention heads, and no published text tower is {width} "
            "wide; give it with --set model.text.heads=N"
        )
    return TextConfig(
        context_length=context_length,
        vocabulary_size=vocabulary_size,
        width=width,
        heads=heads or width // USUAL_HEAD_WIDTH,
        depth=1 + max(int(block[1]) for name in native if (block := _BLOCK.match(name))),
        mlp_width=mlp_width,
        activation=found.activation,
    )


def text_of(file: Path, state: dict[str, Tensor], *, settings: Sequence[str] = ()) -> TextConfig | None:
    """What a file or a person says of the text tower in it; None where nothing but shapes tells.

    Args:
        settings: NAME=VALUE, of `UNTOLD_OF_TEXT`.

    Raises:
        UnveilError: another setting, or one where there is no text tower; the file is damaged.
    """
    said = clip_config_in(file)
    if not settings:
        return None if said is None else said.text
    for setting in settings:
        if setting.partition("=")[0] not in UNTOLD_OF_TEXT or "=" not in setting:
            raise UnveilError(f"--set {setting}: the file tells its sizes; only {', '.join(UNTOLD_OF_TEXT)} can be set")
    found = recognize(state, source=str(file))
    if not has_text(found):
        raise UnveilError(f"--set {settings[0]}: {file} has no text tower; leave that out")
    text = text_config_of(found, source=str(file), heads=told_heads(settings, "text")) if said is None else said.text
    return override(_Model(_Towers(text)), settings).model.text


def load_text(tower: TextTower, path: Path, *, projection: bool = True) -> LoadReport:
    """Fill a text tower from whatever holds one: a whole CLIP in any known layout.

    Args:
        projection: whether the way into the shared space is taken too, or stays as it is.

    Raises:
        UnveilError: nothing to read, a layout that is not known, no text tower, or one of another shape; `tower` is
            untouched.
    """
    file, state = read_backbone(path)
    found = recognize(state, source=str(file))
    if not has_text(found):
        raise UnveilError(f"{file} is no text tower to start from: {lack(found)}; give a file that has both towers")
    said = clip_config_in(file)
    text = text_config_of(found, source=str(file), heads=tower.config.heads) if said is None else said.text
    if text.heads != tower.config.heads:
        raise UnveilError(
            f"{file} holds a text tower with {text.heads} attention heads and the model has {tower.config.heads}, "
            f"which no shape would tell; give --set model.text.heads={text.heads}"
        )
    kept = () if projection else ("projection.weight",)
    wanted = {name: value for name, value in tower.state_dict().items() if name not in kept}
    theirs = {name.removeprefix(TEXT): value for name, value in found.native.items() if name.startswith(TEXT)}
    spare = [name for name in theirs if name not in wanted and name not in kept]
    require_equal_shapes(wanted, theirs, spare, f"{file}, text tower")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(theirs[name])
    loaded = {TEXT + name for name in wanted}
    left_out, unexpected = leftovers(found, loaded)
    notes = []
    if text.activation != tower.config.activation:
        notes.append(
            f"this text tower was trained with {text.activation} and the model has {tower.config.activation}; --set "
            f"model.text.activation={text.activation} gives its function"
        )
    return LoadReport(
        source=str(file),
        layout=found.layout,
        loaded=[TEXT + name for name in wanted],
        missing=[TEXT + name for name in kept],
        left_out=left_out,
        unexpected=unexpected,
        notes=notes,
    )


def told_heads(settings: Sequence[str], tower: str) -> int | None:
    """What a setting says of the attention heads of the tower "vision" or "text"; None where none does.

    Raises:
        UnveilError: it is no number.
    """
    given = dict(setting.split("=", 1) for setting in settings).get(f"model.{tower}.heads")
    if given is not None and (not given.isdecimal() or int(given) < 1):
        raise UnveilError(f"--set model.{tower}.heads={given}: give a whole number")
    return None if given is None else int(given)


def require_equal_shapes(wanted: dict[str, Tensor], own: dict[str, Tensor], spare: list[str], source: str) -> None:
    """Raises UnveilError unless all that is wanted is there, of its shape, and nothing is left over."""
    for name, value in wanted.items():
        if name not in own:
            raise UnveilError(f"{source} lacks {name}: the file is not complete, or of another design; fetch it again")
        if own[name].shape != value.shape:
            raise UnveilError(
                f"{source}: {name} is {tuple(own[name].shape)} there and {tuple(value.shape)} in the model; choose a "
                "model of the same size"
            )
    if spare:
        raise UnveilError(
            f"{source} has {len(spare)} tensors that the model has no place for ({', '.join(spare[:3])}); choose a "
            "model of the same kind and depth"
        )


def leftovers(found: Recognized, taken: set[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Names in the file whose tensors are not among those `taken` for a `Clip`: by known part, and the others."""
    names = clip_names(found.native)
    left_out: dict[str, list[str]] = {}
    unexpected = []
    for theirs, ours in found.names.items():
        if names[ours] in taken:
            continue
        part = part_of(ours, masked=found.masked)
        if part is not None or ours.startswith(BACKBONE):
            left_out.setdefault(part or "image tower", []).append(theirs)
        else:
            unexpected.append(theirs)
    return left_out, unexpected


def lack(found: Recognized) -> str:
    """What is missing, in words."""
    if has_text(found):
        missing = "logit_scale" if "projection.weight" in found.native else "projection of the images"
        return f"its {missing} is missing"
    if any(name.startswith(TEXT) for name in found.native):
        return f"it holds {found.layout} with a text tower of another design than OpenAI's"
    return f"it holds {found.layout} without a text tower"


@dataclass(frozen=True)
class _Towers:
    text: TextConfig


@dataclass(frozen=True)
class _Model:
    """So that settings are called model.text.heads, as everywhere."""

    model: _Towers
