"""Sizes, places and colours of the pictures."""

import pytest
import torch

from unveil.visualize.pictures import (
    GAP,
    HIDDEN_GREY,
    loss_curve,
    masked_image,
    nearest_images,
    pca_pictures,
    sheet,
    similarity_map,
)


def plain(red: int, green: int, blue: int, side: int = 4) -> torch.Tensor:
    return torch.tensor([red, green, blue], dtype=torch.uint8)[:, None, None].expand(3, side, side)


def test_a_sheet_places_its_pictures() -> None:
    page = sheet([[plain(255, 0, 0), plain(0, 255, 0)], [plain(0, 0, 255), plain(9, 9, 9)]], 10)
    assert page.size == (20 + GAP, 20 + GAP) and page.mode == "RGB"
    corners = [page.getpixel(place) for place in ((0, 0), (19 + GAP, 0), (0, 19 + GAP), (19 + GAP, 19 + GAP))]
    assert corners == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]
    assert page.getpixel((10, 0)) == page.getpixel((0, 10)) == (255, 255, 255)


def test_a_sheet_enlarges_without_smoothing() -> None:
    picture = plain(0, 0, 0, 2).clone()
    picture[:, 0, 1] = 255
    page = sheet([[picture]], 20)
    assert {colour for _, colour in page.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    assert page.getpixel((19, 0)) == (255, 255, 255) and page.getpixel((9, 0)) == page.getpixel((19, 19)) == (0, 0, 0)


def test_hidden_patches_are_grey() -> None:
    image = torch.randint(0, 100, (3, 8, 12), dtype=torch.uint8)
    mask = torch.tensor([False, True, False, False, False, True])
    shown = masked_image(image, mask, (2, 3))
    grey = torch.zeros(8, 12, dtype=torch.bool)
    grey[:4, 4:8] = grey[4:, 8:] = True
    assert (shown[:, grey] == HIDDEN_GREY).all() and torch.equal(shown[:, ~grey], image[:, ~grey])
    assert shown.dtype == torch.uint8


def test_similarity_runs_from_violet_to_yellow() -> None:
    """The ends of matplotlib's viridis: #440154 and #fde725."""
    similarity = torch.tensor([1.0, 0.0, -0.8, 0.9])
    picture = similarity_map(similarity, torch.tensor([True, True, True, False]), (2, 2), (6, 6))
    assert picture.shape == (3, 6, 6) and picture.dtype == torch.uint8
    assert picture[:, 0, 0].tolist() == [0xFD, 0xE7, 0x25]
    assert picture[:, 0, 5].tolist() == picture[:, 5, 0].tolist() == [0x44, 0x01, 0x54]
    assert picture[:, 5, 5].tolist() == [255, 255, 255]


def test_pca_shows_what_varies_most_as_red() -> None:
    generator = torch.Generator().manual_seed(0)
    strength = torch.linspace(-1, 1, 32).view(2, 16)
    features = 0.01 * torch.randn(2, 16, 6, generator=generator) + 5.0
    features[:, :, 2] += 10 * strength
    pictures = pca_pictures(features, (4, 4), (12, 8))
    assert [tuple(picture.shape) for picture in pictures] == [(3, 12, 8)] * 2
    red = torch.stack([picture[0, ::3, ::2].flatten() for picture in pictures]).float().flatten()
    assert torch.corrcoef(torch.stack((red, strength.flatten())))[0, 1] > 0.99
    assert red.min() == 0 and red.max() == 255
    again = pca_pictures(features, (4, 4), (12, 8))
    assert all(torch.equal(one, other) for one, other in zip(pictures, again, strict=True))


def test_nearest_images_by_cosine_of_what_differs() -> None:
    """All features share a large part, which would make everything alike."""
    directions = torch.eye(4)
    features = 100 + torch.cat((directions, 3 * directions[:1], -directions))
    assert nearest_images(features[:1], features, 2).tolist()[0] in ([0, 4], [4, 0])
    assert nearest_images(features[2:4], features, 1).tolist() == [[2], [3]]


@pytest.mark.parametrize("count", [1, 5, 40])
def test_a_loss_curve(count: int) -> None:
    picture = loss_curve(list(range(count)), [-0.01 * step for step in range(count)])
    assert picture.mode == "RGB" and picture.size == (792, 352)
    colours = {colour for _, colour in picture.getcolors(10**6)}
    assert (255, 255, 255) in colours
    # The smoothed curve is drawn where there is something to smooth.
    assert ((0x1F, 0x4E, 0x79) in colours) == (count == 40)
