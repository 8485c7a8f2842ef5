"""Settings of a probe that cannot be are refused where they are written."""

from typing import Any

import pytest

from unveil.config import EngineConfig, OptimizationConfig, ProbeConfig, UnveilError, ViTConfig
from unveil.config.serialize import from_json, to_json

GIVEN: dict[str, Any] = {"recipe": "mine", "model": ViTConfig(), "optimization": OptimizationConfig(steps=1)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_crop": 0.0}, "test_crop 0.0"),
        ({"engine": EngineConfig(parallel="fsdp")}, "give --parallel ddp or zero1"),
        ({"labels": 1}, "labels is 1"),
        ({"draws": 0, "labels": 9}, "draws"),
        ({"draws": 2}, "would all be the same"),
        ({"neighbours": 0}, "neighbours"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"temperature": float("nan")}, "temperature nan"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnveilError, match=words):
        ProbeConfig(**GIVEN, **changes)


def test_it_comes_back_from_json() -> None:
    config = ProbeConfig(**GIVEN, labels=100, draws=3, neighbours=5, temperature=0.1, classes=("a", "b"))
    assert from_json(ProbeConfig, to_json(config)) == config
