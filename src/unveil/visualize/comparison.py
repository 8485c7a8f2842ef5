"""Accuracy against the length of pre-training, one line for each recipe."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from unveil.visualize.figures import as_picture, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Measured = tuple[str, float | None, list[float]]
"""Name, epochs of pre-training (None: there was none, a level to be beaten) and accuracies, 0 to 1."""

COLOURS = ("#1f4e79", "#c0504d", "#4f8a3c", "#8064a2", "#d98e04", "#2b9aa0", "#7f5a3c", "#555555")
LEVELS = ("#888888", "#bbbbbb", "#444444")


def comparison_picture(panels: Mapping[str, Sequence[Measured]]) -> Image.Image:
    """A panel for each title. Bars are standard deviations, where there are several accuracies."""
    figure = new_figure(4.6 * len(panels), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (title, measured) in zip(axes, panels.items(), strict=True):
        _draw(place, title, [one for one in measured if one[2]])
    handles = {
        label: handle for place in axes for handle, label in zip(*place.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return as_picture(figure)


def _draw(axes: "Axes", title: str, measured: Sequence[Measured]) -> None:
    names = list(dict.fromkeys(name for name, epochs, _ in measured if epochs is not None))
    for number, name in enumerate(names):
        points = sorted((epochs, values) for other, epochs, values in measured if other == name and epochs is not None)
        axes.errorbar(
            [epochs for epochs, _ in points],
            [100 * statistics.mean(values) for _, values in points],
            yerr=[100 * statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points],
            marker="o",
            markersize=4,
            capsize=3,
            linewidth=1.6,
            color=COLOURS[number % len(COLOURS)],
            label=name,
        )
    levels = [(name, values) for name, epochs, values in measured if epochs is None]
    for number, (name, values) in enumerate(levels):
        colour = LEVELS[number % len(LEVELS)]
        axes.axhline(100 * statistics.mean(values), linestyle="--", linewidth=1.2, color=colour, label=name)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epochs of pre-training")
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
