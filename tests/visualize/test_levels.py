"""The picture of RevColV2's levels: the colours where they must be, read back from the pixels."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from unveil.visualize.levels import TRAINED, UNTRAINED, LevelChart, ShownLevel, disentanglement_picture


def area(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """Pixels of this colour."""
    return int((np.abs(np.asarray(picture).astype(int) - np.array(colour)).max(axis=2) <= 2).sum())


def as_bytes(colour: str) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in to_rgb(colour))
    return red, green, blue


def plain(*colour: float) -> torch.Tensor:
    return torch.tensor(colour)[None, :, None, None].expand(2, 3, 16, 16)


def test_each_image_is_shown_once_and_said_by_each_level() -> None:
    torch.manual_seed(0)
    images = (plain(0.0, 0.4, 0.2) * 255).to(torch.uint8)
    # What is beyond white and black is shown as these are.
    said = plain(1.5, 0.0, -0.5)
    levels = [ShownLevel(column, 4, said, torch.randn(2, 8, 4, 4)) for column in ("bottom-up", "top-down")]
    shares = ([0.9, 0.9], [0.3, None])
    picture = disentanglement_picture(images, levels, [LevelChart("a chart", *shares), LevelChart("another", *shares)])
    originals, red = area(picture, (0, 102, 51)), area(picture, (255, 0, 0))
    assert originals > 20_000 and red == pytest.approx(2 * originals, rel=0.02)
    # Two bars of 0.9 beside one of 0.3.
    trained, untrained = (area(picture, as_bytes(colour)) for colour in (TRAINED, UNTRAINED))
    assert trained == pytest.approx(6 * untrained, rel=0.15)
