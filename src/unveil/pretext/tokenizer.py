"""VQ-KD (BEiT v2, section 2.1): a tokeniser learns from a teacher to say in one code what a patch shows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.config import VectorQuantizedDistillation
from unveil.data.normalization import Normalization
from unveil.models.vit import ViT
from unveil.pretext.codebook import Codebook, usage_metrics
from unveil.pretext.regression import Regression
from unveil.pretext.targets.base import Target


class Reconstruction(NamedTuple):
    """What the network makes of a batch."""

    patch_losses: Float[Tensor, "b n"]
    """1 - cosine of decoded and target feature."""
    commitments: Float[Tensor, "b n"]
    """Mean square of the differences between a feature's numbers and its code's."""
    features: Float[Tensor, "b n d"]
    """What was quantised: of length 1."""
    taken: Int64[Tensor, "b n"]
    """Its codes."""


class TokenizerTraining(Regression):
    """Encoder, codebook, decoder. The decoder sees codes only and must give the target's features; nothing is hidden.

    Backward, the code is passed over (straight-through): the decoder's gradient reaches the encoder as if it had been
    given the encoder's own features. The codes learn as running averages of these features.
    """

    backbone: ViT

    def __init__(
        self,
        backbone: ViT,
        target: Target,
        *,
        seed: int,
        normalization: Normalization,
        objective: VectorQuantizedDistillation,
        global_batch_size: int,
    ) -> None:
        super().__init__(backbone, target, seed=seed, normalization=normalization)
        config = backbone.config
        self.code_head = code_head(backbone, objective)
        self.codebook = Codebook(
            objective.codes,
            objective.code_dim,
            decay=objective.codebook_decay,
            revive_below=objective.revive_below,
            seed=seed,
            global_batch_size=global_batch_size,
        )
        # Of the codes as an image with a patch of one pixel.
        self.decoder = ViT(
            replace(config, image_size=config.grid[0], patch_size=1, depth=objective.decoder_depth, drop_path=0.0),
            channels=objective.code_dim,
        )
        self.feature_head = _task_head(config.width, target.dim, config.init_std)
        self.commitment = objective.commitment

    def compile_(self) -> None:
        super().compile_()
        self.reconstruct = torch.compile(self.reconstruct, dynamic=False)  # type: ignore[method-assign]

    def forward(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums over all patches of the batch, and their number."""
        found = self._found(batch)
        if self.training:
            self.codebook.observe(found.features.detach(), found.taken, batch["sample_numbers"])
        loss, commitment = found.patch_losses.sum(), found.commitments.sum()
        count = torch.full_like(loss.detach(), found.patch_losses.numel())
        return {
            "loss": (loss + self.commitment * commitment, count),
            "reconstruction": (loss, count),
            "commitment": (commitment, count),
        }

    def after_step(self, updated: bool, add_up: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
        """Let the codebook learn from the step's batch: see `Codebook.learn`."""
        return self.codebook.learn(updated, add_up)

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Sums over the patches of valid images, and how often they take each code."""
        found = self._found(batch)
        valid = batch["valid"]
        losses = found.patch_losses + self.commitment * found.commitments
        # Padding goes to a place behind the last code.
        size = len(self.codebook.codes)
        taken = torch.where(valid[:, None], found.taken, size)
        return {
            "loss_sum": (losses.sum(dim=1) * valid).sum(),
            "reconstruction_sum": (found.patch_losses.sum(dim=1) * valid).sum(),
            "count": valid.sum() * losses.shape[1],
            "taken": torch.bincount(taken.flatten(), minlength=size + 1)[:size],
        }

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        means = {name: (state[f"{name}_sum"] / state["count"]).item() for name in ("loss", "reconstruction")}
        return means | {name: value.item() for name, value in usage_metrics(state["taken"]).items()}

    def shard_units(self) -> list[nn.Module]:
        """With those of the decoder."""
        return super().shard_units() + self.decoder.shard_units()

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {f"decoder.{name}" for name in self.decoder.no_weight_decay()}

    def reconstruct(
        self,
        images: Float[Tensor, "b c h w"],
        targets: Float[Tensor, "b n t"],
        drop_path_noise: Float[Tensor, "b depth 2"] | None,
    ) -> Reconstruction:
        """Encode, quantise, decode, compare."""
        features = code_features(self.backbone, self.code_head, images, drop_path_noise)
        # The nearest code and the distance to it are decided by differences that bf16 does not hold.
        with torch.autocast(images.device.type, enabled=False):
            taken = self.codebook.nearest(features)
            codes = F.embedding(taken, self.codebook.codes)
            commitments = (features - codes).square().mean(dim=-1)
            passed = features + (codes - features).detach()
        grid = self.backbone.config.grid
        decoded = self.feature_head(self.decoder(passed.transpose(1, 2).unflatten(2, grid)).patches)
        patch_losses = 1.0 - F.cosine_similarity(decoded.float(), targets, dim=-1)
        return Reconstruction(patch_losses, commitments, features, taken)

    def _found(self, batch: dict[str, Any]) -> Reconstruction:
        noise = self.drop_path_noise(batch["sample_numbers"])
        return self.reconstruct(self.normalized(batch), self.targets(batch), noise)


def code_head(backbone: ViT, objective: VectorQuantizedDistillation) -> nn.Sequential:
    """What turns the encoder's features into the space of the codes."""
    return _task_head(backbone.config.width, objective.code_dim, backbone.config.init_std)


def code_features(
    backbone: ViT,
    head: nn.Sequential,
    images: Float[Tensor, "b c h w"],
    drop_path_noise: Float[Tensor, "b depth 2"] | None = None,
    only: Int64[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b m d"]:
    """The encoder's answer for each patch, or each of those numbered in `only`, in the space of the codes: in float32
    and of length 1."""
    patches = backbone(images, only=only, drop_path_noise=drop_path_noise).patches
    with torch.autocast(images.device.type, enabled=False):
        return F.normalize(head(patches.float()), dim=-1)


def _task_head(width: int, dim: int, std: float) -> nn.Sequential:
    """Released code: two layers with a hyperbolic tangent between them."""
    layers = nn.Linear(width, width), nn.Linear(width, dim)
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1])
