"""Teachers with random weights in the place of those that would have to be fetched: they cost the same."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unveil.config import ClipTarget, TimmTarget, UnveilError, VectorQuantizedDistillation, ViTConfig
from unveil.config.revcolv2 import require_vit
from unveil.models.vit import ViT
from unveil.planning.teachers import CLIP_TOWERS, Teacher, Tower, tokenizer_recipe
from unveil.pretext.codebook import Codebook
from unveil.pretext.targets.base import SelectiveTarget, Target
from unveil.pretext.targets.build import build_target
from unveil.pretext.targets.clip import ClipTeacher
from unveil.pretext.targets.codes import FrozenTokenizer, load_tokenizer
from unveil.pretext.targets.timm import load_timm
from unveil.pretext.tokenizer import code_head
from unveil.weights.openai_clip import ClipTower


def stand_in_target(target: ClipTarget | TimmTarget, student: ViTConfig) -> Target:
    """A teacher of the same sizes with random weights; one that lies in a file is read.

    Raises:
        UnveilError: a name that is not known, or a teacher that does not fit the student.
    """
    grid = student.grid
    if isinstance(target, TimmTarget):
        return build_target(replace(target, pretrained=False, file=None), grid=grid, patch_size=student.patch_size)
    if Path(target.name).expanduser().exists():
        return build_target(target, grid=grid, patch_size=student.patch_size)
    model, _, pretrained = target.name.partition("/")
    if not pretrained:
        return load_timm(
            model,
            grid=grid,
            projected=target.projected,
            pretrained=False,
            layers=target.layers,
            resize_grid=target.resize_grid,
        )
    tower = CLIP_TOWERS.get(model) or _open_clip_tower(model)
    width = tower.config.width
    return ClipTeacher(
        ClipTower(
            config=tower.config,
            state=ViT(tower.config).state_dict(),
            projection=width**-0.5 * torch.randn(width, tower.embedding_width),
        ),
        name=f"{target.name} with random weights",
        grid=grid,
        projected=target.projected,
        layers=target.layers,
        resize_grid=target.resize_grid,
    )


def _open_clip_tower(model: str) -> Tower:
    from open_clip import get_model_config

    from unveil.config.teacher import require_open_clip_model

    require_open_clip_model(model)
    description = get_model_config(model)
    vision = description["vision_cfg"]
    if "timm_model_name" in vision or not isinstance(vision.get("layers"), int):
        raise UnveilError(
            f"the teacher {model} is not a CLIP ViT of OpenAI's design, and its sizes are not known without its "
            f"weights; give one that is: {', '.join(CLIP_TOWERS)}"
        )
    width = vision["width"]
    config = replace(
        CLIP_TOWERS["ViT-L-14"].config,
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=width,
        depth=vision["layers"],
        heads=width // vision.get("head_width", 64),
        mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
    )
    return Tower(config, description["embed_dim"])


def stand_in_tokenizer(place: str) -> FrozenTokenizer:
    """The tokeniser of a run, or where that is not there yet, one of its recipe's sizes with random weights.

    Raises:
        UnveilError: it can be neither read nor told what it would be.
    """
    if Path(place).expanduser().exists():
        return load_tokenizer(place)
    config = tokenizer_recipe(place)
    objective = config.objective
    assert isinstance(objective, VectorQuantizedDistillation)
    backbone = ViT(require_vit(config.model, "a tokeniser"))
    codebook = Codebook(objective.codes, objective.code_dim, decay=1.0, revive_below=0.0, seed=0, global_batch_size=1)
    parts: dict[str, nn.Module] = {
        "backbone": backbone,
        "code_head": code_head(backbone, objective),
        "codebook": codebook,
    }
    state = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    return FrozenTokenizer(config, state, name=f"{place} with random weights", digest="")


def count_target(target: ClipTarget | TimmTarget, student: ViTConfig, asked: int | None = None) -> Teacher:
    """What a teacher costs that is not known by its sizes: counted while it looks at one image.

    Args:
        asked: patches whose features are asked for; None: all.

    Raises:
        UnveilError: as `stand_in_target`.
    """
    built = stand_in_target(target, student)
    tensors = _tensors(built)
    images = torch.zeros(1, 3, built.image_size, built.image_size, dtype=torch.uint8)
    # The plain kernel: what the fused ones do is not counted on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if asked is not None and isinstance(built, SelectiveTarget):
            built.at(images, torch.arange(asked)[None])
        else:
            built(images)
    return Teacher(
        name=target.name,
        parameters=sum(tensor.numel() for tensor in tensors),
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        flops=counter.get_total_flops(),
        dim=built.dim,
        own_view=0 if built.image_size == student.image_size else built.image_size,
    )


def _tensors(target: Target) -> list[Tensor]:
    """Its weights: a teacher is no module, but holds some."""
    found: list[Tensor] = []
    for part in vars(target).values():
        if isinstance(part, nn.Module):
            found += part.parameters()
        elif isinstance(part, Tensor):
            found.append(part)
    return found
