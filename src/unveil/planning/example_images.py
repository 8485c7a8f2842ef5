"""Images to measure the data path with where a person gives none: JPEGs of a photo's size and detail, in memory."""

import io
from typing import Any

import numpy as np
from PIL import Image

from unveil.data.decode import decode_image
from unveil.data.sources.base import Encoded, Sample

DIFFERENT = 32
"""Images that are drawn; more samples are these again."""

SIZE = (500, 375)
"""Width and height: ImageNet's most frequent."""


class ExampleImages:
    """A source of `count` samples with labels below `classes`.

    Each image is smooth colours with grain over them, whose JPEG takes about as many bytes as a photo's.
    """

    def __init__(self, count: int, classes: int) -> None:
        self.count = count
        self.classes = classes
        self._files = [_jpeg(number) for number in range(min(DIFFERENT, count))]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        name = f"example {index}"
        image = decode_image(self._files[index % len(self._files)], name)
        return Sample(image=image, name=name, label=index % self.classes, index=index)

    def encoded(self, index: int) -> Encoded:
        return Encoded(self._files[index % len(self._files)], f"example {index}.jpg", index % self.classes)

    def digest(self) -> dict[str, dict[str, Any]]:
        return {"examples": {"count": self.count, "sha256": ""}}


def _jpeg(number: int) -> bytes:
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC), dtype=np.float32)
    grained = smooth + draw.normal(0.0, 8.0, smooth.shape)
    file = io.BytesIO()
    Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()
