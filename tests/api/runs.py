"""Run folders as training leaves them, without the training."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from unveil.config import (
    BlockMasking,
    ClassificationConfig,
    DataConfig,
    EmbeddedTarget,
    ImageFiles,
    MaskedRegression,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    RandomMasking,
    ViTConfig,
)
from unveil.config.revcolv2 import revcolv2_small
from unveil.config.serialize import to_json
from unveil.engine.checkpoint import CheckpointFolder
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.pretext.masked_modelling import MaskedModelling
from unveil.pretext.masked_pixels import MaskedPixels
from unveil.pretext.targets.embedded import EmbeddedTeacher
from unveil.pretext.targets.pixels import PixelPatches
from unveil.tasks.classification.task import Classification, Pooling

TINY = ViTConfig(image_size=28, patch_size=7, width=48, depth=2, heads=3, mlp_width=64, init_std=0.2)
"""Four rows and columns of patches. Three heads: no published network of this width has as many."""

COLUMNS = replace(revcolv2_small(widths=(8, 12, 16), head_width=4), mask_unit=16, mlp_ratio=2, init_std=0.2)
"""Two rows and columns of mask units, four of the coarsest level's cells."""

CLASSES = ("cat", "dog", "fire engine", "Straße")


def save_classifier(run: Path, *, pooling: Pooling = "mean", test_crop: float = 1.0, averaged: bool = False) -> Path:
    """A run of `unveil finetune classification`; with other weights in the average, where there is one."""
    config = ClassificationConfig(
        recipe="tiny",
        model=TINY,
        classes=CLASSES,
        data=DataConfig(normalization="imagenet"),
        optimization=OptimizationConfig(),
        pooling=pooling,
        test_crop=test_crop,
    )
    first, second = (classifier(pooling, seed).state_dict() for seed in (0, 1))
    CheckpointFolder(run / "checkpoints").save(3, first, {}, second if averaged else None)
    (run / "config.json").write_text(json.dumps(to_json(config)))
    return run


def classifier(pooling: Pooling, seed: int) -> Classification:
    """The network of such a run."""
    torch.manual_seed(seed)
    task = Classification(
        ViT(TINY, final_norm=pooling == "cls"),
        CLASSES,
        seed=0,
        normalization="imagenet",
        label_smoothing=0.0,
        head_init_scale=50.0,
        pooling=pooling,
    )
    for module in task.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    return task.eval()


def save_pretraining(run: Path, images: Path, *, embedded: bool = False) -> Path:
    """A run of `unveil pretrain` on the folder `images`."""
    config = PretrainConfig(
        recipe="tiny",
        model=TINY,
        masking=BlockMasking(ratio=0.5),
        target=EmbeddedTarget() if embedded else PixelTarget(),
        data=DataConfig(source=ImageFiles(paths=(str(images),))),
        optimization=OptimizationConfig(),
    )
    torch.manual_seed(0)
    teacher = EmbeddedTeacher(TINY.grid) if embedded else PixelPatches(TINY.grid, patch_size=7, normalize=True)
    task = MaskedModelling(ViT(TINY, mask_token=True), teacher, seed=0, normalization="clip")
    CheckpointFolder(run / "checkpoints").save(3, task.state_dict(), {})
    (run / "config.json").write_text(json.dumps(to_json(config)))
    return run


def save_columns(run: Path, images: Path) -> Path:
    """A run of `unveil pretrain` of a RevColV2 on the folder `images`."""
    config = PretrainConfig(
        recipe="tiny",
        model=COLUMNS,
        objective=MaskedRegression(loss="squared"),
        masking=RandomMasking(ratio=0.75),
        target=PixelTarget(),
        data=DataConfig(source=ImageFiles(paths=(str(images),)), normalization="imagenet"),
        optimization=OptimizationConfig(steps=3),
    )
    torch.manual_seed(0)
    target = PixelPatches(COLUMNS.grid, patch_size=16, normalize=True)
    task = MaskedPixels(RevColV2(COLUMNS, mask_token=True), target, seed=0, normalization="imagenet")
    CheckpointFolder(run / "checkpoints").save(3, task.state_dict(), {})
    (run / "config.json").write_text(json.dumps(to_json(config)))
    return run


def save_columns_classifier(run: Path) -> Path:
    """A run of `unveil finetune classification` of a RevColV2."""
    config = ClassificationConfig(
        recipe="tiny",
        model=COLUMNS,
        classes=CLASSES,
        data=DataConfig(normalization="imagenet"),
        optimization=OptimizationConfig(steps=3),
        test_crop=0.8,
    )
    torch.manual_seed(1)
    task = Classification(
        RevColV2(COLUMNS, reads="top"),
        CLASSES,
        seed=0,
        normalization="imagenet",
        label_smoothing=0.0,
        head_init_scale=50.0,
    )
    torch.nn.init.normal_(task.fc_norm.weight, 1.0, 0.2)
    CheckpointFolder(run / "checkpoints").save(3, task.state_dict(), {})
    (run / "config.json").write_text(json.dumps(to_json(config)))
    return run
