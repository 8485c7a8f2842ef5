"""What a recipe's teacher costs: a frozen network, forward only.

The usual ones are known by their sizes; to count any other, torch and the library that knows it are asked.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from unveil.config import (
    BlockMasking,
    ClipTarget,
    EmaTarget,
    EmbeddedTarget,
    HogTarget,
    MaskedObjective,
    MaskedTokenPrediction,
    PixelTarget,
    PretrainConfig,
    RandomMasking,
    RevColV2Config,
    TimmTarget,
    UnveilError,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.override import recipe_named
from unveil.config.revcolv2 import require_vit
from unveil.config.serialize import from_json
from unveil.planning.cost import FULL, linear, vit
from unveil.recipes import PRETRAINING


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Per image where it is not per network."""

    name: str
    parameters: int
    weight_bytes: int
    """On the device."""
    flops: int
    """Where patches are hidden, and the teacher can tell them apart, its last block works for those alone."""
    dim: int
    """Length of a patch's feature; of a tokeniser: its codes."""
    own_view: int = 0
    """Side of a view of its own, pixels; 0 where it gets the student's."""


@dataclass(frozen=True)
class Tower:
    """A CLIP vision tower of OpenAI's design, and the width of the space that it shares with text."""

    config: ViTConfig
    embedding_width: int


def _tower(patch_size: int, width: int, depth: int, heads: int, embedding_width: int, image_size: int = 224) -> Tower:
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=heads,
        mlp_width=4 * width,
        qkv_bias="all",
        activation="quick_gelu",
        norm_epsilon=1e-5,
        patch_bias=False,
        norm_before_blocks=True,
    )
    return Tower(config, embedding_width)


CLIP_TOWERS = {
    "ViT-B-32": _tower(32, 768, 12, 12, 512),
    "ViT-B-16": _tower(16, 768, 12, 12, 512),
    "ViT-L-14": _tower(14, 1024, 24, 16, 768),
    "ViT-L-14-336": _tower(14, 1024, 24, 16, 768, 336),
    "ViT-H-14": _tower(14, 1280, 32, 16, 1024),
}
"""By open_clip's names (Radford et al. 2021, Table 20; open_clip's model configurations)."""

LITE0_PARAMETERS = 3_350_000
"""EfficientNet-Lite0 up to its last map, every BatchNorm folded into its convolution."""
LITE0_FLOPS_PER_CELL = 15_669_696
"""Of one cell of that map: 32 x 32 pixels."""
LITE0_STRIDE, LITE0_DIM = 32, 1280


def hidden_patches(config: PretrainConfig) -> int:
    """Most patches that the masking hides: the length of the padded list, at which the head and the loss work.

    The sum of `unveil.pretext.masking`, which needs torch.
    """
    patches = config.model.grid[0] * config.model.grid[1]
    match config.masking:
        case BlockMasking(count=int() as count):
            return count
        case BlockMasking(ratio=ratio) | RandomMasking(ratio=ratio):
            return max(round(ratio * patches), 1)


def teacher_of(config: PretrainConfig, *, for_all: bool = False) -> Teacher:
    """The teacher of a pre-training, or the tokeniser that stands in its place.

    Args:
        for_all: count what features of all patches take, also where fewer are asked for (released code).

    Raises:
        UnveilError: one that is not known, or whose file is not there.
    """
    if isinstance(config.model, RevColV2Config):
        dim = 3 * config.model.mask_unit**2
        return Teacher(name="the hidden units' own pixels", parameters=0, weight_bytes=0, flops=0, dim=dim)
    model, target = config.model, config.target
    cells = model.grid[0] * model.grid[1]
    hides = isinstance(config.objective, MaskedObjective)
    asked = hidden_patches(config) if hides and not for_all and not config.cache_targets else None
    if isinstance(config.objective, MaskedTokenPrediction):
        return _tokenizer(config.objective.tokenizer, model, asked)
    match target:
        case PixelTarget():
            dim = 3 * model.patch_size**2
            return Teacher(name="the patches' own pixels", parameters=0, weight_bytes=0, flops=0, dim=dim)
        case HogTarget(orientations=orientations, cells=along):
            dim = 3 * orientations * along**2
            return Teacher(name="gradients' histograms", parameters=0, weight_bytes=0, flops=0, dim=dim)
        case EmaTarget():
            network = vit(model, FULL, mask_token=True, only=asked)
            return Teacher(
                name="the student's own average",
                parameters=network.parameters,
                weight_bytes=4 * network.parameters,
                flops=network.forward,
                dim=model.width,
            )
        case EmbeddedTarget():
            view = LITE0_STRIDE * model.grid[0]
            return Teacher(
                name="EfficientNet-Lite0",
                parameters=LITE0_PARAMETERS,
                weight_bytes=2 * LITE0_PARAMETERS,
                flops=cells * LITE0_FLOPS_PER_CELL,
                dim=LITE0_DIM,
                own_view=_other(view, model),
            )
        case ClipTarget(name=name) if name.partition("/")[0] in CLIP_TOWERS:
            tower = CLIP_TOWERS[name.partition("/")[0]]
            return clip_teacher(f"CLIP {name}", tower, target, model, asked)
        case ClipTarget() | TimmTarget():
            return _counted(target, model, asked)


def clip_teacher(name: str, tower: Tower, target: ClipTarget, student: ViTConfig, asked: int | None = None) -> Teacher:
    """It runs at the size where its patches fall on the student's, or with `resize_grid` at its own. Positions are kept
    as they were released, and resized in every call; matrices are kept in 16 bits.

    Args:
        asked: patches whose features are asked for; None: all.
    """
    own = tower.config if target.resize_grid else fitted(tower.config, student)
    if own.grid != student.grid:
        # Resizing its features needs all of them.
        asked = None
    network = vit(own, FULL, only=asked)
    parameters, flops, dim = vit(tower.config, FULL).parameters, network.forward, own.width
    matrices = network.matrices
    if target.projected:
        patches = own.grid[0] * own.grid[1] if asked is None else asked
        projection = linear(patches, own.width, tower.embedding_width, bias=False)
        parameters, flops = parameters + projection.parameters, flops + projection.forward
        matrices += projection.matrices
        dim = tower.embedding_width
    return Teacher(
        name=name,
        parameters=parameters,
        weight_bytes=4 * parameters - 2 * matrices,
        flops=flops,
        dim=dim,
        own_view=_other(own.image_size, student),
    )


def fitted(tower: ViTConfig, student: ViTConfig) -> ViTConfig:
    """The tower at the size where its patches fall on the student's."""
    return replace(tower, image_size=tower.patch_size * student.grid[0])


def _tokenizer(place: str, model: ViTConfig, asked: int | None) -> Teacher:
    tokenizer = tokenizer_recipe(place)
    objective = tokenizer.objective
    assert isinstance(objective, VectorQuantizedDistillation)
    encoding = require_vit(tokenizer.model, "a tokeniser")
    width = encoding.width
    told = tokenizer.model.grid[0] * tokenizer.model.grid[1] if asked is None else asked
    encoder = vit(encoding, FULL, only=asked)
    network = encoder + linear(told, width, width) + linear(told, width, objective.code_dim)
    codes = objective.codes * objective.code_dim
    parameters = network.parameters + codes
    return Teacher(
        name=f"tokeniser {place}",
        parameters=parameters,
        weight_bytes=4 * parameters - 2 * encoder.matrices,
        flops=network.forward + 2 * told * codes,
        dim=objective.codes,
        own_view=_other(tokenizer.model.image_size, model),
    )


def tokenizer_recipe(place: str) -> PretrainConfig:
    """What trained the tokeniser in a run's folder: by the folder, or where it is not there yet, by its name.

    Raises:
        UnveilError: there is no such run, and no recipe of its name that trains one.
    """
    path = Path(place).expanduser()
    written = [folder / "config.json" for folder in (path, *path.parents) if (folder / "config.json").is_file()]
    config = None
    if written:
        config = from_json(PretrainConfig, json.loads(written[0].read_text(encoding="utf-8")))
    elif path.name in (recipe.__name__ for recipe in PRETRAINING):
        config = recipe_named(path.name, PRETRAINING)()
    if config is None or not isinstance(config.objective, VectorQuantizedDistillation):
        raise UnveilError(
            f"what the tokeniser {place} is cannot be told: there is no such run, and no recipe of that name; give "
            "--set objective.tokenizer=vqkd_base, or the folder of a run"
        )
    return config


def _counted(target: ClipTarget | TimmTarget, model: ViTConfig, asked: int | None) -> Teacher:
    """Build it, with random weights where the real ones would be fetched, and count while it looks at one image."""
    from unveil.planning.stand_ins import count_target

    return count_target(target, model, asked)


def _other(size: int, student: ViTConfig) -> int:
    """0 for the student's own size."""
    return 0 if size == student.image_size else size
