"""The colour photos that the scikit-image and scikit-learn wheels carry, as backgrounds."""

import functools
import importlib.util
import math
from pathlib import Path

from PIL import Image, ImageFilter

from unveil.config import UnveilError

PHOTOS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
"""Package and file of each photo. All are inside the wheels: scikit-image's downloader is never asked."""

BLUR_CROP = 20
"""An out-of-focus crop is read from the level of the pyramid where its side has 20 to 40 pixels ..."""
BLUR_RADIUS = 1.5
"""... blurred by a Gaussian of this many of that level's pixels: 4 to 8 % of the scene's side."""


def photo_path(package: str, file: str) -> Path:
    """Where the photo lies, found without importing its package. Raises UnveilError when it is not installed."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (path := Path(folder) / file).is_file():
            return path
    raise UnveilError(f"the photo {package}/{file} is missing: reinstall scikit-image and scikit-learn")


@functools.cache
def _pyramid(number: int, blurred: bool) -> tuple[Image.Image, ...]:
    """The photo at sides 1, 1/2, 1/4, ... down to about 16 pixels, made once per process."""
    if blurred:
        return tuple(level.filter(ImageFilter.GaussianBlur(BLUR_RADIUS)) for level in _pyramid(number, False))
    path = photo_path(*PHOTOS[number])
    try:
        with Image.open(path) as file:
            levels = [file.convert("RGB")]
    except OSError as error:
        raise UnveilError(f"the photo {path} cannot be read ({error}): reinstall its package") from error
    while min(levels[-1].size) >= 32:
        levels.append(levels[-1].reduce(2))
    return tuple(levels)


def photo_crop(
    number: int, side: float, left: float, top: float, flip: bool, size: int, out_of_focus: bool
) -> Image.Image:
    """A square crop of photo `number`, `size` x `size` RGB.

    `side` is the crop's side as a share of the photo's short side; `left` and `top`, in [0, 1], say where the crop
    lies between the photo's edges.
    """
    sharp = _pyramid(number, False)
    width, height = sharp[0].size
    crop = side * min(width, height)
    wanted = BLUR_CROP if out_of_focus else size
    level = min(len(sharp) - 1, max(0, math.floor(math.log2(crop / wanted))))
    image = _pyramid(number, True)[level] if out_of_focus else sharp[level]
    # reduce() rounds odd sides up, so a level's scale is taken from its real size.
    scale_x, scale_y = image.width / width, image.height / height
    x, y = left * (width - crop), top * (height - crop)
    box = (x * scale_x, y * scale_y, (x + crop) * scale_x, (y + crop) * scale_y)
    result = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return result.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else result
