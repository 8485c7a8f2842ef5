"""Moving fashion scenes: how the garments of a clip travel, turn or come nearer, and its frames."""

import math
import random
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from unveil.config import FashionScenes
from unveil.data.samples.composition import Placement, balanced_label
from unveil.data.samples.garments import dyed, garment_planes

MOTION_NAMES = ("left", "right", "up", "down", "clockwise", "counterclockwise", "approaching", "receding")
"""What the garments of a clip do; the position is the label. Each comes with its opposite, which is the same
clip played backwards: only the order of the frames tells them apart."""

HEADINGS = {"right": 0.0, "down": 0.5, "left": 1.0, "up": 1.5}
"""Angle from "right", clockwise, in half turns."""


@dataclass(frozen=True)
class Motion:
    """Path of one garment. Lengths are shares of the scene's side; time runs from -0.5 to 0.5."""

    direction: float
    """Where it heads, radians, clockwise from "right"."""
    distance: float
    bend: float
    """How far the path's ends lie to the side of its middle."""
    tilt: float
    """Angle in the middle of the clip, radians, clockwise."""
    turn: float
    """Angle of the whole turn, radians, clockwise."""
    growth: float
    """Natural logarithm of last by first side."""

    def at(self, time: float) -> tuple[float, float, float, float]:
        """Shift right, shift down, angle, and factor of the side."""
        along, across = self.distance * time, self.bend * (4 * time * time - 1 / 3)
        cosine, sine = math.cos(self.direction), math.sin(self.direction)
        x, y = along * cosine - across * sine, along * sine + across * cosine
        return x, y, self.tilt + self.turn * time, math.exp(self.growth * time)


def motion_label(split: str, number: int) -> int:
    """What the garments of clip `number` do: balanced over each block of eight clips."""
    return balanced_label(f"{split} motion", number, len(MOTION_NAMES))


def motion_phrase(label: int) -> str:
    """What a caption says of it, such as "moving left" or "turning clockwise"."""
    name = MOTION_NAMES[label]
    return f"moving {name}" if name in HEADINGS else f"turning {name}" if name.endswith("clockwise") else name


def motions(split: str, number: int, garments: int) -> list[Motion]:
    """The paths of a clip's garments: all do the same, each at its own pace."""
    name = MOTION_NAMES[motion_label(split, number)]
    rng = random.Random(f"{split} motion of clip {number}")
    paths = []
    for _ in range(garments):
        if name in HEADINGS:
            direction = (HEADINGS[name] + rng.uniform(-0.12, 0.12)) * math.pi
            distance, bend = rng.uniform(0.3, 0.6), rng.uniform(-0.12, 0.12)
        else:
            # The rest drifts a little anywhere, so that standing still tells nothing.
            direction = rng.uniform(0, 2 * math.pi)
            distance, bend = rng.uniform(0.0, 0.15), rng.uniform(-0.05, 0.05)
        turn = rng.uniform(0.4, 0.8) * math.pi * {"clockwise": 1, "counterclockwise": -1}.get(name, 0)
        growth = rng.uniform(0.5, 0.9) * {"approaching": 1, "receding": -1}.get(name, 0)
        # Upright in the middle, a garment's lean in the first frame would give away where it turns.
        tilt = rng.uniform(-math.pi, math.pi) if turn else rng.uniform(-0.5, 0.5)
        paths.append(Motion(direction, distance, bend, tilt, turn, growth))
    return paths


def draw_clip(
    config: FashionScenes, number: int, frames: int, background: Image.Image, placements: tuple[Placement, ...]
) -> UInt8[np.ndarray, "frames h w 3"]:
    """The garments at their scene's places in the middle of the clip, moving over its still background."""
    size = config.size
    paths = motions(config.split, number, len(placements))
    planes = []
    for placement in placements:
        # Enlarged once; the frames then only move, turn and slightly resize it.
        side = round(placement.side * size)
        planes.append(garment_planes(config.split, placement.label, placement.garment, side, placement.flip))
    clip = np.empty((frames, size, size, 3), np.uint8)
    for frame in range(frames):
        image = background.copy()
        for placement, path, (shade, alpha) in zip(placements, paths, planes, strict=True):
            x, y, angle, factor = path.at((frame + 0.5) / frames - 0.5)
            centre = (placement.x + x) * size, (placement.y + y) * size
            corner, shade, alpha = _moved(shade, alpha, centre, angle, factor)
            image.paste(dyed(shade, placement.colour), corner, alpha)
        clip[frame] = np.asarray(image)
    return clip


def _moved(
    shade: Image.Image, alpha: Image.Image, centre: tuple[float, float], angle: float, factor: float
) -> tuple[tuple[int, int], Image.Image, Image.Image]:
    """Both planes turned about their middle, resized, and put at `centre` to a fraction of a pixel."""
    cosine, sine = math.cos(angle), math.sin(angle)
    half = shade.width / 2
    reach = half * factor * (abs(cosine) + abs(sine))
    left, top = math.floor(centre[0] - reach), math.floor(centre[1] - reach)
    region = math.ceil(centre[0] + reach) - left, math.ceil(centre[1] + reach) - top
    # Where each pixel of the region comes from: the inverse turn about the centre.
    a, b = cosine / factor, sine / factor
    x, y = left - centre[0], top - centre[1]
    matrix = (a, b, half + a * x + b * y, -b, a, half - b * x + a * y)
    moved_shade, moved_alpha = (
        plane.transform(region, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR) for plane in (shade, alpha)
    )
    return (left, top), moved_shade, moved_alpha
