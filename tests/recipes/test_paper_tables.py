"""Classification recipes against the tables of the paper, and against the released commands where it has none.

The numbers are typed from arXiv 2211.07636 v1 (Tables 2, 11, 12 and 13) and from the commands in EVA's repository.
"""

from dataclasses import replace

import pytest

from unveil.config import (
    AdamWConfig,
    ClassificationConfig,
    FeatureDistillation,
    LARSConfig,
    MaskedTokenPrediction,
    PatchAggregation,
    ViTConfig,
)
from unveil.recipes import distillation, eva_pretraining, pilot_tokens
from unveil.recipes import eva_classification as recipes


def giant(model: ViTConfig) -> bool:
    """Table 3a."""
    sizes = (model.patch_size, model.depth, model.width, model.mlp_width, model.heads)
    return sizes == (14, 40, 1408, 6144, 16) and model.layer_scale is None


def check_adamw(
    config: ClassificationConfig, rate: float, betas: tuple[float, float], epsilon: float, weight_decay: float
) -> None:
    assert config.optimization.optimizer == AdamWConfig(
        learning_rate=rate, betas=betas, epsilon=epsilon, weight_decay=weight_decay
    )
    # The released defaults; the paper names no clipping.
    assert config.optimization.clip_gradient_norm is None
    assert config.head_init_scale == 0.001
    assert config.pooling == "mean"
    assert config.data.normalization == "clip"
    assert config.data.flip


def test_table_12() -> None:
    config = recipes.eva_giant_in21k()
    check_adamw(config, 1e-4, (0.9, 0.98), 1e-6, 0.05)
    optimization, augmentation = config.optimization, config.augmentation
    assert giant(config.model)
    assert optimization.layer_decay == 0.85
    assert config.model.image_size == 224
    assert optimization.global_batch_size == 4096
    assert (optimization.warmup_epochs, optimization.epochs) == (15, 60)
    assert config.model.drop_path == 0.4
    assert augmentation.rand_augment is not None
    assert augmentation.rand_augment.startswith("rand-m9-mstd0.5")
    assert config.label_smoothing == 0.1
    assert (augmentation.cutmix, augmentation.mixup, augmentation.random_erasing) == (1.0, 0, 0)
    assert config.data.crop.scale == (0.5, 1)
    assert config.ema_decay is None
    # Not in the table: the released default.
    assert optimization.min_learning_rate == 1e-6


@pytest.mark.parametrize(
    ("config", "image_size", "epochs"),
    [(recipes.eva_giant_in1k_336(), 336, 10), (recipes.eva_giant_in1k_560(), 560, 15)],
)
def test_table_13(config: ClassificationConfig, image_size: int, epochs: int) -> None:
    check_adamw(config, 3e-5, (0.9, 0.999), 1e-8, 0.05)
    check_table_13_augmentation(config)
    optimization = config.optimization
    assert giant(config.model)
    assert optimization.layer_decay == 0.95
    assert config.model.image_size == image_size
    assert optimization.global_batch_size == 512
    assert (optimization.warmup_epochs, optimization.epochs) == (2, epochs)


def check_table_13_augmentation(config: ClassificationConfig) -> None:
    augmentation = config.augmentation
    assert config.model.drop_path == 0.4
    assert augmentation.rand_augment is not None
    assert augmentation.rand_augment.startswith("rand-m9-mstd0.5")
    assert config.label_smoothing == 0.3
    assert not augmentation.mixes
    assert augmentation.random_erasing == 0
    assert config.data.crop.scale == (0.08, 1)
    assert config.ema_decay == 0.9999
    assert config.test_crop == 1.0
    # The released command's.
    assert config.optimization.min_learning_rate == 0


@pytest.mark.parametrize(
    ("config", "image_size", "batch"),
    [(recipes.eva_clip_in1k_224(), 224, 4 * 8 * 32), (recipes.eva_clip_in1k_336(), 336, 4 * 8 * 16)],
)
def test_table_11_fine_tuning(config: ClassificationConfig, image_size: int, batch: int) -> None:
    """Released commands: the table gives accuracies only."""
    check_adamw(config, 3e-5, (0.9, 0.999), 1e-8, 0.05)
    check_table_13_augmentation(config)
    optimization = config.optimization
    assert giant(config.model)
    assert (config.model.image_size, optimization.global_batch_size) == (image_size, batch)
    assert (optimization.layer_decay, optimization.warmup_epochs, optimization.epochs) == (0.9, 2, 20)


@pytest.mark.parametrize(("recipe", "image_size", "rate"), [("224", 224, 1.0), ("336", 336, 0.6)])
def test_table_11_linear_probing(recipe: str, image_size: int, rate: float) -> None:
    """Released commands, 5 x 8 GPUs with 400 images."""
    config = getattr(recipes, f"eva_clip_probe_{recipe}")()
    optimization = config.optimization
    assert giant(config.model)
    assert (config.model.image_size, config.model.drop_path, config.pooling) == (image_size, 0, "cls")
    assert optimization.optimizer == LARSConfig(
        learning_rate=rate, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001
    )
    assert optimization.global_batch_size == 5 * 8 * 400
    assert (optimization.warmup_epochs, optimization.epochs, optimization.min_learning_rate) == (10, 90, 0)
    assert (optimization.layer_decay, optimization.clip_gradient_norm) == (None, None)
    assert config.data.crop.scale == (0.08, 1)


def test_table_2_pilot() -> None:
    """BEiT v2's command for its base network of 1,600 epochs, since the paper gives nothing."""
    pilot, grey = recipes.eva_base_pilot_in1k(), recipes.clip_base_in1k()
    for config in (pilot, grey):
        model, optimization, augmentation = config.model, config.optimization, config.augmentation
        assert (model.depth, model.width, model.heads, model.patch_size, model.image_size) == (12, 768, 12, 16, 224)
        check_adamw(config, 5e-4, (0.9, 0.999), 1e-8, 0.05)
        assert (optimization.global_batch_size, optimization.epochs, optimization.warmup_epochs) == (8 * 128, 100, 20)
        assert (optimization.layer_decay, model.drop_path) == (0.6, 0.2)
        assert (augmentation.mixup, augmentation.cutmix, augmentation.random_erasing) == (0.8, 1.0, 0.25)
    # They differ in the network that they start from.
    assert (pilot.optimization, pilot.augmentation, pilot.data) == (grey.optimization, grey.augmentation, grey.data)
    assert grey.model.norm_before_blocks
    assert grey.model.activation == "quick_gelu"


@pytest.mark.parametrize("epochs", [300, 800, 1600])
def test_table_2_distillation(epochs: int) -> None:
    """Table 2b's lengths; settings of FD's released configuration for CLIP ViT-B/16, 300 epochs (16 x 128 images)."""
    config = getattr(distillation, f"distillation_base_{epochs}")()
    model, optimization, target = config.model, config.optimization, config.target
    assert (model.depth, model.width, model.heads, model.patch_size, model.image_size) == (12, 768, 12, 16, 224)
    assert (model.drop_path, model.relative_positions, model.layer_scale) == (0.2, "shared", 0.1)
    assert config.objective == FeatureDistillation(whiten=True, beta=2.0)
    assert (target.name, target.projected) == ("ViT-B-16/openai", False)
    batch = 16 * 128
    assert optimization.optimizer == AdamWConfig(
        learning_rate=3e-4 * batch / 512, betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05
    )
    assert (optimization.global_batch_size, optimization.epochs, optimization.warmup_epochs) == (batch, epochs, 10)
    assert optimization.min_learning_rate == pytest.approx(5e-6 * batch / 512)
    assert optimization.clip_gradient_norm == 3.0
    assert (config.data.crop.scale, config.data.normalization) == ((0.08, 1.0), "imagenet")
    tuned = recipes.distillation_base_in1k()
    assert replace(tuned.model, drop_path=0.0) == replace(model, drop_path=0.0)
    assert tuned.data.normalization == config.data.normalization
    assert tuned.optimization == recipes.eva_base_pilot_in1k().optimization


@pytest.mark.parametrize(("name", "epochs"), [("_300", 300), ("", 800), ("_1600", 1600)])
def test_table_2_regression(name: str, epochs: int) -> None:
    """Three lengths of one recipe; the purple row is the one of 800 epochs."""
    config = getattr(eva_pretraining, f"eva_base_pilot{name}")()
    purple = eva_pretraining.eva_base_pilot()
    assert config.optimization.epochs == epochs
    assert replace(config, recipe=purple.recipe, optimization=purple.optimization) == purple
    assert replace(config.optimization, epochs=800.0) == purple.optimization


@pytest.mark.parametrize(
    ("epochs", "drop_path", "second_beta"), [(300, 0.0, 0.98), (800, 0.1, 0.999), (1600, 0.1, 0.999)]
)
def test_table_2_tokens(epochs: int, drop_path: float, second_beta: float) -> None:
    """Table 2a's lengths, 300 and 1,600; settings of BEiT v2's released command for the base network (16 x 128)."""
    config = getattr(pilot_tokens, f"tokens_base_{epochs}")()
    model, optimization, masking = config.model, config.optimization, config.masking
    assert (model.depth, model.width, model.heads, model.patch_size, model.image_size) == (12, 768, 12, 16, 224)
    assert (model.drop_path, model.relative_positions, model.layer_scale) == (drop_path, "shared", 0.1)
    assert config.objective == MaskedTokenPrediction(
        tokenizer="runs/vqkd_base", aggregation=PatchAggregation(after_block=9, depth=2)
    )
    assert (masking.count, masking.min_block, masking.exact) == (75, 16, True)
    assert optimization.optimizer == AdamWConfig(
        learning_rate=1.5e-3, betas=(0.9, second_beta), epsilon=1e-8, weight_decay=0.05
    )
    lengths = (optimization.global_batch_size, optimization.epochs, optimization.warmup_epochs)
    assert lengths == (16 * 128, epochs, 10)
    assert (optimization.min_learning_rate, optimization.clip_gradient_norm) == (1e-5, 3.0)
    assert (config.data.crop.scale, config.data.normalization) == ((0.2, 1.0), "imagenet")
    tuned = recipes.tokens_base_in1k()
    assert replace(tuned.model, drop_path=0.0) == replace(model, drop_path=0.0)
    assert tuned.data.normalization == config.data.normalization
    assert tuned.optimization == recipes.eva_base_pilot_in1k().optimization


def test_the_tokeniser_of_table_2() -> None:
    """BEiT v2's released command for 8 x 64 images and its default rate, 5e-5 for 128 images."""
    config = pilot_tokens.vqkd_base()
    model, optimization, objective = config.model, config.optimization, config.objective
    assert (model.depth, model.width, model.heads, model.patch_size, model.image_size) == (12, 768, 12, 16, 224)
    sizes = (objective.codes, objective.code_dim, objective.decoder_depth, objective.codebook_decay)
    assert sizes == (8192, 32, 3, 0.99) and objective.commitment == 1.0
    assert (config.target.name, config.target.projected) == ("ViT-B-16/openai", True)
    batch = 8 * 64
    assert optimization.optimizer == AdamWConfig(
        learning_rate=5e-5 * batch / 128, betas=(0.9, 0.99), epsilon=1e-8, weight_decay=1e-4
    )
    assert (optimization.global_batch_size, optimization.epochs, optimization.warmup_epochs) == (batch, 100, 10)
    assert (optimization.min_learning_rate, optimization.clip_gradient_norm) == (1e-5, None)
    assert (config.data.crop.scale, config.data.normalization) == ((0.08, 1.0), "half")
