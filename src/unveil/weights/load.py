"""Loading a ViT from whatever file someone has: our own runs, EVA, timm, EVA-CLIP, MAE, OpenAI's CLIP, open_clip."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from unveil.config import BackboneConfig, UnveilError, ViTConfig
from unveil.config.override import override
from unveil.models.vit import ViT
from unveil.weights.families import Recognized, recognize
from unveil.weights.infer import columns_in, config_in, infer
from unveil.weights.names import BACKBONE, part_of
from unveil.weights.read import read_weights
from unveil.weights.report import LoadReport
from unveil.weights.resize import fit_patches, fit_positions, fit_relative_positions
from unveil.weights.sizes import published_heads

log = logging.getLogger(__name__)

Weights = Literal["ema", "raw"]
"""Which weights of a run: their running average where it keeps one, or those of the last step."""

FILES: dict[Weights, tuple[str, ...]] = {
    "ema": ("model_ema.safetensors", "model.safetensors"),
    "raw": ("model.safetensors",),
}
"""In a checkpoint, the first that is there."""

UNTOLD = ("model.heads", "model.activation", "model.norm_epsilon")
"""What no shape in a file tells."""

_STEP = re.compile(r"step_(\d+)")
_MAY_BE_MISSING = ("mask_token", "norm.weight", "norm.bias")
"""Files of fine-tuned networks have none, and what replaces them is trained again."""


def load_backbone(vit: ViT, path: Path, *, weights: Weights = "ema") -> LoadReport:
    """Fill `vit` from a run folder or a file: `fill_backbone` with what `read_backbone` finds.

    Raises:
        UnveilError: nothing to read, a layout that is not known, or a network of another shape than `vit`.
    """
    file, state = read_backbone(path, weights=weights)
    said = config_in(file)
    if said is not None and said.heads != vit.config.heads:
        raise UnveilError(
            f"{file} holds a network with {said.heads} attention heads and the model has {vit.config.heads}, which no "
            f"shape would tell; give --set model.heads={said.heads}"
        )
    return fill_backbone(vit, state, source=str(file))


def fill_backbone(vit: ViT, state: dict[str, Tensor], *, source: str) -> LoadReport:
    """Fill `vit` from a state dict in any known layout, renaming and resizing what has to be.

    Positions are resized to the model's grid, patch kernels to its patch size, and biases moved between the joint
    (timm, CLIP) and the separate form (EVA), which is exact: a bias on the keys cannot change a softmax. A `vit` on
    the meta device takes the tensors themselves, in the type that they have.

    Raises:
        UnveilError: a layout that is not known, or a network of another shape than `vit`; `vit` is untouched.
    """
    found = recognize(state, source=source)
    expected = vit.state_dict()
    renamed = {
        old: new.removeprefix(BACKBONE)
        for old, new in found.names.items()
        if new.startswith(BACKBONE) and not old.endswith(new.removeprefix(BACKBONE))
    }
    ours = _match_biases(found.backbone, expected, renamed)
    resized = _resize(vit, ours, source)
    loaded = [name for name in expected if name in ours]
    missing = [name for name in expected if name not in ours]
    spare = [name for name in ours if name not in expected]
    _check(vit, ours, loaded, missing, spare, source)
    left_out, unexpected = _leftovers(found, spare)
    _copy(vit, {name: ours[name] for name in loaded})
    return LoadReport(
        source=source,
        layout=found.layout,
        loaded=loaded,
        renamed=renamed,
        resized=resized,
        missing=missing,
        left_out=left_out,
        unexpected=unexpected,
        notes=_notes(vit, found),
    )


def read_backbone(path: Path, *, weights: Weights = "ema") -> tuple[Path, dict[str, Tensor]]:
    """The file that `path` means, and its tensors: the newest readable checkpoint of a run folder, or the file itself.

    Raises:
        UnveilError: no such file, or a folder without a checkpoint that can be read.
    """
    failures = []
    for file in candidates(path, weights):
        try:
            return file, read_weights(file)
        except UnveilError as error:
            if not path.is_dir():
                raise
            log.warning("%s; looking at the checkpoint before it", error)
            failures.append(str(error))
    raise UnveilError(
        failures[0]
        if failures
        else f"{path} holds no checkpoint (checkpoints/step_*/model.safetensors); is it a run folder?"
    )


def candidates(path: Path, weights: Weights) -> list[Path]:
    """The files that `path` may mean: itself, or those of a run folder's checkpoints, newest first."""
    if not path.is_dir():
        return [path]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = {int(found[1]): step for step in folder.iterdir() if (found := _STEP.fullmatch(step.name))}
    places = [*(steps[step] for step in sorted(steps, reverse=True)), path]
    files = (next((place / name for name in FILES[weights] if (place / name).is_file()), None) for place in places)
    return [file for file in files if file is not None]


@dataclass(frozen=True)
class Network:
    """Weights with what is needed to build the network that they belong to."""

    file: Path
    state: dict[str, Tensor]
    """As in the file: see `recognize`, `head_of`, `pooling_of`, `fill_backbone`."""
    config: BackboneConfig


def read_network(path: Path, *, weights: Weights = "ema", settings: Sequence[str] = ()) -> Network:
    """A run folder or a file of any known layout, and the sizes of its ViT or RevColV2.

    Args:
        settings: NAME=VALUE for what no shape tells: model.heads, model.activation, model.norm_epsilon.

    Raises:
        UnveilError: nothing to read, a layout that is not known, heads that nothing tells, another setting.
    """
    given = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    for setting in settings:
        if setting.partition("=")[0] not in UNTOLD or "=" not in setting:
            raise UnveilError(f"--set {setting}: the file tells its sizes; only {', '.join(UNTOLD)} can be set")
    file, state = read_backbone(path, weights=weights)
    if (columns := columns_in(file)) is not None:
        if settings:
            raise UnveilError(f"--set {settings[0]}: {file} says all sizes of its RevColV2; leave it out")
        return Network(file, state, columns)
    config = config_in(file)
    if config is None:
        heads = given.get("model.heads")
        if heads is not None and not heads.isdecimal():
            raise UnveilError(f"--set model.heads={heads}: give a whole number")
        config = infer(state, source=str(file), heads=None if heads is None else int(heads))
    return Network(file, state, override(_Model(config), settings).model)


@dataclass(frozen=True)
class _Model:
    """So that settings are called model.heads, as everywhere."""

    model: ViTConfig


def _match_biases(ours: dict[str, Tensor], expected: dict[str, Tensor], renamed: dict[str, str]) -> dict[str, Tensor]:
    """Biases of the attention in the form that the model has; what changed is added to `renamed`."""
    matched = dict(ours)
    for name in ours:
        stem = name.removesuffix("qkv.bias")
        if stem != name and f"{stem}q_bias" in expected:
            matched[f"{stem}q_bias"], _, matched[f"{stem}v_bias"] = matched.pop(name).chunk(3)
            renamed[name] = f"{stem}q_bias and v_bias"
        stem = name.removesuffix("q_bias")
        if stem != name and f"{stem}qkv.bias" in expected and f"{stem}v_bias" in ours:
            query, value = matched.pop(name), matched.pop(f"{stem}v_bias")
            matched[f"{stem}qkv.bias"] = torch.cat((query, torch.zeros_like(query), value))
            renamed[f"{name} and v_bias"] = f"{stem}qkv.bias"
    return matched


def _resize(vit: ViT, ours: dict[str, Tensor], source: str) -> dict[str, str]:
    """Fit positions and patches in place; returns what changed."""
    resized = {}
    for name, fit in (
        ("pos_embed", lambda value: fit_positions(value, vit.config.grid, source)),
        ("patch_embed.proj.weight", lambda value: fit_patches(value, vit.config.patch_size)),
        (
            "rel_pos_bias.relative_position_bias_table",
            lambda value: fit_relative_positions(value, vit.config.grid, source),
        ),
    ):
        if name in ours:
            old = ours[name]
            ours[name] = fit(old)
            if ours[name].shape != old.shape:
                resized[name] = f"{tuple(old.shape)} -> {tuple(ours[name].shape)}"
    return resized


def _check(
    vit: ViT, ours: dict[str, Tensor], loaded: list[str], missing: list[str], spare: list[str], source: str
) -> None:
    """Raises UnveilError unless the network in the file is the model's, embeddings and every block included."""
    expected = vit.state_dict()
    for name in loaded:
        if ours[name].shape != expected[name].shape:
            raise UnveilError(
                f"{source}: {name} is {tuple(ours[name].shape)} there and {tuple(expected[name].shape)} in the model; "
                f"choose a model of the same size (model.width {vit.config.width}, model.depth {vit.config.depth}, "
                f"model.mlp_width {vit.config.mlp_width} now)"
            )
    lacking = [name for name in missing if name not in _MAY_BE_MISSING]
    spare = [name for name in spare if name not in _MAY_BE_MISSING]
    if lacking or spare:
        parts = [f"lacks {len(lacking)} tensors of the model ({_some(lacking)})"] if lacking else []
        parts += [f"has {len(spare)} that the model has no place for ({_some(spare)})"] if spare else []
        raise UnveilError(
            f"{source}: the network in it {' and '.join(parts)}; choose a model of the same kind and depth"
        )


def _leftovers(found: Recognized, spare: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Names in the file that have no place in the model: by known part, and the others."""
    left_out: dict[str, list[str]] = {}
    unexpected = []
    for theirs, ours in found.names.items():
        if ours.startswith(BACKBONE) and ours.removeprefix(BACKBONE) not in spare:
            continue
        part = part_of(ours, masked=found.masked)
        if part is None:
            unexpected.append(theirs)
        else:
            left_out.setdefault(part, []).append(theirs)
    return left_out, unexpected


def _copy(vit: ViT, ours: dict[str, Tensor]) -> None:
    expected = vit.state_dict()
    if any(value.is_meta for value in expected.values()):
        vit.load_state_dict(ours, strict=False, assign=True)
        return
    with torch.no_grad():
        for name, value in ours.items():
            expected[name].copy_(value)


def _notes(vit: ViT, found: Recognized) -> list[str]:
    """What fits by its shapes and may still be another network."""
    notes = []
    heads = published_heads(vit.config.width)
    if found.family != "native" and heads is not None and heads != vit.config.heads:
        notes.append(
            f"published networks of width {vit.config.width} have {heads} attention heads, the model has "
            f"{vit.config.heads}; no shape in the file tells"
        )
    if found.activation == "quick_gelu" and vit.config.activation == "gelu":
        notes.append(
            "OpenAI trained this network with quick GELU; --set model.activation=quick_gelu gives its function"
        )
    return notes


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
