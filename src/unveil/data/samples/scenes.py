"""Fashion scenes: garments dyed in random colours on crops of real photos, each scene a pure function of its number."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from unveil.config import FashionScenes, UnveilError
from unveil.data.samples.composition import Background, Composition, Placement, compose, enumerate_words
from unveil.data.samples.garments import ASSET, CLASS_NAMES, COLOUR_NAMES, dyed, garment_planes
from unveil.data.samples.motion import MOTION_NAMES, draw_clip, motion_label, motion_phrase
from unveil.data.samples.photos import PHOTOS, photo_crop, photo_path
from unveil.data.sources.base import Sample

__all__ = ["CLASS_NAMES", "COLOUR_NAMES", "MOTION_NAMES", "Clip", "FashionSceneSource", "Garment", "Scene"]

RENDERING = 1
"""Part of every digest: raise it when a change here makes the same number give another picture than before."""

LEAST_SIDE = 6
"""A garment of fewer pixels shows nothing."""

LEAST_VISIBLE = 0.1
"""A garment of which less than this share would show behind the others is left out of the scene."""


@dataclass(frozen=True)
class Garment:
    """One garment as it shows in a scene."""

    label: int
    colour: str
    caption: str
    """Such as "a green sneaker"."""
    box: tuple[int, int, int, int]
    """Left, top, width, height of the visible part, pixels."""
    mask: Bool[np.ndarray, "h w"]
    """The visible part: no two garments of a scene share a pixel."""

    @property
    def area(self) -> int:
        """Visible pixels."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True)
class Scene:
    """A drawn scene with everything that is known about it."""

    image: UInt8[np.ndarray, "h w 3"]
    garments: tuple[Garment, ...]
    """From back to front."""

    @property
    def label(self) -> int:
        """Class of the garment that shows most."""
        return max(self.garments, key=lambda garment: garment.area).label

    @property
    def caption(self) -> str:
        """Such as "a green sneaker and a pink bag"."""
        return enumerate_words([garment.caption for garment in self.garments])

    @property
    def semantic_mask(self) -> UInt8[np.ndarray, "h w"]:
        """0 = background, otherwise class + 1."""
        mask = np.zeros(self.image.shape[:2], np.uint8)
        for garment in self.garments:
            mask[garment.mask] = garment.label + 1
        return mask


@dataclass(frozen=True)
class Clip:
    """A scene whose garments move."""

    frames: UInt8[np.ndarray, "frames h w 3"]
    motion: int
    """Position in MOTION_NAMES."""
    label: int
    """Class of the first garment."""
    caption: str
    """Such as "a green sneaker turning clockwise"."""


class FashionSceneSource:
    """Source of `config.count` scenes from number `config.first` on; every other number can be drawn as well.

    The first garments of scenes 10 k to 10 k + 9 are one of each class, so that labels are balanced. What a scene
    shows is drawn from (split, number) under the garment settings and not from the size: it is the same at every size.
    Both splits use the same photos, and no garment is in both.
    """

    def __init__(self, config: FashionScenes) -> None:
        fewest, most = config.garments
        if config.count < 1 or config.first < 0:
            raise UnveilError(f"fashion scenes need count >= 1 and first >= 0, not {config.count} and {config.first}")
        if not 1 <= fewest <= most:
            raise UnveilError(f"garments {config.garments} of the fashion scenes must be 1 <= fewest <= most")
        if not 0.0 < config.scale[0] <= config.scale[1] <= 1.0:
            raise UnveilError(f"scale {config.scale} of the fashion scenes must be 0 < least <= most <= 1")
        if config.scale[0] * config.size < LEAST_SIDE:
            raise UnveilError(
                f"a garment of {config.scale[0]} x {config.size} pixels is smaller than {LEAST_SIDE} pixels: "
                "raise the size of the fashion scenes or their least scale"
            )
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.config.count:
            raise IndexError(f"scene {index} of {self.config.count}")
        number = self.config.first + index
        composition = compose(self.config, number)
        if len(composition.placements) > 1:
            scene = self._draw(composition)
            return Sample(Image.fromarray(scene.image), f"scene {number}", scene.label, index, (scene.caption,))
        # Nothing hides a garment that is alone: no need for masks, which would take as long as all the rest.
        image = self._draw_background(composition.background)
        placement = composition.placements[0]
        self._layer(placement).paste_on(image)
        return Sample(image, f"scene {number}", placement.label, index, (placement.caption,))

    def digest(self) -> dict[str, dict[str, Any]]:
        """One part, named by the split; the hash covers the settings, the garments and the photos."""
        hasher = hashlib.sha256(json.dumps([RENDERING, asdict(self.config)], sort_keys=True).encode())
        for path in (ASSET, *(photo_path(*photo) for photo in PHOTOS)):
            hasher.update(path.read_bytes())
        return {f"fashion scenes, {self.config.split}": {"count": len(self), "sha256": hasher.hexdigest()}}

    def scene(self, number: int) -> Scene:
        """Scene `number` (from 0, endless, whatever `first` and `count` are) with boxes, masks and caption."""
        return self._draw(compose(self.config, number))

    def clip(self, number: int, frames: int) -> Clip:
        """Scene `number` in motion. Garments that hide one another stay in the caption: they may come to light."""
        composition = compose(self.config, number)
        background = self._draw_background(composition.background)
        pixels = draw_clip(self.config, number, frames, background, composition.placements)
        motion = motion_label(self.config.split, number)
        words = enumerate_words([placement.caption for placement in composition.placements])
        return Clip(pixels, motion, composition.placements[0].label, f"{words} {motion_phrase(motion)}")

    def _draw(self, composition: Composition) -> Scene:
        size = self.config.size
        free = np.ones((size, size), bool)
        shown: list[tuple[_Layer, Garment]] = []
        for placement in reversed(composition.placements):
            layer = self._layer(placement)
            whole = layer.mask(size)
            visible = whole & free
            if np.count_nonzero(visible) <= LEAST_VISIBLE * np.count_nonzero(whole):
                continue
            free &= ~whole
            garment = Garment(placement.label, placement.colour, placement.caption, tight_box(visible), visible)
            shown.insert(0, (layer, garment))
        image = self._draw_background(composition.background)
        for layer, _ in shown:
            layer.paste_on(image)
        return Scene(np.array(image), tuple(garment for _, garment in shown))

    def _draw_background(self, background: Background) -> Image.Image:
        return photo_crop(
            background.photo,
            background.side,
            background.left,
            background.top,
            background.flip,
            self.config.size,
            self.config.out_of_focus,
        )

    def _layer(self, placement: Placement) -> "_Layer":
        size = self.config.size
        side = round(placement.side * size)
        shade, alpha = garment_planes(self.config.split, placement.label, placement.garment, side, placement.flip)
        corner = round(placement.x * size - side / 2), round(placement.y * size - side / 2)
        return _Layer(dyed(shade, placement.colour), alpha, corner)


@dataclass(frozen=True)
class _Layer:
    """A garment ready to be pasted."""

    image: Image.Image
    alpha: Image.Image
    corner: tuple[int, int]
    """Left, top in the scene; either may be negative."""

    def paste_on(self, image: Image.Image) -> None:
        image.paste(self.image, self.corner, self.alpha)

    def mask(self, size: int) -> Bool[np.ndarray, "h w"]:
        """Its pixels of at least half the greatest opacity: thin straps drawn very small never get beyond half."""
        canvas = Image.new("L", (size, size))
        canvas.paste(self.alpha, self.corner)
        opacity = np.asarray(canvas)
        return opacity > opacity.max() // 2


def tight_box(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """Left, top, width, height of the smallest box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top
