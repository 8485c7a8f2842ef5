"""Fine-tuning of a classifier: a backbone, pooled, and a linear head."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.data.normalization import Normalization, normalize
from unveil.models.randomness import keyed_uniform
from unveil.models.revcolv2 import RevColV2
from unveil.models.timm_backbone import TimmBackbone
from unveil.models.vit import ViT
from unveil.tasks.classification.metrics import Scores, accumulate
from unveil.tasks.classification.mixing import Mixing

Pooling = Literal["mean", "cls"]

Backbone = ViT | RevColV2 | TimmBackbone

_NOISE = 0x6E6F697365
"""Sets the erasing noise's random numbers apart from those of drop path."""

_ROWS = 32
"""Images whose noise is drawn at once: 8 bytes and some for every value."""


class Classification(nn.Module):
    """A backbone, its tokens pooled and classified (released EVA code).

    Args:
        backbone: a ViT is for mean pooling without its final norm, for cls pooling with it; a RevColV2 reads "top".
        pooling: "mean": of the patch tokens, under a norm of its own, `fc_norm`. "cls": the cls token under the
            backbone's norm.
        head_init_scale: the head's weights start as a normal distribution of deviation 0.02 times this; biases at 0.
        freeze_patch_embedding: leave the patch embedding as it is; positions and cls token learn.
        mixing: Mixup or CutMix of training batches, which must be paired (see `TrainingLoader`).
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        *,
        seed: int,
        normalization: Normalization,
        label_smoothing: float,
        head_init_scale: float,
        pooling: Pooling = "mean",
        freeze_patch_embedding: bool = False,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        width = backbone.config.width
        self.fc_norm = nn.LayerNorm(width, eps=backbone.config.norm_epsilon) if pooling == "mean" else nn.Identity()
        self.head = nn.Linear(width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)
        if freeze_patch_embedding:
            if not isinstance(backbone, ViT):
                raise ValueError("only a ViT has a patch embedding that could be frozen")
            backbone.patch_embed.requires_grad_(False)
        self.classes = classes
        self.seed = seed
        self.normalization = normalization
        self.label_smoothing = label_smoothing
        self.pooling = pooling
        self.mixing = mixing

    def compile_(self) -> None:
        """Compile what does the arithmetic."""
        self.logits = torch.compile(self.logits, dynamic=False)  # type: ignore[method-assign]

    def forward(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of the cross-entropy over the batch and, where no image is mixed, of the correct answers; with counts."""
        labels = batch["label"]
        images = self._erase(normalize(batch["image"], self.normalization), batch)
        noise = self._drop_path_noise(batch["sample_numbers"])
        count = torch.tensor(float(len(images)), device=images.device)
        if self.training and self.mixing is not None:
            images, shares = self.mixing(images, labels, batch["step"])
            return {"loss": (F.cross_entropy(self.logits(images, noise).float(), shares, reduction="sum"), count)}
        logits = self.logits(images, noise).float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        return {"loss": (loss, count), "accuracy": ((logits.argmax(dim=1) == labels).sum().float(), count)}

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        logits = self.logits(normalize(batch["image"], self.normalization), None).float()
        return accumulate(logits, batch["label"], batch["valid"])

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        """Loss, accuracy, top-5 accuracy, calibration error."""
        return Scores.of(state).numbers()

    def logits(
        self, images: Float[Tensor, "b c h w"], drop_path_noise: Float[Tensor, "b depth 2"] | None = None
    ) -> Float[Tensor, "b classes"]:
        """Scores of the classes for normalised images."""
        features = self.backbone(images, drop_path_noise=drop_path_noise)
        pooled = features.cls if self.pooling == "cls" else features.patches.mean(dim=1)
        return self.head(self.fc_norm(pooled))

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Of the parameters that learn: embeddings, each block, then all norms behind them together with the head."""
        *below, top = [
            [(f"backbone.{name}", parameter) for name, parameter in group if parameter.requires_grad]
            for group in self.backbone.layer_groups()
        ]
        top += [(f"fc_norm.{name}", parameter) for name, parameter in self.fc_norm.named_parameters()]
        top += [(f"head.{name}", parameter) for name, parameter in self.head.named_parameters()]
        return [*below, top]

    def shard_units(self) -> list[nn.Module]:
        """The blocks, which sharding gathers one at a time."""
        return self.backbone.shard_units()

    def no_weight_decay(self) -> set[str]:
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def _erase(self, images: Float[Tensor, "b c h w"], batch: dict[str, Any]) -> Float[Tensor, "b c h w"]:
        """Normal noise where the view said so (released code: random erasing, mode "pixel", on normalised pixels)."""
        if "erased" not in batch:
            return images
        size = images[0].numel()
        parts = batch["sample_numbers"].split(_ROWS)
        uniform = torch.cat([keyed_uniform(self.seed ^ _NOISE, part, size) for part in parts])
        # The middles of the 2^24 steps of [0, 1): at 0 itself the normal distribution has no value.
        noise = torch.erfinv(2.0 * uniform - (1.0 - 2.0**-24)) * 2.0**0.5
        return torch.where(batch["erased"][:, None], noise.view_as(images), images)

    def _drop_path_noise(self, sample_numbers: Int64[Tensor, "b"]) -> Float[Tensor, "b depth 2"] | None:
        config = self.backbone.config
        if not self.training or config.drop_path == 0.0:
            return None
        return keyed_uniform(self.seed, sample_numbers, config.depth * 2).view(-1, config.depth, 2)
