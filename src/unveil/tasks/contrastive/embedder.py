"""What zero-shot classification, retrieval and search ask of a CLIP, whoever made it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


@runtime_checkable
class Embedder(Protocol):
    """Images and texts in one space: `unveil.load_clip` gives one. Nothing here needs gradients or changes it."""

    @property
    def name(self) -> str:
        """What it was loaded from."""
        ...

    @property
    def identity(self) -> str:
        """Hexadecimal digest of the weights and of all that shapes an answer: what caches are keyed on."""
        ...

    @property
    def image_size(self) -> int:
        """Side of the square input, pixels."""
        ...

    @property
    def width(self) -> int:
        """Of the shared space: the "d" below."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens of a text, start and end among them; longer texts are cut off there."""
        ...

    @property
    def logit_scale(self) -> float:
        """Factor on the cosines (the inverse temperature itself, not its logarithm)."""
        ...

    @property
    def logit_bias(self) -> float:
        """What is added to the scaled cosines; 0 but for SigLIPs."""
        ...

    @property
    def device(self) -> torch.device: ...

    def transform(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """A picture of any mode at the model's size, as bytes; the normalisation comes later, in `encode_images`."""
        ...

    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32, on the processor."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors, float32, on the processor; no texts give none."""
        ...
