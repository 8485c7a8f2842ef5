"""Principal components of patch features as colours, over several images at once."""

import math
from collections.abc import Mapping, Sequence

from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from unveil.visualize.figures import as_picture, entitle, new_figure
from unveil.visualize.maps import SIDE, show_in
from unveil.visualize.pictures import pca_pictures

PAIRS_A_ROW = 5
"""At most."""


def components_picture(
    images: Sequence[UInt8[Tensor, "3 h w"]],
    features: Float[Tensor, "b n d"],
    grid: tuple[int, int],
    names: Sequence[str],
    title: str,
) -> Image.Image:
    """Each image beside its patches, coloured by the three main directions of all images' features."""
    size = (images[0].shape[1], images[0].shape[2])
    colours = pca_pictures(features, grid, size)
    pairs = min(PAIRS_A_ROW, math.ceil(math.sqrt(len(images) / 2)))
    rows = math.ceil(len(images) / pairs)
    figure = new_figure(2 * pairs * SIDE, rows * (SIDE + 0.25) + 0.4)
    entitle(figure, title)
    panels = figure.subplots(rows, 2 * pairs, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    for place, (image, colour, name) in enumerate(zip(images, colours, names, strict=True)):
        show_in(panels.flat[2 * place], image, name)
        show_in(panels.flat[2 * place + 1], colour, "")
    return as_picture(figure)


def levels_picture(
    images: Sequence[UInt8[Tensor, "3 h w"]],
    maps: Mapping[int, Float[Tensor, "b _ _ _"]],
    names: Sequence[str],
    title: str,
) -> Image.Image:
    """A row for each image: the image, then each level's cells, coloured by the level's main directions.

    Args:
        maps: by stride in pixels of the network's input, "b c rows columns".
    """
    size = (images[0].shape[1], images[0].shape[2])
    figure = new_figure((1 + len(maps)) * SIDE, len(images) * (SIDE + 0.25) + 0.4)
    entitle(figure, title)
    panels = figure.subplots(len(images), 1 + len(maps), squeeze=False)
    for row, (image, name) in enumerate(zip(images, names, strict=True)):
        show_in(panels[row, 0], image, name)
    for column, (stride, level) in enumerate(maps.items(), start=1):
        cells, grid = level.flatten(2).transpose(1, 2), (level.shape[2], level.shape[3])
        for row, colours in enumerate(pca_pictures(cells, grid, size)):
            show_in(panels[row, column], colours, f"cells of {stride} px" if row == 0 else "")
    return as_picture(figure)
