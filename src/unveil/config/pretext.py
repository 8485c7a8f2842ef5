"""What is hidden, and what must be predicted."""

from dataclasses import dataclass
from typing import Literal

from unveil.config.errors import UnveilError


@dataclass(frozen=True, kw_only=True)
class BlockMasking:
    """Block-wise masking of BEiT and EVA: rectangles are hidden until `count` patches are, or no rectangle fits.

    So the number hidden varies a little below `count` (released code: 105 of 256 at most, 104.44 on average).
    """

    ratio: float = 0.4
    count: int | None = None
    """Patches hidden at most; left out: ratio x patches, rounded."""
    min_block: int | None = None
    """Smallest area a rectangle aims at, patches; left out: a sixteenth of the grid, 16 at most."""
    min_aspect: float = 0.3
    """Rectangles' height / width is drawn log-uniformly from [min_aspect, 1 / min_aspect]."""

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)
        if self.count is not None and self.count < 1:
            raise UnveilError(f"masking.count {self.count} hides nothing; give at least 1")
        if self.min_block is not None and self.min_block < 1:
            raise UnveilError(f"masking.min_block is {self.min_block}; it must be at least 1")
        if not 0.0 < self.min_aspect <= 1.0:
            raise UnveilError(f"masking.min_aspect {self.min_aspect} is not in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class RandomMasking:
    """Uniform random masking of MAE: exactly round(ratio x patches) are hidden."""

    ratio: float = 0.75

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)


def _check_ratio(ratio: float) -> None:
    if not 0.0 < ratio < 1.0:
        raise UnveilError(f"masking.ratio {ratio} must lie between 0 and 1: some patches hidden, some seen")


@dataclass(frozen=True, kw_only=True)
class ClipTarget:
    """Patch features of a CLIP vision tower as EVA uses them: cls dropped, final norm on the patches, projection.

    `name` is open_clip's MODEL/PRETRAINED ("ViT-L-14/openai"), or a local file of OpenAI's or open_clip's weights.
    """

    name: str = "ViT-L-14/openai"
    projected: bool = True
    """Projected features did better than those before the projection for base and large (a maintainer of EVA)."""
    resize_grid: bool = False
    """Resize the teacher's feature grid when it does not fit the student's; otherwise that is an error."""


@dataclass(frozen=True, kw_only=True)
class TimmTarget:
    """Patch features of any timm encoder by name ("vit_base_patch14_dinov2.lvd142m"), after its final norm."""

    name: str
    pretrained: bool = True
    file: str | None = None
    """Weights from a local file instead of the hub."""
    resize_grid: bool = False


@dataclass(frozen=True, kw_only=True)
class EmbeddedTarget:
    """The teacher that needs no download: EfficientNet-Lite0's last map, one cell on each patch of the student."""

    normalization: Literal["none", "centre", "standardize"] = "centre"
    """Of each channel, by fixed statistics. Its features are never negative and so all point the same way; with the
    common direction taken out a small student learned most (docs/lab_book.md)."""


@dataclass(frozen=True, kw_only=True)
class PixelTarget:
    """The hidden patches' own pixels."""

    normalize: bool = True
    """Subtract each patch's mean and divide by its standard deviation (MAE)."""


Masking = BlockMasking | RandomMasking
Target = ClipTarget | TimmTarget | EmbeddedTarget | PixelTarget
