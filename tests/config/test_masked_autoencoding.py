"""MAE's settings from the command line, and what they refuse."""

from dataclasses import replace
from typing import Any

import pytest

from unveil.config import (
    BlockMasking,
    EmaTarget,
    EmbeddedTarget,
    MaskedAutoencoding,
    PixelTarget,
    RandomMasking,
    UnveilError,
)
from unveil.config.override import override
from unveil.recipes import mae_tiny_cpu, revcolv2_tiny_cpu, tiny_cpu


def test_it_is_chosen_by_its_name() -> None:
    names = ["objective=MaskedAutoencoding", "masking=RandomMasking", "target=PixelTarget", "objective.decoder_depth=2"]
    config = override(tiny_cpu(), names)
    assert config.objective == MaskedAutoencoding(decoder_depth=2)
    decoder = config.objective.decoder(replace(config.model, drop_path=0.1))
    assert (decoder.width, decoder.depth, decoder.heads, decoder.mlp_width, decoder.drop_path) == (512, 2, 16, 2048, 0)
    assert decoder.grid == config.model.grid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": EmbeddedTarget()}, "tells the hidden patches' pixels, and mae_tiny_cpu has the target Embedded"),
        ({"target": EmaTarget()}, "--teacher pixels"),
        ({"masking": BlockMasking(ratio=0.75)}, "MaskedAutoencoding needs masks that hide equally many patches"),
        ({"model": replace(mae_tiny_cpu().model, relative_positions="shared")}, "relative positions need all"),
        ({"model": revcolv2_tiny_cpu().model}, "has the objective MaskedAutoencoding"),
    ],
)
def test_what_it_does_not_learn_from(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        replace(mae_tiny_cpu(), **changes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"decoder_depth": 0}, "must be at least 1"),
        ({"decoder_width": 10, "decoder_heads": 2}, "not a multiple of 4.* try 8"),
        ({"decoder_width": 16, "decoder_heads": 3}, "not a multiple of objective.decoder_heads 3"),
    ],
)
def test_decoders_that_cannot_be(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        MaskedAutoencoding(**sizes)


def test_masks_that_hide_equally_many_patches() -> None:
    replace(mae_tiny_cpu(), masking=BlockMasking(ratio=0.5, exact=True))
    replace(mae_tiny_cpu(), masking=RandomMasking(ratio=0.5), target=PixelTarget(normalize=False))
