"""Ridge regression from cells to pixels, and its scores: against scikit-learn, scikit-image and what must come out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from unveil.tasks.classification.pixel_readout import RIDGE, CellSums, PixelReadout, pixel_score, pixel_sums

CPU = torch.device("cpu")


def fitted(cells: torch.Tensor, images: torch.Tensor, stride: int) -> PixelReadout:
    sums = CellSums(width=cells.shape[1], stride=stride, device=CPU)
    for some_cells, some_images in zip(cells.split(3), images.split(3), strict=True):
        sums.add(some_cells, some_images)
    assert sums.count == len(cells) * cells.shape[2] * cells.shape[3]
    return sums.fit()


def explained(cells: torch.Tensor, images: torch.Tensor, stride: int) -> float:
    """R² on the second half of what the first half was fitted to."""
    half = len(images) // 2
    readout = fitted(cells[:half], images[:half], stride)
    return pixel_score(pixel_sums(readout(cells[half:]), images[half:])).r2


def test_as_scikit_learn_fits() -> None:
    torch.manual_seed(0)
    images, cells = torch.rand(8, 3, 8, 12), torch.randn(8, 5, 4, 6) * torch.tensor([1.0, 9, 0.01, 3, 1])[:, None, None]
    cells = cells + torch.tensor([0.0, 100, 1, -3, 0])[:, None, None]
    # By hand: rows are cells, image by image and row by row; a square's pixels by colour, row and column.
    x = np.stack([cells[n, :, i, j] for n in range(8) for i in range(4) for j in range(6)])
    squares = [images[n, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for n in range(8) for i in range(4) for j in range(6)]
    y = np.stack([square.flatten().numpy() for square in squares])
    scaler = StandardScaler().fit(x.astype(np.float64))
    expected = Ridge(alpha=RIDGE * len(x)).fit(scaler.transform(x), y).predict(scaler.transform(x))
    said = fitted(cells, images, 2)(cells)
    for number, (n, i, j) in enumerate((n, i, j) for n in range(8) for i in range(4) for j in range(6)):
        square = said[n, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
        np.testing.assert_allclose(square.numpy(), expected[number], atol=1e-5)


def test_cells_that_are_the_pixels_tell_all_of_them() -> None:
    torch.manual_seed(0)
    # Neighbouring pixels are alike, as in photos, so that the regression is badly conditioned.
    images = F.interpolate(torch.rand(40, 3, 4, 4), size=16, mode="bicubic").clamp(0, 1)
    pixels = F.pixel_unshuffle(images, 4)
    assert explained(pixels, images, 4) > 1 - 1e-4
    mixed = torch.einsum("bcij,dc->bdij", pixels, torch.randn(64, 48)) + 5.0
    assert explained(mixed, images, 4) > 1 - 1e-4


def test_cells_of_noise_tell_nothing() -> None:
    torch.manual_seed(0)
    assert explained(torch.randn(200, 8, 8, 8), torch.rand(200, 3, 16, 16), 2) == pytest.approx(0.0, abs=0.01)


def test_cells_that_know_their_mean_colour_tell_no_more() -> None:
    torch.manual_seed(0)
    images = torch.rand(100, 3, 16, 16)
    colours = F.avg_pool2d(images, 4)
    # Of 16 independent pixels the mean explains a sixteenth; of their mean colours all.
    assert explained(colours, images, 4) == pytest.approx(1 / 16, abs=0.01)
    small = F.avg_pool2d(fitted(colours, images, 4)(colours), 4)
    assert pixel_score(pixel_sums(small, colours)).r2 > 1 - 1e-4


def test_channels_that_say_nothing_or_the_same_are_no_trouble() -> None:
    torch.manual_seed(0)
    images = torch.rand(20, 3, 8, 8)
    pixels = F.pixel_unshuffle(images, 2)
    cells = torch.cat([pixels, torch.full_like(pixels[:, :2], 7.0), pixels[:, :5], torch.zeros_like(pixels[:, :1])], 1)
    assert explained(cells, images, 2) > 1 - 1e-4


def test_scores_are_those_of_other_libraries() -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 3, 8, 8) * torch.tensor([1.0, 0.5, 0.2])[:, None, None]
    predicted = images + 0.1 * torch.randn(6, 3, 8, 8)
    score = pixel_score(sum(pixel_sums(*some) for some in zip(predicted.split(4), images.split(4), strict=True)))
    by_colour = [one.transpose(0, 1).flatten(1).T.double().numpy() for one in (images, predicted)]
    assert score.r2 == pytest.approx(r2_score(*by_colour, multioutput="variance_weighted"), abs=1e-9)
    assert score.psnr == pytest.approx(peak_signal_noise_ratio(*by_colour, data_range=1.0), abs=1e-6)
