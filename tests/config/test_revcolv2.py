"""RevColV2's settings as JSON and from the command line."""

import json

from unveil.config.override import override
from unveil.config.revcolv2 import RevColV2Config, revcolv2_base, revcolv2_large, revcolv2_tiny
from unveil.config.serialize import from_json, to_json


def test_settings_survive_json() -> None:
    for config in (revcolv2_tiny(image_size=64, mask_unit=16), revcolv2_base(drop_path=0.1), revcolv2_large()):
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
    config = revcolv2_tiny(image_size=32, mask_unit=8)
    assert config.patch_size == 1 and config.strides == (1, 2, 4, 8) and config.grid == (4, 4)
