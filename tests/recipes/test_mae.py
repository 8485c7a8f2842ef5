"""MAE's recipes against its released commands; rates as base rates times the batch over 256."""

from dataclasses import replace
from typing import Any

import pytest

from unveil.config import (
    AdamWConfig,
    LARSConfig,
    MaskedAutoencoding,
    PixelTarget,
    RandomMasking,
    RandomResizedCrop,
)
from unveil.recipes import mae, revcolv2_small_cpu

BASE, LARGE = (768, 12, 12), (1024, 24, 16)


def size(config: Any) -> tuple[int, int, int]:
    return config.model.width, config.model.depth, config.model.heads


@pytest.mark.parametrize(("config", "network"), [(mae.mae_base(), BASE), (mae.mae_large(), LARGE)])
def test_pre_training(config: mae.PretrainConfig, network: tuple[int, int, int]) -> None:
    optimization = config.optimization
    assert optimization.optimizer.learning_rate == pytest.approx(1.5e-4 * 4096 / 256)
    assert replace(optimization.optimizer, learning_rate=1.0) == AdamWConfig(
        learning_rate=1.0, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.05
    )
    assert (optimization.global_batch_size, optimization.warmup_epochs, optimization.epochs) == (4096, 40, 1600)
    assert (optimization.min_learning_rate, optimization.clip_gradient_norm) == (0, None)
    assert (config.model.drop_path, config.model.image_size, config.model.patch_size) == (0.0, 224, 16)
    assert size(config) == network and config.model.qkv_bias == "all"
    assert config.objective == MaskedAutoencoding(decoder_width=512, decoder_depth=8, decoder_heads=16)
    assert config.masking == RandomMasking(ratio=0.75) and config.target == PixelTarget(normalize=True)
    assert config.data.crop == RandomResizedCrop(scale=(0.2, 1.0)) and config.data.flip
    assert config.data.normalization == "imagenet"


@pytest.mark.parametrize(
    ("config", "network", "base_rate", "layer_decay", "epochs", "drop_path"),
    [
        (mae.mae_base_in1k(), BASE, 5e-4, 0.65, 100, 0.1),
        (mae.mae_large_in1k(), LARGE, 1e-3, 0.75, 50, 0.2),
    ],
    ids=["base", "large"],
)
def test_fine_tuning(
    config: mae.ClassificationConfig,
    network: tuple[int, int, int],
    base_rate: float,
    layer_decay: float,
    epochs: float,
    drop_path: float,
) -> None:
    optimization, augmentation = config.optimization, config.augmentation
    assert optimization.optimizer.learning_rate == pytest.approx(base_rate * 1024 / 256)
    assert replace(optimization.optimizer, learning_rate=1.0) == AdamWConfig(
        learning_rate=1.0, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05
    )
    assert (optimization.global_batch_size, optimization.layer_decay) == (1024, layer_decay)
    assert (optimization.warmup_epochs, optimization.epochs, optimization.min_learning_rate) == (5, epochs, 1e-6)
    assert (size(config), config.model.drop_path) == (network, drop_path)
    assert augmentation.rand_augment == "rand-m9-mstd0.5-inc1"
    assert (augmentation.mixup, augmentation.cutmix, augmentation.random_erasing) == (0.8, 1.0, 0.25)
    # The head's deviation of 2e-5: see Classification.
    assert 0.02 * config.head_init_scale == pytest.approx(2e-5)
    assert (config.label_smoothing, config.pooling, config.ema_decay) == (0.1, "mean", None)


@pytest.mark.parametrize(
    ("config", "network"), [(mae.mae_base_probe_in1k(), BASE), (mae.mae_large_probe_in1k(), LARGE)]
)
def test_probe(config: mae.ProbeConfig, network: tuple[int, int, int]) -> None:
    optimization = config.optimization
    assert optimization.optimizer.learning_rate == pytest.approx(0.1 * 16_384 / 256)
    assert replace(optimization.optimizer, learning_rate=1.0) == LARSConfig(learning_rate=1.0)
    assert (optimization.global_batch_size, optimization.warmup_epochs, optimization.epochs) == (16_384, 10, 90)
    assert size(config) == network and config.pooling == "cls"
    assert config.data.crop == RandomResizedCrop(scale=(0.08, 1.0))


def test_small_data_differs_from_the_columns_in_network_and_objective_alone() -> None:
    ours, theirs = mae.mae_small_cpu(), revcolv2_small_cpu()
    assert replace(ours, recipe="", model=theirs.model, objective=theirs.objective) == replace(theirs, recipe="")
