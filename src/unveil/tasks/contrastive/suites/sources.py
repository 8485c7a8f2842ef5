"""Labelled samples as the sets keep them: listed files, pixels in an array, and torchvision's readers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch.utils.data import Dataset

from unveil.data.decode import decode_image, upright_rgb
from unveil.data.sources.base import Sample, Source, UnreadableSample


class Box(NamedTuple):
    """Part of an image, in pixels; right and bottom are the first that do not belong to it."""

    left: int
    top: int
    right: int
    bottom: int


class ListedImage(NamedTuple):
    """A file, or an object in it."""

    path: str
    label: int | None = None
    box: Box | None = None
    """What is cut out; None: the whole image."""


@dataclass(frozen=True)
class ListedSource:
    """Files in the order of a list."""

    images: tuple[ListedImage, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the file cannot be decoded."""
        listed = self.images[index]
        image = decode_image(listed.path, listed.path)
        return Sample(image if listed.box is None else image.crop(listed.box), listed.path, listed.label, index)

    def digest(self) -> dict[str, dict[str, Any]]:
        return digest_of("list", len(self), *(repr(tuple(listed)).encode() for listed in self.images))


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images as numbers."""

    pixels: UInt8[np.ndarray, "n h w 3"]
    labels: Sequence[int]
    file: str
    """Where they are from."""

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Sample:
        image = Image.fromarray(np.ascontiguousarray(self.pixels[index]))
        return Sample(image, f"{self.file}, image {index + 1}", int(self.labels[index]), index)

    def digest(self) -> dict[str, dict[str, Any]]:
        return digest_of(Path(self.file).name, len(self), np.ascontiguousarray(self.pixels).tobytes())


@dataclass(frozen=True, eq=False)
class TorchvisionSource:
    """What a reader of torchvision gives: pictures and labels."""

    dataset: Dataset[tuple[Image.Image, int]]
    folder: str

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the reader fails on this one."""
        name = f"{self.folder}, image {index + 1}"
        try:
            image, label = self.dataset[index]
        except Exception as error:
            # Pillow and h5py let nearly every kind of exception out where a file is damaged.
            raise UnreadableSample(name, f"{type(error).__name__}: {error}") from None
        return Sample(upright_rgb(image), name, int(label), index)

    def digest(self) -> dict[str, dict[str, Any]]:
        return digest_of(type(self.dataset).__name__, len(self), repr(self.dataset).encode())


@dataclass(frozen=True)
class RelabelledSource:
    """A source with other labels."""

    source: Source
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """Raises UnreadableSample where the source does."""
        return replace(self.source[index], label=self.labels[index])

    def digest(self) -> dict[str, dict[str, Any]]:
        return self.source.digest()


def digest_of(name: str, count: int, *content: bytes) -> dict[str, dict[str, Any]]:
    """What `Source.digest` answers, for one part."""
    hasher = hashlib.sha256()
    for part in content:
        hasher.update(part)
    return {name: {"count": count, "sha256": hasher.hexdigest()}}
