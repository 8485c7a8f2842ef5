"""A trained network as other programs get it: bytes in, answers out, and the judge of their copies."""

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from unveil.config import UnveilError
from unveil.data.normalization import MEAN_AND_STD, Normalization
from unveil.models.backbone import Backbone
from unveil.models.revcolv2 import RevColV2
from unveil.tasks.classification.task import Classification
from unveil.weights.names import BACKBONE

CLOSE = 1e-4
"""Largest difference of any output from the original's that an export may have."""


class Deployable(nn.Module):
    """Bytes in, answers out: the normalisation is inside, so nobody downstream can get it wrong.

    Gives the logits of a classifier; without one, the cls token and the patch features after the final norm, of a
    RevColV2 the mean and the cells of the last column's coarsest level.
    """

    def __init__(self, backbone: Backbone, classifier: Classification | None, normalization: Normalization) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        self.normalization = normalization
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in MEAN_AND_STD[normalization])
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)
        self.eval()

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the outputs are called."""
        if self.classifier is not None:
            return ("logits",)
        return ("mean" if isinstance(self.backbone, RevColV2) else "cls", "patches")

    @property
    def image_size(self) -> int:
        return self.backbone.config.image_size

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        pixels = torch.addcmul(self.shift, images.float(), self.scale)
        if self.classifier is not None:
            return (self.classifier.logits(pixels),)
        features = self.backbone(pixels)
        return features.cls, features.patches

    def native(self) -> dict[str, Tensor]:
        """The weights under our own names."""
        if self.classifier is not None:
            return self.classifier.state_dict()
        return {BACKBONE + name: value for name, value in self.backbone.state_dict().items()}

    def random_images(self, count: int) -> UInt8[Tensor, "b 3 h w"]:
        """The same for the same count."""
        size, generator = self.image_size, torch.Generator().manual_seed(count)
        return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)

    def difference(self, images: UInt8[Tensor, "b 3 h w"], answers: tuple[Tensor, ...]) -> float:
        """The largest difference of another program's answers from this network's.

        Raises:
            UnveilError: it is more than rounding makes.
        """
        with torch.no_grad():
            expected = self(images)
        difference = max((answer - right).abs().max().item() for answer, right in zip(answers, expected, strict=True))
        if not difference <= CLOSE:
            raise UnveilError(
                f"the exported network gives other answers than the original (largest difference {difference:.3g}, at "
                f"most {CLOSE:g} is rounding), so nothing was written; try another target, such as --to safetensors"
            )
        return difference
