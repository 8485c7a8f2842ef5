"""To JSON and back."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from unveil.config import (
    CenterCrop,
    ClipTarget,
    FashionScenes,
    PixelTarget,
    PretrainConfig,
    RandomMasking,
    TimmTarget,
    UnveilError,
)
from unveil.config.serialize import defaults, flatten, from_json, to_json
from unveil.recipes import PRETRAINING, tiny_cpu
from unveil.recipes.quickstart import quickstart, quickstart_pretraining


@pytest.mark.parametrize("recipe", [*PRETRAINING, quickstart_pretraining, quickstart], ids=lambda r: r.__name__)
def test_every_recipe_comes_back(recipe: Callable[[], Any]) -> None:
    config = recipe()
    text = json.dumps(to_json(config), allow_nan=False)
    assert from_json(type(config), json.loads(text)) == config


@pytest.mark.parametrize("target", [PixelTarget(normalize=False), TimmTarget(name="x", file="y"), ClipTarget(name="z")])
def test_members_of_unions_come_back(target: Any) -> None:
    config = tiny_cpu()
    config = replace(
        config,
        target=target,
        masking=RandomMasking(ratio=0.6),
        data=replace(config.data, crop=CenterCrop(share=0.5), validation=FashionScenes(count=3)),
    )
    assert from_json(PretrainConfig, json.loads(json.dumps(to_json(config)))) == config


def test_whole_numbers_become_floats_where_floats_belong() -> None:
    value = to_json(tiny_cpu())
    value["model"]["drop_path"] = 0
    assert type(from_json(PretrainConfig, value).model.drop_path) is float


def test_left_out_names_take_their_defaults() -> None:
    """A run written before a setting existed still reads."""
    value = to_json(tiny_cpu())
    del value["engine"]["evaluate_every"]
    assert from_json(PretrainConfig, value) == tiny_cpu()


def changed(path: str, value: Any) -> dict[str, Any]:
    whole = to_json(tiny_cpu())
    *parents, last = path.split(".")
    part = whole
    for name in parents:
        part = part[name]
    part[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("colour", 3, r"PretrainConfig has unknown names: \['colour'\]"),
        ("model.widht", 3, r"configuration model has unknown names: \['widht'\]"),
        ("model.width", "64", "configuration model.width holds '64'"),
        ("model.width", 64.0, "configuration model.width holds 64.0"),
        ("model.width", True, "configuration model.width holds True"),
        ("data.flip", 1, "configuration data.flip holds 1"),
        ("engine.precision", "fp8", "configuration engine.precision holds 'fp8'"),
        ("optimization.optimizer.betas", [0.9], r"betas holds \[0.9\]"),
        ("masking.kind", "Cut", "configuration masking holds"),
        ("target", {"kind": "TimmTarget"}, r"configuration target lacks \['name'\]"),
    ],
)
def test_what_does_not_belong_is_refused(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(UnveilError, match=sentence):
        from_json(PretrainConfig, changed(path, value))


def test_another_kind_of_configuration_is_refused() -> None:
    with pytest.raises(UnveilError, match="as a whole"):
        from_json(PretrainConfig, to_json(quickstart()))


def test_flatten() -> None:
    assert flatten({"a": {"kind": "A", "b": [1, 2]}, "c": None}) == {"a.kind": "A", "a.b": [1, 2], "c": None}


def test_defaults_reach_into_parts_as_they_are() -> None:
    usual = defaults(replace(tiny_cpu(), cache_targets=True))
    assert usual["cache_targets"] is False and usual["engine.parallel"] == "ddp"
    assert usual["optimization.optimizer.betas"] == [0.9, 0.98]
    assert "recipe" not in usual
