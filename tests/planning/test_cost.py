"""Parameters and arithmetic counted from configurations, against the networks themselves and torch's own counter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unveil.build import build_classification, build_pretext
from unveil.build.contrastive import build_contrastive
from unveil.config import (
    AugmentationConfig,
    ClassificationConfig,
    ClipModelConfig,
    ClipTarget,
    ContrastiveConfig,
    EmaTarget,
    EmbeddedTarget,
    FeatureDistillation,
    HogTarget,
    MaskedAutoencoding,
    MaskedRegression,
    MaskedTokenPrediction,
    OptimizationConfig,
    PatchAggregation,
    PixelTarget,
    PretrainConfig,
    RandomMasking,
    TextConfig,
    TimmTarget,
    TowerOptimization,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.pretext import Objective, Target
from unveil.config.resolve import Run
from unveil.planning.cost import FULL
from unveil.planning.networks import hidden_patches, network_cost
from unveil.planning.stand_ins import count_target, stand_in_target, stand_in_tokenizer
from unveil.planning.teachers import CLIP_TOWERS, clip_teacher, teacher_of, tokenizer_recipe
from unveil.pretext.masked_modelling import pad_hidden
from unveil.pretext.masking import masking_function
from unveil.recipes import PRETRAINING
from unveil.recipes.eva_classification import eva_giant_in1k_336, eva_giant_in1k_560, eva_giant_in21k
from unveil.recipes.eva_clip import eva_clip_giant
from unveil.recipes.eva_pretraining import eva_giant

MODEL = ViTConfig(image_size=32, patch_size=8, width=16, depth=2, heads=2, mlp_width=24)
OPTIMIZATION = OptimizationConfig(global_batch_size=2, steps=10, micro_batch_size=2)
CODES = VectorQuantizedDistillation(codes=12, code_dim=4, decoder_depth=1)


def pretraining(objective: Objective, model: ViTConfig = MODEL, target: Target = PixelTarget()) -> PretrainConfig:
    return PretrainConfig(recipe="x", model=model, objective=objective, target=target, optimization=OPTIMIZATION)


def step_of(config: PretrainConfig | ClassificationConfig) -> tuple[nn.Module, dict[str, Any]]:
    """The task and a batch of two images."""
    batch: dict[str, Any] = {
        "image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        "sample_numbers": torch.arange(2),
        "label": torch.zeros(2, dtype=torch.int64),
    }
    if isinstance(config, ClassificationConfig):
        return build_classification(config), batch
    limit = masking_function(config.masking).limit(config.model.grid)
    batch["mask"] = (torch.arange(16) < limit).expand(2, -1)
    batch["hidden"], batch["hidden_weight"] = pad_hidden(batch["mask"], limit)
    tokenizer = None
    if isinstance(config.objective, MaskedTokenPrediction):
        tokenizer = stand_in_tokenizer(config.objective.tokenizer)
    return build_pretext(config, tokenizer=tokenizer), batch


def counted(task: nn.Module, batch: dict[str, Any]) -> int:
    """By torch, for one of the two images; attention as plain products, which alone it counts everywhere."""
    task.train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(batch)["loss"][0].backward()
    return counter.get_total_flops() // 2


VARIANTS = {
    "masked": pretraining(MaskedRegression()),
    "masked, its own average": pretraining(MaskedRegression(), target=EmaTarget(layers=1)),
    "masked, histograms": pretraining(MaskedRegression(), target=HogTarget()),
    "masked, embedded teacher": pretraining(MaskedRegression(), target=EmbeddedTarget()),
    "distilled": pretraining(
        FeatureDistillation(), replace(MODEL, relative_positions="shared", layer_scale=0.1, qkv_bias="all")
    ),
    "tokenised": pretraining(CODES),
    "autoencoded": replace(
        pretraining(MaskedRegression(), replace(MODEL, qkv_bias="all")),
        objective=MaskedAutoencoding(decoder_width=8, decoder_depth=2, decoder_heads=2),
        masking=RandomMasking(ratio=0.75),
    ),
    "classified": ClassificationConfig(recipe="x", model=MODEL, classes=("a", "b", "c"), optimization=OPTIMIZATION),
    "classified, partly frozen": ClassificationConfig(
        recipe="x",
        model=replace(MODEL, norm_before_blocks=True, patch_bias=False, qkv_bias="none"),
        classes=("a", "b"),
        optimization=OPTIMIZATION,
        pooling="cls",
        freeze_patch_embedding=True,
        augmentation=AugmentationConfig(mixup=0.8),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_arithmetic_are_those_of_the_network(name: str) -> None:
    config = VARIANTS[name]
    task, batch = step_of(config)
    batch["step"] = 0
    teacher = teacher_of(config) if isinstance(config, PretrainConfig) else None
    cost = network_cost(config, FULL, teacher, 2 if "frozen" in name else 3)
    trained = [value for part, value in task.named_parameters() if not part.startswith("target.")]
    assert cost.parameters == sum(value.numel() for value in trained)
    assert cost.learned == sum(value.numel() for value in trained if value.requires_grad)
    assert cost.forward + cost.backward + (0 if teacher is None else teacher.flops) == counted(task, batch)


def test_token_prediction_with_its_second_head(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = pretraining(CODES)
    for module in ("teachers", "stand_ins"):
        monkeypatch.setattr(f"unveil.planning.{module}.tokenizer_recipe", lambda place: tokenizer)
    objective = MaskedTokenPrediction(tokenizer="none", aggregation=PatchAggregation(after_block=1, depth=1))
    config = pretraining(objective)
    task, batch = step_of(config)
    teacher = teacher_of(config)
    cost = network_cost(config, FULL, teacher, 0)
    assert cost.parameters == sum(value.numel() for value in task.parameters())
    assert cost.forward + cost.backward + teacher.flops == counted(task, batch)


@pytest.mark.parametrize("locked", [0, "all"])
def test_a_clip(locked: Any) -> None:
    config = ContrastiveConfig(
        recipe="x",
        model=ClipModelConfig(
            vision=MODEL,
            text=TextConfig(context_length=6, vocabulary_size=20, width=8, heads=2, depth=1, mlp_width=12),
            embedding_width=4,
        ),
        optimization=OPTIMIZATION,
        visual=TowerOptimization(locked=locked),
        patch_dropout=0.5,
    )
    task = build_contrastive(config)
    task.train()
    batch = {
        "image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8),
        "tokens": torch.randint(0, 20, (2, 6)),
        "sample_numbers": torch.arange(2),
    }
    cost = network_cost(config, FULL, None, 0)
    assert cost.parameters == sum(value.numel() for value in task.parameters())
    if locked == "all":
        assert cost.learned == sum(value.numel() for value in task.parameters() if value.requires_grad)
        return
    # Beside the towers, the products of features with features: a few thousandths even here.
    assert cost.forward + cost.backward == pytest.approx(counted(task, batch), rel=0.01)


@pytest.mark.parametrize(
    ("config", "classes", "parameters"),
    [
        (eva_giant(), 0, 1_012_229_632),
        (eva_giant_in21k(), 21_841, 1_041_920_081),
        (eva_giant_in1k_336(), 1000, 1_013_005_672),
        (eva_giant_in1k_560(), 1000, 1_014_447_464),
        (eva_clip_giant(), 0, 1_136_435_841),
    ],
    ids=lambda value: getattr(value, "recipe", ""),
)
def test_released_networks_have_as_many_parameters(config: Run, classes: int, parameters: int) -> None:
    """Numbers of parameters in the released checkpoints and logs."""
    teacher = teacher_of(config) if isinstance(config, PretrainConfig) else None
    assert network_cost(config, FULL, teacher, classes).parameters == parameters


def test_the_padded_list_is_as_long_as_the_masking_says() -> None:
    for config in (recipe() for recipe in PRETRAINING):
        assert hidden_patches(config) == masking_function(config.masking).limit(config.model.grid)


def test_a_clip_teacher_is_as_large_as_its_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(CLIP_TOWERS["ViT-B-16"].config, image_size=32, width=16, depth=2, heads=2, mlp_width=64)
    monkeypatch.setitem(CLIP_TOWERS, "ViT-B-16", replace(CLIP_TOWERS["ViT-B-16"], config=small, embedding_width=8))
    student = ViTConfig(image_size=32, patch_size=8, width=16, depth=1, heads=2, mlp_width=16)
    for target in (
        ClipTarget(name="ViT-B-16/openai"),
        ClipTarget(name="ViT-B-16/openai", projected=False, resize_grid=True),
    ):
        config = pretraining(MaskedRegression(), student, target)
        reckoned = teacher_of(config)
        looked_at = count_target(target, student, hidden_patches(config))
        assert (reckoned.flops, reckoned.dim, reckoned.own_view) == (looked_at.flops, looked_at.dim, looked_at.own_view)
        assert reckoned.flops < count_target(target, student).flops or target.resize_grid
        # The stand-in's pixel mean and deviation, and a projection that is not used.
        assert 0 <= looked_at.parameters - reckoned.parameters <= 6


def test_openais_towers_are_open_clips() -> None:
    from open_clip import get_model_config

    for name, tower in CLIP_TOWERS.items():
        vision = get_model_config(name)["vision_cfg"]
        config = tower.config
        assert (vision["width"], vision["layers"], vision["patch_size"]) == (
            config.width,
            config.depth,
            config.patch_size,
        )
        assert vision.get("head_width", 64) == config.width // config.heads
        assert get_model_config(name)["embed_dim"] == tower.embedding_width


def test_a_teacher_that_only_timm_knows_is_counted_while_it_looks() -> None:
    student = ViTConfig(image_size=32, patch_size=16, width=16, depth=1, heads=2, mlp_width=16)
    teacher = teacher_of(pretraining(MaskedRegression(), student, TimmTarget(name="resnet10t")))
    assert teacher.dim == 512 and teacher.own_view == 64
    assert 4_500_000 < teacher.parameters < 5_500_000
    assert stand_in_target(TimmTarget(name="resnet10t"), student).image_size == 64
    # timm gives ResNet-10-T 1.1 billion multiplications and additions at 224 px, that is 49 places.
    assert teacher.flops == pytest.approx(2 * 1.1e9 * 4 / 49, rel=0.1)


def test_a_tokeniser_that_is_not_there_yet_is_known_by_its_recipe() -> None:
    assert tokenizer_recipe("runs/vqkd_base").recipe == "vqkd_base"
    teacher = clip_teacher("x", CLIP_TOWERS["ViT-L-14"], ClipTarget(), eva_giant().model)
    # CLIP-L/14's tower without its text side (OpenAI: 304 M), 2 x 256 x parameters and attention.
    assert teacher.parameters == pytest.approx(304e6, rel=0.005)
