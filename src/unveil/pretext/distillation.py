"""Feature distillation (Wei et al. 2022; paper Table 2b): regress a teacher's features of an image seen whole."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unveil.config import FeatureDistillation
from unveil.data.normalization import Normalization
from unveil.models.vit import ViT
from unveil.pretext.regression import Regression, linear_head
from unveil.pretext.targets.base import Target


class Distillation(Regression):
    """Backbone, a linear head on every patch (in the released code a convolution of 1 x 1), smooth L1.

    Whitened, each target has its own mean taken away and is divided by its own deviation, as a LayerNorm without
    weights does it. Drop path is the student's alone. The released code distils the cls token, too, which not every
    teacher has: here patches alone count, as in masked modelling.
    """

    def __init__(
        self,
        backbone: ViT,
        target: Target,
        *,
        seed: int,
        normalization: Normalization,
        objective: FeatureDistillation = FeatureDistillation(),
    ) -> None:
        super().__init__(backbone, target, seed=seed, normalization=normalization)
        self.predictor = linear_head(backbone, target.dim)
        self.objective = objective

    def compile_(self) -> None:
        super().compile_()
        self.regress = torch.compile(self.regress, dynamic=False)  # type: ignore[method-assign]

    def forward(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of the loss over all patches of the batch, and their number."""
        patch_losses = self._losses_of(batch)
        return {"loss": (patch_losses.sum(), torch.full_like(patch_losses.detach()[0, 0], patch_losses.numel()))}

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The same on whole batches with padding."""
        patch_losses = self._losses_of(batch)
        valid = batch["valid"].to(patch_losses)
        return {"loss_sum": (patch_losses.sum(dim=1) * valid).sum(), "count": valid.sum() * patch_losses.shape[1]}

    def regress(
        self,
        images: Float[Tensor, "b c h w"],
        targets: Float[Tensor, "b n t"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None,
    ) -> Float[Tensor, "b n"]:
        """The loss at each patch: the mean over its feature's numbers."""
        wanted = F.layer_norm(targets, targets.shape[2:]) if self.objective.whiten else targets
        predictions = self.predictor(self.backbone(images, drop_path_noise=drop_path_noise).patches).float()
        return F.smooth_l1_loss(predictions, wanted, beta=self.objective.beta, reduction="none").mean(dim=2)

    def _losses_of(self, batch: dict[str, Any]) -> Float[Tensor, "b n"]:
        noise = self.drop_path_noise(batch["sample_numbers"])
        return self.regress(self.normalized(batch), self.targets(batch), noise)
