"""From a target's configuration to the teacher itself."""

from unveil.config import ClipTarget, EmbeddedTarget, HogTarget, PixelTarget, TimmTarget
from unveil.config.pretext import FrozenTarget
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.clip import load_clip
from unveil.pretext.targets.embedded import EmbeddedTeacher
from unveil.pretext.targets.hog import HogPatches
from unveil.pretext.targets.pixels import PixelPatches
from unveil.pretext.targets.timm import load_timm


def build_target(config: FrozenTarget, *, grid: tuple[int, int], patch_size: int) -> Target:
    """The teacher for a student of `grid` patches, `patch_size` pixels each.

    Raises:
        UnveilError: name unknown, hub not reachable, weights unreadable, features that do not fall on the patches.
    """
    match config:
        case EmbeddedTarget():
            return EmbeddedTeacher(grid, normalization=config.normalization)
        case PixelTarget():
            return PixelPatches(
                grid, patch_size=patch_size, normalize=config.normalize, normalized_side=config.normalized_side
            )
        case HogTarget():
            return HogPatches(config, grid, patch_size=patch_size)
        case ClipTarget():
            return load_clip(config, grid=grid)
        case TimmTarget():
            return load_timm(
                config.name,
                grid=grid,
                projected=False,
                pretrained=config.pretrained,
                file=config.file,
                layers=config.layers,
                resize_grid=config.resize_grid,
            )
