"""Maps, components and sheets: the colours where they must be, read back from the pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.visualize.components import components_picture, levels_picture
from unveil.visualize.figures import save_picture
from unveil.visualize.maps import (
    attention_picture,
    masks_picture,
    patch_similarity_picture,
    prediction_picture,
    reconstruction_picture,
)
from unveil.visualize.prediction_sheet import Card, prediction_sheet

GREY = torch.full((3, 64, 64), 100, dtype=torch.uint8)
VIOLET, YELLOW = (68, 1, 84), (253, 231, 37)
"""The ends of viridis."""


def area(picture: Image.Image, colour: tuple[int, int, int], tolerance: int = 2) -> int:
    """Pixels of this colour."""
    pixels = np.asarray(picture).astype(int)
    return int((np.abs(pixels - np.array(colour)).max(axis=2) <= tolerance).sum())


def blended(colour: tuple[int, int, int], strength: float) -> tuple[int, int, int]:
    red, green, blue = (round(strength * value + (1 - strength) * 100) for value in colour)
    return red, green, blue


def test_predictions_are_coloured_at_hidden_patches_only() -> None:
    mask = torch.tensor([True] * 8 + [False] * 8)
    similarity = torch.where(torch.arange(16) < 4, 1.0, 0.0)
    picture = prediction_picture(GREY, similarity, mask, (4, 4), "a title")
    visible = area(picture, (100, 100, 100))
    grey = area(picture, (128, 128, 128))
    # A panel's image all visible, half of the next, half of the last: twice a panel; half a panel is hidden.
    assert visible == pytest.approx(4 * grey, rel=0.05)
    # Half of what is hidden was predicted, half was not. The colour bar has a little of both, too.
    assert area(picture, YELLOW) == pytest.approx(grey / 2, rel=0.1)
    assert area(picture, VIOLET) == pytest.approx(grey / 2, rel=0.1)


def test_attention_of_one_head_on_one_patch_stands_out() -> None:
    attention = torch.full((2, 16), 1 / 16)
    attention[1] = torch.eye(16)[5]
    picture = attention_picture(GREY, attention, (4, 4), "a title")
    bright = area(picture, blended(YELLOW, 0.75))
    dark = area(picture, blended(VIOLET, 0.75))
    # Of the second head's 16 patches one is bright and 15 are dark.
    assert dark == pytest.approx(15 * bright, rel=0.1) and bright > 300
    assert area(picture, (100, 100, 100)) == pytest.approx(16 * bright, rel=0.1)


def test_a_patch_is_like_those_of_its_direction() -> None:
    features = torch.zeros(16, 2)
    features[:4, 0], features[4:, 1] = 3.0, 5.0
    picture = patch_similarity_picture(GREY, features, (4, 4), (0, 1), "a title")
    alike, unlike = (area(picture, blended(colour, 0.8)) for colour in (YELLOW, VIOLET))
    assert unlike == pytest.approx(3 * alike, rel=0.15) and alike > 300
    assert area(picture, (214, 39, 40)) > 50


def test_masks_and_components() -> None:
    masks = torch.stack([torch.arange(16) < count for count in (4, 8, 16)])
    picture = masks_picture(GREY, masks, (4, 4), "a title")
    assert area(picture, (128, 128, 128)) == pytest.approx((28 / 36) * area(picture, (100, 100, 100)), rel=0.05)
    features = torch.zeros(2, 16, 3)
    features[0, :8] = torch.tensor([1.0, 0.0, 0.0])
    features[1, :8] = torch.tensor([1.0, 0.0, 0.0])
    features += 0.001 * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    names = ["a name that is far too long for one panel of any figure.jpg", "b.jpg"]
    both = components_picture([GREY, GREY], features, (4, 4), names, "a long title " * 20)
    pixels = np.asarray(both).reshape(-1, 3)
    assert len(np.unique(pixels[(np.ptp(pixels, axis=1) > 30)], axis=0)) >= 2


def test_bars_are_as_long_as_probabilities() -> None:
    image = torch.zeros(3, 280, 280, dtype=torch.uint8)
    answers = [("daisy", 0.75), ("a label that is longer than any card is wide " * 3, 0.2), ("rose", 0.05)]
    page = np.asarray(prediction_sheet([Card("flower.jpg", image, answers)]))
    assert page.shape == (2 * 32 + 280 + 10 + 21 + 3 * (21 + 7 + 8), 2 * 32 + 280, 3)
    lengths = [
        int((np.abs(page.astype(int) - np.array(colour)).max(axis=2) == 0).sum(axis=1).max())
        for colour in ((0x1F, 0x4E, 0x79), (0x9B, 0xB7, 0xD4))
    ]
    assert lengths == [pytest.approx(0.75 * 280, abs=2), pytest.approx(0.2 * 280, abs=2)]
    # Nothing is written beyond the margins.
    assert (page[:, -32:] == 255).all() and (page[:, :32] == 255).all()
    many = prediction_sheet([Card("x", image, answers[:1])] * 13)
    assert many.width == 2 * 32 + 4 * 280 + 3 * 28


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    save_picture(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    with pytest.raises(Exception, match=r"b\.png could not be written"):
        save_picture(Image.new("RGB", (4, 4)), tmp_path / "no" / "b.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_reconstruction_stands_beside_what_was_seen() -> None:
    mask = torch.arange(16) < 8
    red = torch.tensor([214, 39, 40], dtype=torch.uint8)[:, None, None]
    painted = torch.where(torch.arange(64)[None, :, None] < 32, red, GREY)
    picture = reconstruction_picture(GREY, painted, mask, (4, 4), "a title")
    hidden = area(picture, (128, 128, 128))
    # As much is painted in the last panel as was hidden in the middle one.
    assert area(picture, (214, 39, 40)) == pytest.approx(hidden, rel=0.05)


def test_levels_are_drawn_from_the_finest_on() -> None:
    maps = {2: torch.randn(2, 5, 8, 8), 8: torch.randn(2, 4, 2, 2)}
    picture = levels_picture([GREY, GREY], maps, ["one", "two"], "a title")
    # Two panels of two images, and of each two levels.
    panel = area(picture, (100, 100, 100)) / 2
    assert 0.4 * picture.size[0] * picture.size[1] < 6 * panel < picture.size[0] * picture.size[1]
