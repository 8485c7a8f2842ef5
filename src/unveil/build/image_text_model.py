"""A CLIP that is ready for pictures and texts, whoever made its towers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from unveil.data.decode import upright_rgb
from unveil.engine import Precision

TEXTS_AT_ONCE = 256
"""A list of prompts may be long: 80 for each of a thousand classes."""


@runtime_checkable
class Towers(Protocol):
    """What has to be there to compute features; both give unit vectors."""

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...

    def encode_texts(self, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n d"]: ...

    def state_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Transform:
    """A picture of any mode at a model's size, as bytes. Can be sent to the data workers without the model."""

    prepare: Callable[[Image.Image], UInt8[Tensor, "3 h w"]]

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        return self.prepare(upright_rgb(image))


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipModel:
    """Images and texts in one space: `unveil.load_clip` makes one. Nothing here needs gradients or changes it."""

    name: str
    """What it was loaded from."""
    towers: Towers
    """In eval mode, on the device."""
    prepare: Callable[[Image.Image], UInt8[Tensor, "3 h w"]]
    """What `transform` does to an RGB picture."""
    tokenize: Callable[[Sequence[str]], Int64[Tensor, "n t"]]
    mean: tuple[float, float, float]
    """Of red, green and blue in 0 to 1, as `std`: how the towers want their images normalised."""
    std: tuple[float, float, float]
    image_size: int
    """Side of the square input, pixels."""
    width: int
    """Of the shared space."""
    context_length: int
    """Tokens of a text, start and end among them; longer texts are cut off there."""
    logit_scale: float
    """Factor on the cosines."""
    logit_bias: float
    """What is added to the scaled cosines; 0 but for SigLIPs."""
    settings: dict[str, Any]
    """Sizes, activation, cropping: all beside the weights that shapes an answer, as JSON values."""
    precision: Precision

    @property
    def device(self) -> torch.device:
        return self.precision.device

    @cached_property
    def identity(self) -> str:
        """Hexadecimal SHA-256 of the weights and of all that shapes an answer: what caches are keyed on."""
        shaping = {
            "settings": self.settings,
            "mean": self.mean,
            "std": self.std,
            "image_size": self.image_size,
            "context_length": self.context_length,
            "precision": self.precision.format,
        }
        digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode())
        for name, value in sorted(self.towers.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def transform(self) -> Transform:
        """A picture of any mode at the model's size, as bytes; the normalisation comes later, in `encode_images`."""
        return Transform(self.prepare)

    @torch.no_grad()
    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32, on the processor."""
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (self.mean, self.std))
        pixels = (images.to(self.device).float() / 255 - mean) / std
        with self.precision.autocast():
            return self.towers.encode_images(pixels).float().cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors, float32, on the processor; no texts give none."""
        features = [torch.zeros(0, self.width)]
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            tokens = self.tokenize(list(texts[start : start + TEXTS_AT_ONCE])).to(self.device)
            with self.precision.autocast():
                features.append(self.towers.encode_texts(tokens).float().cpu())
        return torch.cat(features)
