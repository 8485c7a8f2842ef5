"""What the data workers make of one image with captions: a crop, and one of the captions as tokens."""

import random
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from unveil.config import UnveilError
from unveil.config.data import Crop
from unveil.data.crops import crop_box, resize_crop
from unveil.data.sources.base import Sample
from unveil.tasks.contrastive.tokens import Tokenizer


@dataclass(frozen=True)
class CaptionedView:
    """Called in the workers. Draws from `rng` in a fixed order: crop, flip, caption.

    For evaluation with a `CenterCrop`; the caption is then the same every time, since the loader fixes what is drawn.
    """

    crop: Crop
    flip: bool
    """Mirrored images do not fit captions that say left or right, nor writing that they quote."""
    image_size: int
    tokenizer: Tokenizer

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        """Raises UnveilError for an image without a caption."""
        box = crop_box(sample.image.size, self.crop, rng)
        flipped = self.flip and rng.random() < 0.5
        if not sample.captions:
            raise UnveilError(f"{sample.name} has no caption; give pairs, such as a .csv of path,caption")
        tokens = self.tokenizer.encode(rng.choice(sample.captions))
        fitted = self.tokenizer.fit(tokens)
        return {
            "image": resize_crop(sample.image, box, self.image_size, flipped),
            "tokens": fitted,
            "caption_id": caption_number(fitted),
            "cut": len(tokens) > self.tokenizer.context_length,
        }


class CaptionedCollate:
    """Stack views into a batch: "image" (UInt8 b 3 h w), "tokens" (Int64 b t), "caption_id" (Int64 b: equal where the
    tokens are), "cut" (Bool b: the caption was longer)."""

    def __call__(self, views: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "image": torch.stack([view["image"] for view in views]),
            "tokens": torch.stack([view["tokens"] for view in views]),
            "caption_id": torch.tensor([view["caption_id"] for view in views], dtype=torch.int64),
            "cut": torch.tensor([view["cut"] for view in views]),
        }


def caption_number(tokens: Int64[Tensor, "t"]) -> int:
    """64 bits that are the same in every process: what the text tower cannot tell apart has one number."""
    return int.from_bytes(blake2b(tokens.numpy().tobytes(), digest_size=8).digest(), "little", signed=True)
