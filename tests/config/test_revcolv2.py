"""RevColV2's settings as JSON and from the command line."""

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.models.revcolv2_tiny import half_of_base
from unveil.config import (
    BlockMasking,
    ClassificationConfig,
    EmbeddedTarget,
    EngineConfig,
    FeatureDistillation,
    MaskedRegression,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    RandomMasking,
    UnveilError,
)
from unveil.config.override import override
from unveil.config.resolve import MAY_CHANGE_ON_RESUME, Machine, resolve
from unveil.config.revcolv2 import RevColV2Config, revcolv2_base, revcolv2_large
from unveil.config.serialize import from_json, to_json


def test_settings_survive_json() -> None:
    for config in (half_of_base(image_size=64, mask_unit=16), revcolv2_base(drop_path=0.1), revcolv2_large()):
        assert from_json(RevColV2Config, json.loads(json.dumps(to_json(config)))) == config


def test_settings_from_the_command_line() -> None:
    """Another reconstruction that meets the published sizes: a change of numbers alone."""
    found = override(
        revcolv2_base(),
        [
            "widths=64,128,320,320",
            "layers=1,2,10,1",
            "kinds=convolution,convolution,transformer,transformer",
            "bottom_up_columns=3",
            "top_down_columns=3",
            "kernel_size=7",
            "reversible=chain",
            "gamma_init=1.0",
            "gamma_floor=0.5",
        ],
    )
    assert found.widths == (64, 128, 320, 320) and found.columns == 6 and found.depth == 84
    assert found.strides == (4, 8, 16, 32) and found.grid == (7, 7) and found.width == 320


def test_a_tiny_network_for_small_images_keeps_four_levels() -> None:
    config = half_of_base(image_size=32, mask_unit=8)
    assert config.patch_size == 1 and config.strides == (1, 2, 4, 8) and config.grid == (4, 4)


def pretraining(**changes: Any) -> PretrainConfig:
    given: dict[str, Any] = {
        "recipe": "x",
        "model": half_of_base(),
        "objective": MaskedRegression(loss="squared"),
        "masking": RandomMasking(),
        "target": PixelTarget(),
        "optimization": OptimizationConfig(global_batch_size=64, steps=1),
    }
    return PretrainConfig(**(given | changes))


def machine(**changes: Any) -> Machine:
    given: dict[str, Any] = {"device": "cuda", "world_size": 1, "cores": 4, "memory_gib": 24.0, "precision": "bf16"}
    return Machine(**(given | changes))


def test_a_pre_training_survives_json_and_settings() -> None:
    config = pretraining(target=PixelTarget(normalized_side=16))
    assert from_json(PretrainConfig, json.loads(json.dumps(to_json(config)))) == config
    changed = override(config, ["model.reversible=off", "model.mask_unit=64", "model.image_size=256"])
    assert isinstance(changed.model, RevColV2Config) and changed.model.grid == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": FeatureDistillation()}, "learns from the hidden units' pixels"),
        ({"target": EmbeddedTarget()}, "--teacher pixels"),
        ({"masking": BlockMasking(ratio=0.75)}, "equally many units of each image"),
        ({"target": PixelTarget(normalized_side=24)}, "normalized_side 24 does not divide"),
    ],
)
def test_what_it_cannot_learn_from(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        pretraining(**changes)
    pretraining(masking=BlockMasking(ratio=0.75, exact=True))


def test_squares_that_are_normalized_need_normalization() -> None:
    with pytest.raises(UnveilError, match="give one"):
        PixelTarget(normalize=False, normalized_side=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "cls"}, "has no cls token"),
        ({"freeze_patch_embedding": True}, "freeze_patch_embedding is for ViTs"),
    ],
)
def test_classifiers_of_columns(changes: dict[str, Any], message: str) -> None:
    optimization = OptimizationConfig(steps=1)
    with pytest.raises(UnveilError, match=message):
        ClassificationConfig(recipe="x", model=half_of_base(), optimization=optimization, **changes)


def test_chains_are_refused_before_anything_is_read() -> None:
    chain = pretraining(model=replace(half_of_base(), gamma_floor=0.5, gamma_init=1.0, reversible="chain"))
    with pytest.raises(UnveilError, match="inverts columns, for which arithmetic in bf16 is too coarse"):
        resolve(chain, images=100, machine=machine())
    resolve(override(chain, ["model.functions_in_fp32=true"]), images=100, machine=machine())
    with pytest.raises(UnveilError, match="--parallel zero1"):
        resolve(replace(chain, engine=EngineConfig(parallel="fsdp")), images=100, machine=machine(precision="fp32"))
    assert resolve(chain, images=100, machine=machine(precision="fp32")).model == chain.model
    assert "model.reversible" in MAY_CHANGE_ON_RESUME


def test_computing_columns_again_makes_room_for_larger_micro_batches() -> None:
    sizes = []
    for reversible in ("off", "column"):
        config = pretraining(
            model=replace(revcolv2_base(), reversible=reversible), optimization=OptimizationConfig(steps=1)
        )
        sizes.append(resolve(config, images=10**6, machine=machine()).optimization.micro_batch_size)
    assert sizes[0] < sizes[1]
