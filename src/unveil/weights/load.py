"""Loading a ViT from whatever file someone has: our own runs, EVA, timm, EVA-CLIP, MAE, OpenAI's CLIP, open_clip."""

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from unveil.config import UnveilError
from unveil.models.vit import ViT
from unveil.weights import eva, timm_vit
from unveil.weights.openai_clip import is_openai_clip, native_name, tower_from_openai
from unveil.weights.read import read_weights
from unveil.weights.report import LoadReport
from unveil.weights.resize import fit_patches, fit_positions

log = logging.getLogger(__name__)

_STEP = re.compile(r"step_(\d+)")
_MAY_BE_MISSING = ("mask_token", "norm.weight", "norm.bias")
"""Files of fine-tuned networks have none, and what replaces them is trained again."""
_TRUNK = re.compile(r"(blocks|norm_pre|patch_embed)\.|(cls_token|pos_embed|reg_token)$")


def load_backbone(vit: ViT, path: Path) -> LoadReport:
    """Fill `vit` from a run folder or a file, renaming and resizing what has to be.

    Positions are resized to the model's grid, patch kernels to its patch size, and biases moved between the joint
    (timm, CLIP) and the separate form (EVA), which is exact: a bias on the keys cannot change a softmax.

    Raises:
        UnveilError: nothing to read, a layout that is not known, or a network of another shape than `vit`.
    """
    file, state = read_backbone(path)
    layout, names, ours = _native_names(vit, state, str(file))
    expected = vit.state_dict()
    renamed = {old: new for old, new in names.items() if not old.endswith(new)}
    ours = _match_biases(ours, expected, renamed)
    resized = _resize(vit, ours, str(file))
    loaded = [name for name in expected if name in ours]
    missing = [name for name in expected if name not in ours]
    unexpected = sorted((ours.keys() - expected.keys()) | (state.keys() - names.keys()))
    _check(vit, ours, loaded, missing, unexpected, str(file))
    with torch.no_grad():
        for name in loaded:
            expected[name].copy_(ours[name])
    return LoadReport(
        source=str(file),
        layout=layout,
        loaded=loaded,
        renamed=renamed,
        resized=resized,
        missing=missing,
        unexpected=unexpected,
    )


def read_backbone(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that `path` means, and its tensors: the newest readable checkpoint of a run folder, or the file itself.

    Raises:
        UnveilError: no such file, or a folder without a checkpoint that can be read.
    """
    if not path.is_dir():
        return path, read_weights(path)
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    steps = {int(found[1]): step for step in folder.iterdir() if (found := _STEP.fullmatch(step.name))}
    files = [steps[step] / "model.safetensors" for step in sorted(steps, reverse=True)]
    if (path / "model.safetensors").is_file():
        files.append(path / "model.safetensors")
    failures = []
    for file in files:
        try:
            return file, read_weights(file)
        except UnveilError as error:
            log.warning("%s; looking at the checkpoint before it", error)
            failures.append(str(error))
    raise UnveilError(
        failures[0]
        if failures
        else f"{path} holds no checkpoint (checkpoints/step_*/model.safetensors); is it a run folder?"
    )


def _native_names(vit: ViT, state: dict[str, Tensor], source: str) -> tuple[str, dict[str, str], dict[str, Tensor]]:
    """What the file is, our names for those of its tensors that belong to a ViT, and their values."""
    if is_openai_clip(state):
        tower = tower_from_openai(state, activation=vit.config.activation, source=source)
        names = {old: new for old in state if (new := native_name(old)) in tower.state}
        return "CLIP in OpenAI's layout", names, tower.state
    if not timm_vit.is_timm_vit(state):
        examples = ", ".join(list(state)[:5])
        raise UnveilError(
            f"{source} is no vision transformer that can be loaded here: it holds {len(state)} tensors such as "
            f"{examples}; known are our own runs, EVA, timm's vit_* and eva_*, EVA-CLIP, MAE, and CLIP by OpenAI "
            "or open_clip"
        )
    names = timm_vit.native_names(state)
    if "decoder_embed.weight" in names and "mask_token" in names:
        # The mask token of MAE and its kin is one of the decoder's.
        del names["mask_token"]
    layout = "released EVA" if eva.is_eva(state) else "our own run" if "backbone.cls_token" in names else "timm"
    return layout, names, {new: state[old] for old, new in names.items()}


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
    ):
        if name in ours:
            old = ours[name]
            ours[name] = fit(old)
            if ours[name].shape != old.shape:
                resized[name] = f"{tuple(old.shape)} -> {tuple(ours[name].shape)}"
    return resized


def _check(
    vit: ViT, ours: dict[str, Tensor], loaded: list[str], missing: list[str], unexpected: list[str], source: str
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
    spare = [name for name in unexpected if _TRUNK.match(name)]
    if lacking or spare:
        parts = [f"lacks {len(lacking)} tensors of the model ({_some(lacking)})"] if lacking else []
        parts += [f"has {len(spare)} that the model has no place for ({_some(spare)})"] if spare else []
        raise UnveilError(
            f"{source}: the network in it {' and '.join(parts)}; choose a model of the same kind and depth"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
