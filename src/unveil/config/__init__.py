"""Frozen dataclasses for everything that a run needs. No torch here: listing recipes must answer at once."""

from unveil.config.data import CenterCrop, DataConfig, FashionScenes, ImageFiles, RandomResizedCrop
from unveil.config.errors import UnveilError
from unveil.config.model import ViTConfig
from unveil.config.pretext import (
    BlockMasking,
    ClipTarget,
    EmbeddedTarget,
    PixelTarget,
    RandomMasking,
    TimmTarget,
)
from unveil.config.run import ClassificationConfig, PretrainConfig
from unveil.config.training import AdamWConfig, EngineConfig, OptimizationConfig

__all__ = [
    "AdamWConfig",
    "BlockMasking",
    "CenterCrop",
    "ClassificationConfig",
    "ClipTarget",
    "DataConfig",
    "EmbeddedTarget",
    "EngineConfig",
    "FashionScenes",
    "ImageFiles",
    "OptimizationConfig",
    "PixelTarget",
    "PretrainConfig",
    "RandomMasking",
    "RandomResizedCrop",
    "TimmTarget",
    "UnveilError",
    "ViTConfig",
]
