"""RevColV2's recipes against the supplement; rates as its base rates times the batch over 256."""

from dataclasses import replace

import pytest

from unveil.config import AdamWConfig, ClassificationConfig, LARSConfig, PixelTarget, RandomMasking, RandomResizedCrop
from unveil.recipes import revcolv2 as recipes


@pytest.mark.parametrize("config", [recipes.revcolv2_base_mim(), recipes.revcolv2_large_mim()])
def test_table_1(config: recipes.PretrainConfig) -> None:
    optimization = config.optimization
    assert optimization.optimizer.learning_rate == pytest.approx(1.5e-4 * 4096 / 256)
    assert replace(optimization.optimizer, learning_rate=1.0) == AdamWConfig(
        learning_rate=1.0, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.05
    )
    assert (optimization.global_batch_size, optimization.warmup_epochs, optimization.epochs) == (4096, 40, 1600)
    assert (config.model.drop_path, config.model.image_size) == (0.0, 224)
    # Not in the table: the end of the cosine and no clipping are MAE's; masks and targets are inferred.
    assert (optimization.min_learning_rate, optimization.clip_gradient_norm, optimization.layer_decay) == (
        0,
        None,
        None,
    )
    assert config.data.crop == RandomResizedCrop(scale=(0.2, 1.0))
    assert config.masking == RandomMasking(ratio=0.75) and config.model.mask_unit == 32
    assert config.target == PixelTarget(normalized_side=16) and config.objective.loss == "squared"


BASE, LARGE = (96, 192, 512, 512), (192, 384, 768, 1152)
TABLE_2 = (2.5e-4, 4096, 0.05, (0.9, 0.999), 0.8, 5, 90, True, None)
TABLE_3 = (5e-4, 1024, 0.05, (0.9, 0.999), 0.75, 5, 100, True, 0.9999)
TABLE_4 = (2.5e-5, 512, 0.01, (0.9, 0.999), 0.9, 0, 30, False, 0.9999)
SECTION_2_1 = (1e-4, 4096, 0.3, (0.9, 0.95), None, 20, 300, True, 0.999)


@pytest.mark.parametrize(
    ("config", "widths", "drop_path", "row"),
    [
        (recipes.revcolv2_base_in22k(), BASE, 0.1, TABLE_2),
        (recipes.revcolv2_large_in22k(), LARGE, 0.2, TABLE_2),
        (recipes.revcolv2_base_in1k(), BASE, 0.1, TABLE_3),
        (recipes.revcolv2_large_in1k(), LARGE, 0.1, (*TABLE_3[:6], 50, *TABLE_3[7:])),
        (recipes.revcolv2_base_in1k_after_in22k(), BASE, 0.1, TABLE_4),
        (recipes.revcolv2_large_in1k_after_in22k(), LARGE, 0.2, TABLE_4),
        (recipes.revcolv2_base_scratch_in1k(), BASE, 0.1, SECTION_2_1),
        (recipes.revcolv2_large_scratch_in1k(), LARGE, 0.2, (*SECTION_2_1[:6], 200, *SECTION_2_1[7:])),
    ],
    ids=lambda value: getattr(value, "recipe", ""),
)
def test_tables_2_to_4_and_section_2_1(
    config: ClassificationConfig, widths: tuple[int, ...], drop_path: float, row: tuple
) -> None:
    base_rate, batch, weight_decay, betas, layer_decay, warm_up, epochs, mixes, average = row
    optimization, augmentation = config.optimization, config.augmentation
    assert optimization.optimizer.learning_rate == pytest.approx(base_rate * batch / 256)
    assert replace(optimization.optimizer, learning_rate=1.0) == AdamWConfig(
        learning_rate=1.0, betas=betas, epsilon=1e-8, weight_decay=weight_decay
    )
    assert (optimization.global_batch_size, optimization.layer_decay) == (batch, layer_decay)
    assert (optimization.warmup_epochs, optimization.epochs) == (warm_up, epochs)
    assert (config.model.widths, config.model.drop_path) == (widths, drop_path)
    assert augmentation.rand_augment is not None and augmentation.rand_augment.startswith("rand-m9-mstd0.5")
    assert (augmentation.mixup, augmentation.cutmix) == ((0.8, 1.0) if mixes else (0, 0))
    assert (config.label_smoothing, config.head_init_scale, config.head_from) == (0.1, 0.001, "new")
    assert config.ema_decay == average and augmentation.random_erasing == 0


@pytest.mark.parametrize("config", [recipes.revcolv2_base_probe_in1k(), recipes.revcolv2_large_probe_in1k()])
def test_table_5_is_probed_as_mae_is(config: recipes.ProbeConfig) -> None:
    optimization = config.optimization
    assert optimization.optimizer.learning_rate == pytest.approx(0.1 * 16_384 / 256)
    assert replace(optimization.optimizer, learning_rate=1.0) == LARSConfig(learning_rate=1.0)
    assert (optimization.global_batch_size, optimization.warmup_epochs, optimization.epochs) == (16_384, 10, 90)
    assert config.pooling == "mean"
