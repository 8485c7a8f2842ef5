"""Masked modelling (paper section 2.2): predict a frozen teacher's features of the patches that are hidden."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unveil.config import MaskedRegression
from unveil.data.normalization import Normalization
from unveil.models.backbone import Backbone
from unveil.pretext.regression import Regression, linear_head
from unveil.pretext.targets.base import Target


class HiddenRegression(Regression, ABC):
    """The base of tasks that regress the target at the patches that are hidden: they say how it is predicted, and what
    a prediction loses."""

    def compile_(self) -> None:
        super().compile_()
        self.regress = torch.compile(self.regress, dynamic=False)  # type: ignore[method-assign]

    def forward(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of the loss over all hidden patches of the batch, and their number."""
        patch_losses = self._losses_of(batch, batch["hidden"], batch["mask"])
        weight = batch["hidden_weight"]
        return {"loss": ((patch_losses * weight).sum(), weight.sum())}

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The same on the fixed stripe mask, so that two runs compare (released code: every even column)."""
        rows, columns = self.backbone.config.grid
        mask = stripe_mask(rows, columns).to(batch["image"].device).expand(len(batch["image"]), -1)
        hidden = mask[0].nonzero().squeeze(1).expand(len(mask), -1)
        patch_losses = self._losses_of(batch, hidden, mask)
        valid = batch["valid"].to(patch_losses)
        return {"loss_sum": (patch_losses.sum(dim=1) * valid).sum(), "count": valid.sum() * hidden.shape[1]}

    def regress(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"],
        hidden: Int64[Tensor, "b k"],
        wanted: Float[Tensor, "b k t"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None,
    ) -> Float[Tensor, "b k"]:
        """The loss at each of the `hidden` patches, which should become what is `wanted` there."""
        return self.losses(self.predict_hidden(images, mask, hidden, drop_path_noise).float(), wanted)

    @abstractmethod
    def predict_hidden(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"],
        hidden: Int64[Tensor, "b k"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
    ) -> Float[Tensor, "b k t"]:
        """What the patches numbered in `hidden` should become: those of the mask, or all."""

    @abstractmethod
    def losses(self, predictions: Float[Tensor, "b k t"], wanted: Float[Tensor, "b k t"]) -> Float[Tensor, "b k"]:
        """Of each prediction."""

    def _losses_of(
        self, batch: dict[str, Any], hidden: Int64[Tensor, "b k"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b k"]:
        noise = self.drop_path_noise(batch["sample_numbers"])
        return self.regress(self.normalized(batch), mask, hidden, self.targets(batch, hidden), noise)


class MaskedModelling(HiddenRegression):
    """Backbone, a linear head on the hidden patches, a loss at each of them (EVA's: negative cosine similarity).

    Args:
        head: in place of the linear one, of who inherits.
    """

    def __init__(
        self,
        backbone: Backbone,
        target: Target,
        *,
        seed: int,
        normalization: Normalization,
        objective: MaskedRegression = MaskedRegression(),
        head: nn.Module | None = None,
    ) -> None:
        super().__init__(backbone, target, seed=seed, normalization=normalization)
        self.head = linear_head(backbone, target.dim) if head is None else head
        self.objective = objective

    def predict_hidden(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"],
        hidden: Int64[Tensor, "b k"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
    ) -> Float[Tensor, "b k t"]:
        """The head's answer at the patches numbered in `hidden`."""
        return self.head(self.backbone(images, mask, only=hidden, drop_path_noise=drop_path_noise).patches)

    def losses(self, predictions: Float[Tensor, "b k t"], wanted: Float[Tensor, "b k t"]) -> Float[Tensor, "b k"]:
        """The objective's."""
        match self.objective.loss:
            case "cosine":
                return -F.cosine_similarity(predictions, wanted, dim=-1)
            case "smooth_l1":
                differences = F.smooth_l1_loss(predictions, wanted, beta=self.objective.beta, reduction="none")
                return differences.mean(dim=-1)
            case "squared":
                return (predictions - wanted).square().mean(dim=-1)


def stripe_mask(rows: int, columns: int) -> Bool[Tensor, "n"]:
    """Every even patch of the flattened grid hidden: vertical stripes on a grid with an even number of columns."""
    return torch.arange(rows * columns) % 2 == 0


def pad_hidden(masks: Bool[Tensor, "b n"], limit: int) -> tuple[Int64[Tensor, "b {limit}"], Float[Tensor, "b {limit}"]]:
    """The hidden patches' numbers, padded with patch 0 at weight 0 to `limit`: shapes never depend on the draw."""
    order = masks.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :limit]
    weight = torch.gather(masks, 1, order).float()
    return torch.where(weight > 0, order, 0), weight
