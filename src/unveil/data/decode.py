"""Any image file to 8-bit RGB, upright; or a named reason why it cannot be read."""

import io
import warnings

import numpy as np
from PIL import Image, JpegImagePlugin

from unveil.data.sources.base import UnreadableSample

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})
"""Of the files that count as images, in lower case."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Tried by content, whatever the file is called. Nothing else is: Pillow's reader of EPS starts another program."""

PIXEL_LIMIT = 100_000_000
"""Most pixels that are decoded, 4 bytes each; a larger JPEG is decoded at a half, quarter or eighth of its size."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: white, the page that cut-outs and drawings are made for."""

BIT_DEPTHS = (8, 10, 12, 14, 16)
"""Of what cameras, scanners and microscopes write into files of 16 bits."""

JPEG_START = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(file: str | bytes, name: str, shortest_side: int | None = None) -> Image.Image:
    """The image in a file (a path, or the file's bytes), loaded, RGB.

    - EXIF orientation is applied: a camera held upright stores the picture on its side and says so there, and every
      viewer and teacher network expects it upright.
    - More than 8 bits are scaled, not clipped: by the bit depth that the brightest pixel needs, since a file of 16 bits
      often holds a sensor's 12, or by the values' own range where they are fractions beyond 0..1 or negative.
    - Transparency is composited on `BACKGROUND`. Animations give their first frame. CMYK, grey, palettes are converted.

    Args:
        name: what errors call the image.
        shortest_side: a JPEG is decoded at a half, a quarter or an eighth of its size as long as its shorter side keeps
            this many pixels, which saves most of the time of a camera's photo; None: at full size.

    Raises:
        UnreadableSample: cut off, corrupt, empty, not an image, not accessible, or larger than `PIXEL_LIMIT`.
    """
    try:
        # What Pillow would warn of is either harmless or comes back as an error.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open(file, "rb") if isinstance(file, str) else io.BytesIO(file) as stream:
                return _decode(stream, name, shortest_side)
    except UnreadableSample:
        raise
    except Exception as error:
        # Pillow's readers let nearly every kind of exception out where a file is corrupt.
        raise UnreadableSample(name, _reason(error)) from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, turned as its EXIF orientation says (see `decode_image`)."""
    turn = _TURNS.get(orientation(image))
    image = _to_rgb(image)
    return image if turn is None else image.transpose(turn)


def _decode(stream: io.BufferedReader | io.BytesIO, name: str, shortest_side: int | None) -> Image.Image:
    start = stream.read(len(JPEG_START))
    stream.seek(0)
    if not start:
        raise UnreadableSample(name, "the file is empty (0 bytes)")
    if start == JPEG_START:
        # Image.open would refuse a large one before it can be decoded at a smaller scale.
        image: Image.Image = JpegImagePlugin.JpegImageFile(stream)
        _draft(image, shortest_side)
    else:
        image = Image.open(stream, formats=FORMATS)
    if image.width * image.height > PIXEL_LIMIT:
        raise UnreadableSample(name, f"{image.width} x {image.height} pixels: {_TOO_LARGE}")
    image.load()
    return upright_rgb(image)


_TOO_LARGE = f"more than the {PIXEL_LIMIT:,} that are decoded; cut it into tiles or shrink it"


def _draft(image: Image.Image, shortest_side: int | None) -> None:
    """Choose the scale at which libjpeg decodes."""
    width, height = image.size
    if "progressive" in image.info and width * height > PIXEL_LIMIT:
        # Its coefficients are all held in memory, whatever the scale.
        return
    scale = 1
    while scale < 8 and (
        width * height > PIXEL_LIMIT * scale**2
        or (shortest_side is not None and min(width, height) >= 2 * scale * shortest_side)
    ):
        scale *= 2
    if scale > 1:
        image.draft(None, (width // scale, height // scale))


def _reason(error: Exception) -> str:
    match error:
        case Image.UnidentifiedImageError():
            return "not an image"
        case Image.DecompressionBombError():
            return _TOO_LARGE
        case MemoryError():
            return "not enough memory to decode it"
        case OSError():
            return error.strerror or str(error)
        case _:
            return f"corrupt ({type(error).__name__}: {error})"


def orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Damaged metadata does not make the pixels unusable.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        if pixels.getextrema()[3] == (255, 255):
            return pixels.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, (*BACKGROUND, 255)), pixels).convert("RGB")
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image, dtype=np.float32))).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    least, most = float(values.min()), float(values.max())
    if not np.isfinite([least, most]).all():
        raise ValueError("it has pixels that are not finite numbers")
    if least < 0.0:
        values, most = values - least, most - least
    elif most <= 1.0 and (values % 1.0).any():
        most = 1.0
    else:
        most = next((2.0**bits - 1 for bits in BIT_DEPTHS if most < 2**bits), most)
    return np.round(values * (255.0 / most if most else 0.0)).astype(np.uint8)
