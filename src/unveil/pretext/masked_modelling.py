"""Masked modelling (paper section 2.2): predict a frozen teacher's features of the patches that are hidden."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unveil.data.normalization import Normalization, normalize
from unveil.models.randomness import keyed_uniform
from unveil.models.vit import ViT
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.cache import TargetCache


class MaskedModelling(nn.Module):
    """Backbone, a linear head on the hidden patches, negative cosine similarity.

    The teacher is a plain object beside the network, not a part of it: it is in no checkpoint and no optimizer.
    """

    def __init__(self, backbone: ViT, target: Target, *, seed: int, normalization: Normalization) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.config.width, target.dim)
        std = backbone.config.init_std
        nn.init.trunc_normal_(self.head.weight, std=std, a=-std, b=std)
        nn.init.zeros_(self.head.bias)
        self.target = target
        self.cache: TargetCache | None = None
        """The targets of the training samples where they were computed ahead."""
        self.seed = seed
        self.normalization = normalization
        self._regress = self.regress

    def compile_(self) -> None:
        """Compile what does the arithmetic: the student's forward and its loss. Their shapes never change."""
        self._regress = torch.compile(self.regress, dynamic=False)

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

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"loss": (state["loss_sum"] / state["count"]).item()}

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """The backbone's groups, input side first; the head belongs to the last."""
        groups = [[(f"backbone.{name}", p) for name, p in group] for group in self.backbone.layer_groups()]
        groups[-1] += [(f"head.{name}", p) for name, p in self.head.named_parameters()]
        return groups

    def no_weight_decay(self) -> set[str]:
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    @torch.no_grad()
    def targets(self, batch: dict[str, Any]) -> Float[Tensor, "b n t"]:
        """What each patch should become: from the view of the same crop that has the teacher's resolution."""
        if self.cache is not None and self.training:
            features = self.cache.lookup(batch["indices"].cpu(), batch["flipped"].cpu())
            return features.to(batch["image"].device, non_blocking=True).float()
        return self.target(batch.get("teacher_image", batch["image"])).float()

    def regress(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"],
        hidden: Int64[Tensor, "b k"],
        targets: Float[Tensor, "b n t"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None,
    ) -> Float[Tensor, "b k"]:
        """Negative cosine similarity at each of the `hidden` patches."""
        predictions = self.predict_hidden(images, mask, hidden, drop_path_noise)
        wanted = torch.gather(targets, 1, hidden[:, :, None].expand(-1, -1, targets.shape[2]))
        return -F.cosine_similarity(predictions.float(), wanted, dim=-1)

    def predict_hidden(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"],
        hidden: Int64[Tensor, "b k"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
    ) -> Float[Tensor, "b k t"]:
        """The head's answer at the patches numbered in `hidden`."""
        patches = self.backbone(images, mask, drop_path_noise=drop_path_noise).patches
        return self.head(torch.gather(patches, 1, hidden[:, :, None].expand(-1, -1, patches.shape[2])))

    def _losses_of(
        self, batch: dict[str, Any], hidden: Int64[Tensor, "b k"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b k"]:
        images = normalize(batch["image"], self.normalization)
        return self._regress(images, mask, hidden, self.targets(batch), self._drop_path_noise(batch["sample_numbers"]))

    def _drop_path_noise(self, sample_numbers: Int64[Tensor, "b"]) -> Float[Tensor, "b depth 2"] | None:
        config = self.backbone.config
        if not self.training or config.drop_path == 0.0:
            return None
        return keyed_uniform(self.seed, sample_numbers, config.depth * 2).view(-1, config.depth, 2)


def stripe_mask(rows: int, columns: int) -> Bool[Tensor, "n"]:
    """Every even patch of the flattened grid hidden: vertical stripes on a grid with an even number of columns."""
    return torch.arange(rows * columns) % 2 == 0


def pad_hidden(masks: Bool[Tensor, "b n"], limit: int) -> tuple[Int64[Tensor, "b {limit}"], Float[Tensor, "b {limit}"]]:
    """The hidden patches' numbers, padded with patch 0 at weight 0 to `limit`: shapes never depend on the draw."""
    order = masks.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :limit]
    weight = torch.gather(masks, 1, order).float()
    return torch.where(weight > 0, order, 0), weight
