"""What a fashion scene shows before it is drawn: a pure function of (split, number) under the garment settings."""

import functools
import random
from dataclasses import dataclass

from unveil.config import FashionScenes
from unveil.data.samples.garments import CLASS_NAMES, COLOUR_NAMES, load_garments
from unveil.data.samples.photos import PHOTOS

TRIES = 8
"""Places that are tried for a garment that shares its scene; the one that hides least is taken."""


@dataclass(frozen=True)
class Background:
    """A crop of a photo; the numbers are those of `photo_crop`."""

    photo: int
    side: float
    left: float
    top: float
    flip: bool


@dataclass(frozen=True)
class Placement:
    """One garment of a scene. Lengths are shares of the scene's side, so that it fits any size."""

    label: int
    garment: int
    """Which one of its class."""
    colour: str
    side: float
    x: float
    y: float
    """Centre."""
    flip: bool

    @property
    def caption(self) -> str:
        """Such as "a green sneaker"."""
        return describe(self.colour, CLASS_NAMES[self.label])


@dataclass(frozen=True)
class Composition:
    background: Background
    placements: tuple[Placement, ...]
    """From back to front."""


def compose(config: FashionScenes, number: int) -> Composition:
    """What scene `number` shows. Its first garment's class is balanced: see `balanced_label`."""
    if number < 0:
        raise ValueError(f"scene {number}: numbers start at 0")
    # Seeding with text hashes it with SHA-512: the same on every machine and in every process.
    rng = random.Random(f"{config.split} scene {number}")
    photo, crop_side = rng.randrange(len(PHOTOS)), 0.25 * 4 ** rng.random()
    background = Background(photo, crop_side, rng.random(), rng.random(), rng.random() < 0.5)
    per_class = load_garments(config.split).shade.shape[1]
    placements: list[Placement] = []
    for place in range(rng.randint(*config.garments)):
        label = rng.randrange(len(CLASS_NAMES))
        if place == 0:
            label = balanced_label(f"{config.split} class", number, len(CLASS_NAMES))
        garment, colour = rng.randrange(per_class), rng.choice(COLOUR_NAMES)
        side, flip = rng.uniform(*config.scale), rng.random() < 0.5
        # A garment may leave the scene by up to a twentieth of its side.
        slack = 1 - 0.9 * side
        tries = []
        for _ in range(TRIES if placements else 1):
            x, y = 0.5 + (rng.random() - 0.5) * slack, 0.5 + (rng.random() - 0.5) * slack
            tries.append(Placement(label, garment, colour, side, x, y, flip))
        placements.append(min(tries, key=lambda tried: sum(_overlap(tried, other) for other in placements)))
    return Composition(background, tuple(placements))


@functools.lru_cache(maxsize=1024)
def _shuffled(key: str, block: int, classes: int) -> tuple[int, ...]:
    labels = list(range(classes))
    random.Random(f"{key} {block}").shuffle(labels)
    return tuple(labels)


def balanced_label(key: str, number: int, classes: int) -> int:
    """A random label, of which numbers k x classes to (k + 1) x classes - 1 have one of each kind."""
    block, position = divmod(number, classes)
    return _shuffled(key, block, classes)[position]


def describe(colour: str, name: str) -> str:
    """Such as "a green sneaker" or "an orange bag"."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {name}"


def enumerate_words(words: list[str]) -> str:
    """One sentence part of all: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _overlap(one: Placement, other: Placement) -> float:
    """Common area of two garments' squares as a share of the smaller square."""
    reach, least = (one.side + other.side) / 2, min(one.side, other.side)
    width = min(reach - abs(one.x - other.x), least)
    height = min(reach - abs(one.y - other.y), least)
    return max(width, 0.0) * max(height, 0.0) / least**2
