"""What is kept of an image so that it can be compared with millions of others."""

import hashlib
import io
import warnings

import numpy as np
from jaxtyping import UInt64
from PIL import Image
from scipy.fft import dctn

from unveil.data.decode import FORMATS, decode_image
from unveil.data.sources.base import Encoded

SIDE = 64
"""Of the grey picture that is transformed, pixels."""
FREQUENCIES = 16
"""Lowest ones in each direction, whose signs are the hash: 256 bits."""
PLAIN = 2.0
"""Standard deviation of grey values (0 to 255) below which the picture is all one tone and its hash means nothing."""

FINGERPRINT = np.dtype(
    [("width", "<u4"), ("height", "<u4"), ("content", "S32"), ("hash", "<u8", (4,)), ("plain", "?"), ("readable", "?")]
)
"""`content`: hexadecimal digest of the file's bytes. Width and height as stored, before any turn."""


def fingerprint(found: Encoded) -> np.ndarray:
    """One `FINGERPRINT`.

    Raises:
        UnreadableSample: it cannot be decoded.
    """
    image = decode_image(found.data, found.name, 2 * SIDE)
    row = np.zeros((), dtype=FINGERPRINT)
    row["width"], row["height"] = _stored_size(found.data) or image.size
    row["content"] = hashlib.blake2b(found.data, digest_size=16).hexdigest().encode()
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    row["hash"] = perceptual_hash(grey)
    row["plain"] = grey.std() < PLAIN
    row["readable"] = True
    return row


def perceptual_hash(grey: np.ndarray) -> UInt64[np.ndarray, "4"]:
    """256 bits: which of the lowest frequencies of a grey picture are above their median.

    Scale, sharpness, compression, brightness and contrast hardly change them. The method is the "pHash" of Zauner,
    "Implementation and benchmarking of perceptual image hash functions" (2010), with more bits.
    """
    low = dctn(grey, norm="ortho")[:FREQUENCIES, :FREQUENCIES].reshape(-1)
    # The mean (the zeroth) says how bright the picture is, nothing else.
    bits = low > np.median(low[1:])
    return np.packbits(bits, bitorder="little").view("<u8")


def _stored_size(data: bytes) -> tuple[int, int] | None:
    """Width and height; None where the header is beyond what Pillow opens."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image.size
    except Exception:
        return None
