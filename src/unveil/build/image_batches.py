"""Images as a trained network wants them: the middle of each, in order, nothing random."""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unveil.config.data import CenterCrop
from unveil.data.crops import crop_box, resize_crop
from unveil.data.loader import EvaluationLoader
from unveil.data.sources.base import Sample, Source


@runtime_checkable
class PlainView(Protocol):
    """What a network sees of an image: a square of bytes."""

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        """ "image" (UInt8 3 h w) and perhaps more."""
        ...

    def settings(self) -> dict[str, Any]:
        """JSON values that tell this view from others."""
        ...


@dataclass(frozen=True)
class MiddleView:
    """Called in the workers."""

    crop: CenterCrop
    image_size: int

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        return {"image": middle(sample.image, self.crop, self.image_size)}

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "crop": self.crop.share}


@dataclass(frozen=True)
class PreparedView:
    """The preparation that a model brings along. Called in the workers."""

    transform: Callable[[Image.Image], UInt8[Tensor, "3 h w"]]
    """Belongs to the model, whose identity covers it."""
    image_size: int

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        return {"image": self.transform(sample.image), "label": sample.label}

    def settings(self) -> dict[str, Any]:
        return {"image_size": self.image_size}


def middle(image: Image.Image, crop: CenterCrop, size: int) -> UInt8[Tensor, "3 h w"]:
    """The middle square of an RGB picture, `size` pixels wide."""
    return resize_crop(image, crop_box(image.size, crop, random.Random(0)), size, False)


def image_batches(
    source: Source, view: PlainView, *, batch_size: int, workers: int | None, start: int = 0
) -> EvaluationLoader:
    """Batches of "image" (UInt8 b 3 h w), "names", "indices" and "valid".

    Args:
        workers: processes that read images. None = as many as are worth it.
        start: place in the source to begin at.

    Raises:
        UnveilError: no images, or none that can be read.
    """
    left = len(source) - start
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(8, cores - 1) if left > 4 * batch_size else 0
    return EvaluationLoader(source, view, collate, batch_size=batch_size, workers=workers, start=start)


def collate(views: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack views into a batch."""
    return {"image": torch.stack([view["image"] for view in views])}
