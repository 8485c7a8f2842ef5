"""The garments that ship with the package: a subset of Fashion-MNIST (assets/README.md says which), ready to dye."""

import functools
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unveil.config import UnveilError

CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""Fashion-MNIST's ten classes; the position is the label."""

COLOURS = {
    "red": (214, 32, 38),
    "orange": (255, 130, 20),
    "yellow": (250, 218, 40),
    "green": (40, 160, 60),
    "turquoise": (40, 205, 200),
    "blue": (40, 80, 220),
    "purple": (140, 50, 180),
    "pink": (255, 135, 190),
    "brown": (130, 80, 45),
    "white": (245, 245, 245),
}
"""The dyes: RGB of brightly lit cloth."""

COLOUR_NAMES = tuple(COLOURS)

ASSET = Path(__file__).with_name("assets") / "garments.npz"

NOISE = 8
"""Compression left values up to about 8 of 255 on Fashion-MNIST's black background; dark cloth starts above."""


@dataclass(frozen=True)
class Garments:
    """All garments of one split: first axis the class, second the garment."""

    shade: UInt8[np.ndarray, "classes each 28 28"]
    """Brightness, stretched so that a dark garment shows its dye as well as a bright one."""
    alpha: UInt8[np.ndarray, "classes each 28 28"]
    """Opacity: 0 on the background, 255 inside, the covered share of a pixel along the outline."""


def _around(values: np.ndarray, combine: Callable[..., Any]) -> np.ndarray:
    """Each pixel combined with its neighbours: a 3 x 3 filter over the last two axes that stays inside the picture."""
    rows = values.copy()
    combine(rows[..., 1:, :], values[..., :-1, :], out=rows[..., 1:, :])
    combine(rows[..., :-1, :], values[..., 1:, :], out=rows[..., :-1, :])
    result = rows.copy()
    combine(result[..., 1:], rows[..., :-1], out=result[..., 1:])
    combine(result[..., :-1], rows[..., 1:], out=result[..., :-1])
    return result


def cut_out(pixels: UInt8[np.ndarray, "classes each 28 28"]) -> Garments:
    """Separates garments from their black background.

    Dark prints inside a garment stay opaque; at the outline the opacity is the pixel's brightness relative to the
    brightest cloth beside it, and the shade is taken from the inside, so that no black seam is left.
    """
    cloth = (pixels > NOISE).view(np.uint8)
    cloth = np.maximum(cloth, _around(cloth, np.add) >= 7)
    inside = _around(cloth, np.minimum)
    # Frames of some pictures hold a dark line, which is no cloth.
    inside[..., [0, -1], :] = 0
    inside[..., [0, -1]] = 0
    brightest = np.maximum(_around(pixels, np.maximum), 60)
    covered = (np.maximum(pixels, NOISE) - np.uint16(NOISE)) * np.uint16(255) // (brightest - brightest // 5)
    alpha = np.where(inside > 0, 255, np.minimum(covered, 255)).astype(np.uint8)

    solid = (alpha >= 200).view(np.uint8)
    neighbours = np.maximum(_around(solid, np.add), 1)
    inner = _around(pixels * solid.astype(np.uint16), np.add) // neighbours
    shade = np.where(solid > 0, pixels, inner).astype(np.uint16)
    # The 97th percentile of the 784 pixels: single bright pixels say nothing about the cloth.
    light = np.partition(pixels.reshape(*pixels.shape[:2], -1), 760, axis=-1)[..., 760, None, None]
    shade = np.minimum(shade * np.uint16(255) // np.maximum(light, 1), 255).astype(np.uint8)
    return Garments(shade, alpha)


@functools.cache
def load_garments(split: Literal["train", "test"]) -> Garments:
    """The split's garments, read once per process. Raises UnveilError when the installation lacks them."""
    try:
        with np.load(ASSET, allow_pickle=False) as file:
            pixels = file[split]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UnveilError(f"the embedded garments {ASSET} cannot be read ({error}): reinstall unveil") from error
    return cut_out(pixels)


def garment_planes(
    split: Literal["train", "test"], label: int, garment: int, side: int, flip: bool
) -> tuple[Image.Image, Image.Image]:
    """Shade and opacity of one garment, enlarged to `side` x `side` greyscale images."""
    garments = load_garments(split)
    planes = []
    for stored in (garments.shade, garments.alpha):
        plane = Image.fromarray(stored[label, garment]).resize((side, side), Image.Resampling.BICUBIC)
        planes.append(plane.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else plane)
    return planes[0], planes[1]


@functools.cache
def _palette(colour: str) -> bytes:
    light = 0.3 + 0.7 * np.arange(256) / 255
    return np.round(light[:, None] * np.array(COLOURS[colour])).astype(np.uint8).tobytes()


def dyed(shade: Image.Image, colour: str) -> Image.Image:
    """Cloth of this brightness in this colour, RGB."""
    image = shade.copy()
    image.putpalette(_palette(colour))
    return image.convert("RGB")
