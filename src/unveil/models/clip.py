"""Two towers that see images and texts alike (paper section 2.3.5; Radford et al., 2021)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.config import ClipModelConfig
from unveil.models.text import TextTower
from unveil.models.vit import ViT

FIRST_LOGIT_SCALE = math.log(1 / 0.07)

LARGEST_LOGIT_SCALE = math.log(100)
"""Of the released code, and OpenAI's: beyond it training turns unstable."""


class Clip(nn.Module):
    """A ViT whose normed cls token is projected into the space of a text tower, and the temperature of their cosines.

    Parameter groups of the towers are apart, for each has its own learning rate and layer decay.
    """

    def __init__(self, config: ClipModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = ViT(config.vision)
        self.visual_projection = nn.Linear(config.vision.width, config.embedding_width, bias=config.projection_bias)
        self.text = TextTower(config.text, config.embedding_width)
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_LOGIT_SCALE))
        """Logarithm of the factor on the cosines."""
        nn.init.normal_(self.visual_projection.weight, std=config.projection_init_std or config.vision.width**-0.5)
        if config.projection_bias:
            nn.init.zeros_(self.visual_projection.bias)

    def encode_images(
        self,
        images: Float[Tensor, "b 3 h w"],
        *,
        drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
        kept: Int64[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "b d"]:
        """Unit vectors, float32 whatever the arithmetic before.

        Args:
            images: Normalised, any size that divides into patches.
            drop_path_noise: As `ViT` takes it.
            kept: Numbers of the patches that stay under patch dropout; the cls token always stays. None keeps all.

        Raises:
            UnveilError: the images do not divide into patches.
        """
        cls = self.visual(images, drop_path_noise=drop_path_noise, kept=kept).cls
        return F.normalize(self.visual_projection(cls).float(), dim=1)

    def encode_texts(self, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        """Unit vectors, float32 whatever the arithmetic before.

        Raises:
            UnveilError: more tokens than there are positions.
        """
        return F.normalize(self.text(tokens).float(), dim=1)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """To [0, ln 100], as the released code does after every step."""
        self.logit_scale.clamp_(0.0, LARGEST_LOGIT_SCALE)

    def visual_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """The image side's parameters by layer, input side first; the projection is in the last group, with the norm.

        Released code: embeddings 0, blocks 1 to depth, rest after. The temperature belongs to neither tower.
        """
        groups = _prefixed("visual.", self.visual.layer_groups())
        groups[-1] += [
            (f"visual_projection.{name}", value) for name, value in self.visual_projection.named_parameters()
        ]
        return groups

    def text_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """The text side's parameters by layer, input side first, by the same rule."""
        return _prefixed("text.", self.text.layer_groups())

    def no_weight_decay(self) -> set[str]:
        """Parameters that are spared beside biases, norms and the temperature (released code)."""
        visual = {f"visual.{name}" for name in self.visual.no_weight_decay()}
        return visual | {f"text.{name}" for name in self.text.no_weight_decay()}

    def shard_units(self) -> list[nn.Module]:
        """The pieces that sharding and recomputation treat as wholes."""
        return self.visual.shard_units() + self.text.shard_units()


def _prefixed(prefix: str, groups: list[list[tuple[str, nn.Parameter]]]) -> list[list[tuple[str, nn.Parameter]]]:
    return [[(prefix + name, parameter) for name, parameter in group] for group in groups]
