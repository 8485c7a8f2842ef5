"""Maps over one image, with a scale: what the cls token looks at, which patches are alike, what was predicted well."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from unveil.visualize.figures import as_picture, entitle, finish, new_figure, show
from unveil.visualize.pictures import masked_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIDE = 2.1
"""Of one panel, inches."""


def attention_picture(
    image: UInt8[Tensor, "3 h w"], attention: Float[Tensor, "heads n"], grid: tuple[int, int], title: str
) -> Image.Image:
    """Image, mean over the heads, and each head: how much the cls token takes from each patch.

    In units of what every patch would get if all got the same: 1 / n of the attention that goes to patches. One scale
    for all, up to the 99th percentile.
    """
    shares = attention / attention.sum(dim=1, keepdim=True) * attention.shape[1]
    top = max(1.0, float(shares.flatten().quantile(0.99)))
    count = 2 + len(shares)
    columns = min(6, math.ceil(math.sqrt(1.8 * count)))
    rows = math.ceil(count / columns)
    figure = new_figure(columns * SIDE + 0.8, rows * (SIDE + 0.2) + 0.4)
    entitle(figure, title)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    show_in(panels.flat[0], image, "image")
    drawn = _overlay(panels.flat[1], image, shares.mean(dim=0), grid, 0.0, top, "mean of the heads")
    for number, share in enumerate(shares):
        _overlay(panels.flat[2 + number], image, share, grid, 0.0, top, f"head {number}")
    _scale(figure, drawn, panels, "attention, times an even share", clipped=bool(shares.max() > top))
    return as_picture(figure)


def patch_similarity_picture(
    image: UInt8[Tensor, "3 h w"],
    features: Float[Tensor, "n d"],
    grid: tuple[int, int],
    patch: tuple[int, int],
    title: str,
) -> Image.Image:
    """Image with one patch (row, column) framed, and the cosine of its feature with every patch's."""
    unit = torch.nn.functional.normalize(features, dim=1)
    similarity = unit @ unit[patch[0] * grid[1] + patch[1]]
    figure = new_figure(2 * 1.6 * SIDE + 1.0, 1.6 * SIDE + 0.7)
    entitle(figure, title)
    panels = figure.subplots(1, 2, squeeze=False)
    show_in(panels[0, 0], image, f"patch in row {patch[0]}, column {patch[1]}")
    low = min(0.0, float(similarity.min()))
    drawn = _overlay(panels[0, 1], image, similarity, grid, low, 1.0, "its similarity to every patch", strength=0.8)
    for panel in panels.flat:
        _frame(panel, image, grid, patch)
    _scale(figure, drawn, panels, "cosine")
    return as_picture(figure)


def prediction_picture(
    image: UInt8[Tensor, "3 h w"],
    similarity: Float[Tensor, "n"],
    mask: Bool[Tensor, "n"],
    grid: tuple[int, int],
    title: str,
) -> Image.Image:
    """Image, what the network saw of it, and the cosine of its prediction with the teacher at each hidden patch."""
    figure = new_figure(3 * 1.4 * SIDE + 1.0, 1.4 * SIDE + 0.7)
    entitle(figure, title)
    panels = figure.subplots(1, 3, squeeze=False)
    show_in(panels[0, 0], image, "image")
    show_in(panels[0, 1], masked_image(image, mask, grid), f"what is seen of it ({(~mask).float().mean():.0%})")
    hidden = similarity.masked_fill(~mask, float("nan"))
    mean = float(similarity[mask].mean())
    drawn = _overlay(
        panels[0, 2], image, hidden, grid, 0.0, 1.0, f"prediction and target, mean {mean:.2f}", strength=1.0
    )
    _scale(figure, drawn, panels, "cosine")
    return as_picture(figure)


def reconstruction_picture(
    image: UInt8[Tensor, "3 h w"],
    reconstructed: UInt8[Tensor, "3 h w"],
    mask: Bool[Tensor, "n"],
    grid: tuple[int, int],
    title: str,
) -> Image.Image:
    """Image, what the network saw of it, and the image with its hidden patches as the network predicts them."""
    figure = new_figure(3 * 1.4 * SIDE, 1.4 * SIDE + 0.7)
    entitle(figure, title)
    panels = figure.subplots(1, 3, squeeze=False)
    show_in(panels[0, 0], image, "image")
    show_in(panels[0, 1], masked_image(image, mask, grid), f"what is seen of it ({(~mask).float().mean():.0%})")
    show_in(panels[0, 2], reconstructed, "the rest, predicted")
    return as_picture(figure)


def masks_picture(
    image: UInt8[Tensor, "3 h w"], masks: Bool[Tensor, "draws n"], grid: tuple[int, int], title: str
) -> Image.Image:
    """Image, and several draws of what is hidden of it."""
    columns = math.ceil((len(masks) + 1) / 2)
    figure = new_figure(columns * SIDE, 2 * (SIDE + 0.2) + 0.4)
    entitle(figure, title)
    panels = figure.subplots(2, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    show_in(panels[0, 0], image, "image")
    for number, mask in enumerate(masks, start=1):
        count = int(mask.sum())
        show_in(panels.flat[number], masked_image(image, mask, grid), f"{count} of {len(mask)} hidden")
    return as_picture(figure)


def show_in(axes: "Axes", picture: UInt8[Tensor, "3 h w"], title: str) -> None:
    """A picture in a panel that may have been switched off."""
    axes.set_axis_on()
    show(axes, picture, title)


def _overlay(
    axes: "Axes",
    image: UInt8[Tensor, "3 h w"],
    values: Float[Tensor, "n"],
    grid: tuple[int, int],
    low: float,
    high: float,
    title: str,
    *,
    strength: float = 0.75,
) -> "AxesImage":
    """The values in colour over the image in grey, whose own colours would be taken for values."""
    _, height, width = image.shape
    axes.set_axis_on()
    grey = image.float().mean(dim=0).numpy()
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    drawn = axes.imshow(
        values.view(grid).numpy(),
        cmap="viridis",
        vmin=low,
        vmax=high,
        alpha=strength,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )
    finish(axes, title)
    return drawn


def _frame(axes: "Axes", image: UInt8[Tensor, "3 h w"], grid: tuple[int, int], patch: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    height, width = image.shape[1] / grid[0], image.shape[2] / grid[1]
    corner = (patch[1] * width - 0.5, patch[0] * height - 0.5)
    for colour, thickness in (("white", 3.0), ("#d62728", 1.5)):
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=thickness))


def _scale(
    figure: "Figure", drawn: "AxesImage", panels: "Iterable[Axes]", label: str, *, clipped: bool = False
) -> None:
    """`clipped`: there are values above the scale, which an arrow says."""
    extend = "max" if clipped else "neither"
    bar: Any = figure.colorbar(drawn, ax=panels, shrink=0.8, aspect=30, pad=0.02, extend=extend)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    # Not as pale as the maps, under which the image shows.
    bar.solids.set_alpha(1.0)
    bar.outline.set_visible(False)
