"""Fine-tuning of a classifier: mean of the patch tokens, a fresh norm, a linear head (facts of the released code)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.data.normalization import Normalization, normalize
from unveil.models.randomness import keyed_uniform
from unveil.models.vit import ViT


class Classification(nn.Module):
    """A ViT without its final norm, pooled over the patches, normed and classified."""

    def __init__(
        self,
        backbone: ViT,
        classes: tuple[str, ...],
        *,
        seed: int,
        normalization: Normalization,
        label_smoothing: float,
        head_init_scale: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc_norm = nn.LayerNorm(backbone.config.width, eps=backbone.config.norm_epsilon)
        self.head = nn.Linear(backbone.config.width, len(classes))
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(head_init_scale)
        self.classes = classes
        self.seed = seed
        self.normalization = normalization
        self.label_smoothing = label_smoothing
        self._logits = self.logits

    def compile_(self) -> None:
        """Compile what does the arithmetic."""
        self._logits = torch.compile(self.logits, dynamic=False)

    def forward(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of the cross-entropy over the batch and of the correct answers, each with the number of images."""
        logits = self._logits(self._images(batch), self._drop_path_noise(batch["sample_numbers"])).float()
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing, reduction="sum")
        count = torch.tensor(float(len(logits)), device=logits.device)
        correct = (logits.argmax(dim=1) == batch["label"]).sum().float()
        return {"loss": (loss, count), "accuracy": (correct, count)}

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        logits = self._logits(self._images(batch), None).float()
        valid = batch["valid"].to(logits)
        loss = F.cross_entropy(logits, batch["label"], reduction="none")
        correct = (logits.argmax(dim=1) == batch["label"]).to(logits)
        return {"loss": (loss * valid).sum(), "correct": (correct * valid).sum(), "count": valid.sum()}

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        count = state["count"]
        return {"loss": (state["loss"] / count).item(), "accuracy": (state["correct"] / count).item()}

    def logits(
        self, images: Float[Tensor, "b c h w"], drop_path_noise: Float[Tensor, "b depth 2"] | None = None
    ) -> Float[Tensor, "b classes"]:
        """Scores of the classes for normalised images."""
        patches = self.backbone(images, drop_path_noise=drop_path_noise).patches
        return self.head(self.fc_norm(patches.mean(dim=1)))

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """The backbone's groups, input side first; then one of the new norm and the head."""
        groups = [[(f"backbone.{name}", p) for name, p in group] for group in self.backbone.layer_groups()]
        groups = [group for group in groups if group]
        new = [(f"fc_norm.{name}", p) for name, p in self.fc_norm.named_parameters()]
        new += [(f"head.{name}", p) for name, p in self.head.named_parameters()]
        return [*groups, new]

    def no_weight_decay(self) -> set[str]:
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def _images(self, batch: dict[str, Any]) -> Float[Tensor, "b c h w"]:
        return normalize(batch["image"], self.normalization)

    def _drop_path_noise(self, sample_numbers: Int64[Tensor, "b"]) -> Float[Tensor, "b depth 2"] | None:
        config = self.backbone.config
        if not self.training or config.drop_path == 0.0:
            return None
        return keyed_uniform(self.seed, sample_numbers, config.depth * 2).view(-1, config.depth, 2)
