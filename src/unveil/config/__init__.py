"""Frozen dataclasses for everything that a run needs. No torch here: listing recipes must answer at once."""

from unveil.config.classification import AugmentationConfig, ClassificationConfig, ProbeConfig
from unveil.config.clip import ClipModelConfig, TextConfig, clip_base, clip_tiny, eva_clip_giant
from unveil.config.contrastive import ContrastiveConfig, TowerOptimization
from unveil.config.data import CenterCrop, DataConfig, FashionScenes, ImageFiles, RandomResizedCrop
from unveil.config.errors import UnveilError
from unveil.config.model import ViTConfig
from unveil.config.pretext import (
    BlockMasking,
    ClipTarget,
    EmaTarget,
    EmbeddedTarget,
    FeatureDistillation,
    HogTarget,
    MaskedAutoencoding,
    MaskedObjective,
    MaskedRegression,
    MaskedTokenPrediction,
    PatchAggregation,
    PixelTarget,
    RandomMasking,
    TimmTarget,
    VectorQuantizedDistillation,
)
from unveil.config.pretraining import PretrainConfig
from unveil.config.revcolv2 import BackboneConfig, RevColV2Config
from unveil.config.training import AdamWConfig, EngineConfig, LAMBConfig, LARSConfig, OptimizationConfig

__all__ = [
    "AdamWConfig",
    "AugmentationConfig",
    "BackboneConfig",
    "BlockMasking",
    "CenterCrop",
    "ClassificationConfig",
    "ClipModelConfig",
    "ClipTarget",
    "ContrastiveConfig",
    "DataConfig",
    "EmaTarget",
    "EmbeddedTarget",
    "EngineConfig",
    "FashionScenes",
    "FeatureDistillation",
    "HogTarget",
    "ImageFiles",
    "LAMBConfig",
    "LARSConfig",
    "MaskedAutoencoding",
    "MaskedObjective",
    "MaskedRegression",
    "MaskedTokenPrediction",
    "OptimizationConfig",
    "PatchAggregation",
    "PixelTarget",
    "PretrainConfig",
    "ProbeConfig",
    "RandomMasking",
    "RandomResizedCrop",
    "RevColV2Config",
    "TextConfig",
    "TimmTarget",
    "TowerOptimization",
    "UnveilError",
    "VectorQuantizedDistillation",
    "ViTConfig",
    "clip_base",
    "clip_tiny",
    "eva_clip_giant",
]
