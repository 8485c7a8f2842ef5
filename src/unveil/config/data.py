"""Where the images come from and how they are cropped."""

from dataclasses import dataclass
from typing import Literal

from unveil.config.errors import UnveilError


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """Folders (searched recursively, symlinks followed), WebDataset tars, single images; joined in order."""

    paths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FashionScenes:
    """The embedded sample set: real garments, dyed, on crops of real photos. A scene is a function of its number."""

    split: Literal["train", "test"] = "train"
    count: int = 10_000
    size: int = 28
    """Side of a scene, pixels."""
    garments: tuple[int, int] = (1, 1)
    """Fewest and most garments in one scene."""
    scale: tuple[float, float] = (0.7, 1.0)
    """A garment's side as a share of the scene's, least and most."""
    out_of_focus: bool = True
    """Blur the photo behind the garments."""
    first: int = 0
    """Number of the first scene."""


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """A crop of random area and aspect, resized to the model's input (bicubic)."""

    scale: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area, least and most (paper section 2.2)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height, least and most."""

    def __post_init__(self) -> None:
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise UnveilError(f"crop.scale {self.scale} must be 0 < least <= most <= 1")
        if not 0.0 < self.ratio[0] <= self.ratio[1]:
            raise UnveilError(f"crop.ratio {self.ratio} must be 0 < least <= most")


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """The same crop every time: short side resized to size / share, then the middle."""

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise UnveilError(f"crop.share {self.share} is not in (0, 1]")


Source = ImageFiles | FashionScenes
Crop = RandomResizedCrop | CenterCrop


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: Source = ImageFiles()
    validation: Source | None = None
    crop: Crop = RandomResizedCrop()
    flip: bool = True
    """Mirror half of the images left to right."""
    normalization: Literal["clip", "imagenet", "half"] = "clip"
    """Mean and standard deviation of the student's input ("half": 0.5, as Google's ViTs have it); the teacher always
    gets its own."""
    workers: int | None = None
    """Processes that read images; left out: chosen from the machine."""
    max_unreadable_share: float = 0.01
    """Stop when more than this share of the samples read so far could not be read."""
    resize_on: Literal["workers", "device"] = "workers"
    """Who resizes crops. "device" (pre-training only): the workers cut them out, and the device resizes a batch of them
    at once. Crops and mirroring are the same; pixels differ by at most 1 of 255, and may from device to device, so that
    no such run is promised to be the same elsewhere."""
    decode_on: Literal["workers", "device"] = "workers"
    """Who decodes JPEGs. "device" (with `resize_on`): a GPU's own decoder, whose pixels differ a little from those of
    others. The workers decode what it does not take: other formats, and photos to be turned."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise UnveilError(f"data.workers is {self.workers}; it must not be less than 0")
        if self.decode_on == "device" and self.resize_on != "device":
            raise UnveilError("data.decode_on=device needs crops to be resized there, too: add data.resize_on=device")
        if not 0.0 <= self.max_unreadable_share <= 1.0:
            raise UnveilError(f"data.max_unreadable_share {self.max_unreadable_share} is not in [0, 1]")
