"""What probing RevColV2's levels leaves behind: the report, and a picture of what each level holds."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from unveil.build.probe_methods import Method
from unveil.build.probe_outputs import TITLES
from unveil.config import ProbeConfig
from unveil.tasks.classification.levels import RAW_SIDE, Level, LevelFeatures
from unveil.tasks.classification.pixel_readout import PixelReadout, PixelScore

PICTURE = "levels.png"


@dataclass(frozen=True, kw_only=True)
class MeasuredLevels:
    """What was found of one network: lists over its levels."""

    methods: list[dict[str, Any]]
    """Scores by method; perhaps followed by those of the image's own pixels."""
    readouts: list[PixelReadout]
    cells: list[int]
    """That each of them was fitted to."""
    pixels: list[PixelScore]
    """Pixel by pixel."""
    colours: list[PixelScore]
    """As small images."""
    unreadable: int
    """Validation images."""

    def described(self, levels: Sequence[Level]) -> list[dict[str, Any]]:
        """As in the report."""
        rows = zip(levels, self.methods[: len(levels)], self.cells, self.pixels, self.colours, strict=True)
        return [
            {
                **asdict(level),
                "methods": methods,
                "cells": cells,
                "pixels": _finite(pixels),
                "colours": _finite(colours),
            }
            for level, methods, cells, pixels, colours in rows
        ]


def level_report(
    config: ProbeConfig,
    levels: Sequence[Level],
    trained: MeasuredLevels,
    untrained: MeasuredLevels,
    *,
    training_images: int,
    pixel_images: dict[str, int],
    colour_side: int,
) -> dict[str, Any]:
    """As JSON values; shares are 0 to 1, and null is what cannot be told.

    Args:
        training_images: whose labels were learnt from, in each draw.
        pixel_images: to how many the pixel regressions were "fitted", and by how many they were "judged".
        colour_side: of the squares whose mean colours make the small images, pixels.
    """
    return {
        "recipe": config.recipe,
        "init_from": config.init_from,
        "image_size": config.model.image_size,
        "normalization": config.data.normalization,
        "classes": len(config.classes),
        "training_images": training_images,
        "draws": config.draws,
        "unreadable_validation_images": trained.unreadable,
        "pixel_images": pixel_images,
        "colour_side": colour_side,
        "levels": trained.described(levels),
        "untrained": untrained.described(levels),
        "raw_pixels": {"side": RAW_SIDE, "methods": trained.methods[-1]},
    }


def write_picture(
    out: Path,
    frozen: LevelFeatures,
    readouts: Sequence[PixelReadout],
    images: UInt8[Tensor, "b 3 h w"],
    report: dict[str, Any],
) -> None:
    """levels.png, of images that the readouts were not fitted to; none where there are no images.

    Raises:
        UnveilError: the disk is full or refuses.
    """
    from unveil.visualize.figures import save_picture
    from unveil.visualize.levels import LevelChart, ShownLevel, disentanglement_picture

    if not len(images):
        return
    shown = [
        ShownLevel(in_words(level.column), level.stride, readout(cells).cpu(), cells.cpu())
        for level, readout, cells in zip(frozen.levels, readouts, frozen.maps(images), strict=True)
    ]
    networks: list[list[dict[str, Any]]] = [report["levels"], report["untrained"]]
    method: Method = next(iter(networks[0][0]["methods"]))
    top1 = ([level["methods"][method]["top1"] for level in network] for network in networks)
    pixels = ([level["pixels"]["r2"] for level in network] for network in networks)
    colours = ([level["colours"]["r2"] for level in network] for network in networks)
    charts = [
        LevelChart(f"classes: top-1 of {TITLES[method]}", *top1),
        LevelChart("pixels: R²", *pixels),
        LevelChart(f"mean colours of {report['colour_side']} px squares: R²", *colours),
    ]
    save_picture(disentanglement_picture(images, shown, charts), out / PICTURE)


def in_words(column: str) -> str:
    """bottom-up or top-down."""
    return column.replace("_", "-")


def _finite(score: PixelScore) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in asdict(score).items()}
