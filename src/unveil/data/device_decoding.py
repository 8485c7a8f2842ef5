"""JPEGs decoded on the device, a batch at a time (by nvJPEG on a GPU): the workers read files and their headers."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image, JpegImagePlugin
from torch import Tensor

from unveil.config.errors import UnveilError
from unveil.data.crops import Box
from unveil.data.decode import JPEG_START, PIXEL_LIMIT, decode_image, orientation
from unveil.data.sources.base import EncodedSource, Sample, UnreadableSample

JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class UndecodedSample(Sample):
    """A JPEG of which only the header was read: its `image` has a size, but no pixels."""

    data: bytes = b""


@dataclass(frozen=True)
class UndecodedCut:
    """A crop of a JPEG that is to be decoded first."""

    data: bytes
    box: Box
    """In pixels of the image."""
    name: str


class UndecodedJpegs:
    """A source of files that leaves JPEGs as they are, where they are whole, grey or RGB, and need no turning.

    Others it decodes as `source` does, and what it can tell to be damaged is found damaged there.
    """

    def __init__(self, source: EncodedSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the file cannot be read, or is no JPEG and cannot be decoded."""
        encoded = self.source.encoded(index)
        header = _header(encoded.data)
        if header is None:
            return self.source[index]
        return UndecodedSample(header, encoded.name, encoded.label, index, encoded.captions, encoded.data)

    def digest(self) -> dict[str, dict[str, Any]]:
        return self.source.digest()


def decode_on(device: torch.device, cuts: Sequence[UndecodedCut]) -> list[UInt8[Tensor, "3 _ _"]]:
    """The images that the crops are of, on the device. What it cannot decode, the workers' decoder is given.

    Raises:
        UnveilError: damaged where neither header nor end of the file show it: too late to take another sample.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    # A copy of the bytes, because torch wants memory that it could write to.
    files = [torch.frombuffer(bytearray(cut.data), dtype=torch.uint8) for cut in cuts]
    try:
        return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    except RuntimeError:
        return [_decode_here(cut).to(device) for cut in cuts]


def _decode_here(cut: UndecodedCut) -> UInt8[Tensor, "3 h w"]:
    from torchvision.transforms.functional import pil_to_tensor

    try:
        return pil_to_tensor(decode_image(cut.data, cut.name))
    except UnreadableSample as error:
        raise UnveilError(
            f"{error}; take it out, or leave data.decode_on=device out: where workers decode, another sample takes the "
            "place of such a file"
        ) from error


def _header(data: bytes) -> Image.Image | None:
    """Of a JPEG that the device can decode to the same image as Pillow."""
    if not data.startswith(JPEG_START) or JPEG_END not in data[-64:]:
        return None
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except Exception:
        # Pillow's readers let nearly every kind of exception out where a file is corrupt; the source says it better.
        return None
    plain = image.mode in ("RGB", "L") and orientation(image) == 1 and image.width * image.height <= PIXEL_LIMIT
    return image if plain else None
