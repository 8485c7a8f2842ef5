"""A CLIP by hand for tests, which knows colours and nothing else. Quick to import: processes do."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from unveil.build.image_batches import middle
from unveil.config.data import CenterCrop

COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "white": (1.0, 1.0, 1.0)}


class ColourEmbedder:
    """An image is the mean of its colours; a text is the sum of the colours that it names, and none is grey."""

    name = "colours"
    identity = "c01025"
    image_size = 8
    width = 3
    context_length = 77
    logit_scale = 10.0
    logit_bias = -2.0
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.images = 0
        """That were looked at so far."""
        self.texts = 0

    def transform(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        return middle(image, CenterCrop(), self.image_size)

    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        self.images += len(images)
        return F.normalize(images.float().mean(dim=(2, 3)) + 1e-3, dim=1)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        self.texts += len(texts)
        found = [[COLOURS[word] for word in text.lower().split() if word in COLOURS] for text in texts]
        sums = [torch.tensor(colours).sum(dim=0) if colours else torch.ones(3) for colours in found]
        return F.normalize(torch.stack(sums), dim=1) if sums else torch.zeros(0, 3)


def save_colour(path: str, colour: str, noise: int = 0) -> None:
    """A picture in one colour; with noise, in shades of it."""
    generator = torch.Generator().manual_seed(noise)
    base = torch.tensor(COLOURS[colour]) * 200
    pixels = base[:, None, None] + 40 * torch.rand(3, 20, 24, generator=generator)
    Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).numpy()).save(path)
