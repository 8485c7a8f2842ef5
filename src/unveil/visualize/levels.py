"""What the levels of RevColV2's columns hold, side by side: what each says of the pixels, its features, its scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from unveil.visualize.figures import as_picture, new_figure, show
from unveil.visualize.pictures import pca_pictures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

SIDE = 1.2
"""Of one panel, inches."""
CHART = 2.6
"""Height of the charts, inches."""
TRAINED, UNTRAINED = "#1f4e79", "#bbbbbb"


@dataclass(frozen=True)
class ShownLevel:
    """One level, and what is to be seen of it."""

    column: str
    """Such as "bottom-up"."""
    stride: int
    """Pixels from cell to cell."""
    said: Float[Tensor, "b 3 h w"]
    """The images that its cells say, 0 to 1 but for mistakes."""
    maps: Float[Tensor, "b c rows columns"]


@dataclass(frozen=True)
class LevelChart:
    """One number of each level."""

    title: str
    trained: Sequence[float | None]
    """None: not known."""
    untrained: Sequence[float | None]


def disentanglement_picture(
    images: UInt8[Tensor, "b 3 h w"], levels: Sequence[ShownLevel], charts: Sequence[LevelChart]
) -> Image.Image:
    """Of each image two rows: what each level says of its pixels, and the main directions of the level's features.

    Args:
        levels: those of a column next to each other.
        charts: below, with a bar for each level.
    """
    figure = new_figure((1 + len(levels)) * SIDE, 2 * len(images) * SIDE + 0.8 + CHART)
    above, below = figure.subfigures(2, 1, height_ratios=(2 * len(images) * SIDE + 0.8, CHART))
    _draw_images(above, images, levels)
    row = below.subplots(1, len(charts), squeeze=False)[0]
    for axes, chart in zip(row, charts, strict=True):
        _draw_chart(axes, levels, chart)
    below.legend(*row[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return as_picture(figure)


def _draw_images(figure: "SubFigure", images: UInt8[Tensor, "b 3 h w"], levels: Sequence[ShownLevel]) -> None:
    figure.suptitle(
        "upper rows: what each level's cells say of their pixels; lower rows: main directions of their features",
        fontsize=10,
        color="#222222",
    )
    size = (images.shape[2], images.shape[3])
    panels = figure.subplots(2 * len(images), 1 + len(levels), squeeze=False)
    for row, image in enumerate(images):
        show(panels[2 * row, 0], image, "image" if row == 0 else "")
        panels[2 * row + 1, 0].set_axis_off()
    for column, level in enumerate(levels, start=1):
        title = f"{level.column}, {level.stride} px"
        grid = (level.maps.shape[2], level.maps.shape[3])
        directions = pca_pictures(level.maps.flatten(2).transpose(1, 2), grid, size)
        as_bytes = (level.said.clamp(0, 1) * 255).round().to(torch.uint8)
        for row, (said, colours) in enumerate(zip(as_bytes, directions, strict=True)):
            show(panels[2 * row, column], said, title if row == 0 else "")
            show(panels[2 * row + 1, column], colours, "")


def _draw_chart(axes: "Axes", levels: Sequence[ShownLevel], chart: LevelChart) -> None:
    for shift, width, values, colour, label in (
        (-0.2, 0.4, chart.trained, TRAINED, "trained"),
        (0.2, 0.4, chart.untrained, UNTRAINED, "untrained"),
    ):
        heights = [float("nan") if value is None else value for value in values]
        places = [place + shift for place in range(len(levels))]
        bars = axes.bar(places, heights, width, color=colour, label=label)
        axes.bar_label(bars, ["" if value is None else f"{value:.2f}" for value in values], fontsize=5, padding=1)
    axes.set_title(chart.title, fontsize=9, color="#222222")
    axes.set_xticks(range(len(levels)), [f"{level.stride} px" for level in levels], fontsize=8)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=8)
    axes.axhline(0.0, color="#999999", linewidth=0.8)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    columns = [level.column for level in levels]
    for name in dict.fromkeys(columns):
        middle = columns.index(name) + (columns.count(name) - 1) / 2
        axes.text(middle, -0.19, name, transform=axes.get_xaxis_transform(), ha="center", fontsize=8, color="#222222")
