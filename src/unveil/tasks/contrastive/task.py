"""Contrastive training of a CLIP (paper section 2.3.5): each image and its text are alike, and unlike all others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.config import TowerOptimization, UnveilError
from unveil.data.normalization import Normalization, normalize
from unveil.models.clip import Clip
from unveil.models.randomness import keyed_uniform
from unveil.tasks.contrastive.held_out import pair_scores
from unveil.tasks.contrastive.loss import contrastive_loss

Layers = list[list[tuple[str, nn.Parameter]]]

_PATCHES = 0x70617463686573
"""Sets patch dropout's random numbers apart from those of drop path."""


@dataclass(frozen=True)
class Relation:
    """What the loss of a whole step says of one of its micro-batches."""

    loss: Float[Tensor, ""]
    """The micro-batch's share."""
    images: Float[Tensor, "b d"]
    """Gradient of the loss with respect to the features, as `texts`."""
    texts: Float[Tensor, "b d"]
    log_scale: Float[Tensor, ""]
    """The micro-batch's share of the gradient with respect to the temperature."""


class Contrastive(nn.Module):
    """A CLIP and the loss over the global batch, however that is split.

    Of a step with several micro-batches all features are computed first, without gradients; the loss of the whole batch
    gives each feature its gradient; then each micro-batch goes through the towers again and carries it on (Gao et al.
    2021, "Scaling deep contrastive learning batch size under memory limited setup"). That costs a second forward pass,
    and is exact, since all that is random is keyed on the samples.

    Args:
        local_loss: see `contrastive_loss`.
        patch_dropout: share of the patches that the image tower does not see in training.
        visual: which layers of the tower are locked, and how the others are optimised; as `text`. A tower that is
            locked as a whole drops neither paths nor patches.
        held_out: pairs that evaluation is over.

    Raises:
        UnveilError: more layers to be locked than there are.
    """

    def __init__(
        self,
        clip: Clip,
        *,
        seed: int,
        normalization: Normalization,
        local_loss: bool = True,
        patch_dropout: float = 0.0,
        visual: TowerOptimization = TowerOptimization(),
        text: TowerOptimization = TowerOptimization(),
        held_out: int = 0,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.seed = seed
        self.normalization = normalization
        self.local_loss = local_loss
        self.patch_dropout = patch_dropout
        self.visual = visual
        self.text = text
        self.held_out = held_out
        lock(clip.visual_groups(), visual.locked, "image")
        lock(clip.text_groups(), text.locked, "text")
        self._encode_images = clip.encode_images
        self._encode_texts = clip.encode_texts

    def compile_(self) -> None:
        """Compile what does the arithmetic: the two towers."""
        self._encode_images = torch.compile(self.clip.encode_images, dynamic=False)
        self._encode_texts = torch.compile(self.clip.encode_texts, dynamic=False)

    def relate(self, micro_batches: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """The micro-batches, each with its `Relation`; a single one needs none."""
        if len(micro_batches) == 1:
            return micro_batches
        with torch.no_grad():
            features = [self.features(batch) for batch in micro_batches]
        images, texts = (torch.cat(side).requires_grad_() for side in zip(*features, strict=True))
        log_scale = self.clip.logit_scale.detach().clone().requires_grad_()
        loss = contrastive_loss(images, texts, log_scale.exp(), local=self.local_loss)
        gradients = torch.autograd.grad(loss, (images, texts, log_scale))
        sizes = [len(batch["sample_numbers"]) for batch in micro_batches]
        by_batch = zip(micro_batches, sizes, gradients[0].split(sizes), gradients[1].split(sizes), strict=True)
        return [
            batch
            | {"relation": Relation(loss.detach() * size / sum(sizes), images, texts, gradients[2] * size / sum(sizes))}
            for batch, size, images, texts in by_batch
        ]

    def forward(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """This process's share of the sum of the loss over all pairs, and the number of its own."""
        images, texts = self.features(batch)
        log_scale = self.clip.logit_scale
        relation: Relation | None = batch.get("relation")
        if relation is None:
            loss = contrastive_loss(images, texts, log_scale.exp(), local=self.local_loss)
        else:
            carried = (images * relation.images).sum() + (texts * relation.texts).sum() + log_scale * relation.log_scale
            loss = relation.loss + (carried - carried.detach())
        count = torch.tensor(float(len(images)), device=images.device)
        return {"loss": (loss, count)}

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Tables with a row for each held-out pair, filled in for those of the batch: tables of batches add up."""
        features = torch.cat(self.features(batch), dim=1)
        rows = batch["sample_numbers"][batch["valid"]]
        state = {
            "features": features.new_zeros(self.held_out, features.shape[1]),
            "caption_id": rows.new_zeros(self.held_out),
            "there": rows.new_zeros(self.held_out),
        }
        state["features"][rows] = features[batch["valid"]]
        state["caption_id"][rows] = batch["caption_id"][batch["valid"]]
        state["there"][rows] = 1
        return state

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        """Loss and recall at 1 of the held-out pairs that could be read."""
        there = state["there"] > 0
        images, texts = state["features"][there].chunk(2, dim=1)
        return pair_scores(images, texts, state["caption_id"][there], self.clip.logit_scale.exp().item())

    def features(self, batch: dict[str, Any]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Unit vectors of the images and of the texts, in training with what is dropped of the images."""
        numbers = batch["sample_numbers"]
        images = self._encode_images(
            normalize(batch["image"], self.normalization),
            drop_path_noise=self._drop_path_noise(numbers),
            kept=self._kept_patches(numbers),
        )
        return images, self._encode_texts(batch["tokens"])

    def towers(self) -> list[tuple[TowerOptimization, Layers]]:
        """The image tower, the text tower and the temperature: what learns of them."""
        temperature = [[("logit_scale", self.clip.logit_scale)]]
        return [
            (self.visual, _learning(self.clip.visual_groups())),
            (self.text, _learning(self.clip.text_groups())),
            (TowerOptimization(), _learning(temperature)),
        ]

    def layer_groups(self) -> Layers:
        return [layer for _, layers in self.towers() for layer in layers]

    def shard_units(self) -> list[nn.Module]:
        """The blocks of both towers, which sharding gathers one at a time."""
        return self.clip.shard_units()

    def no_weight_decay(self) -> set[str]:
        return {f"clip.{name}" for name in self.clip.no_weight_decay()}

    def after_step(self, updated: bool) -> dict[str, Tensor]:
        """Keep the temperature in its bounds (released code), and tell the factor on the cosines."""
        self.clip.clamp_logit_scale()
        return {"logit_scale": self.clip.logit_scale.detach().exp()}

    def _drop_path_noise(self, sample_numbers: Int64[Tensor, "b"]) -> Float[Tensor, "b depth 2"] | None:
        config = self.clip.config.vision
        if not self.training or config.drop_path == 0.0 or self.visual.locked == "all":
            return None
        return keyed_uniform(self.seed, sample_numbers, config.depth * 2).view(-1, config.depth, 2)

    def _kept_patches(self, sample_numbers: Int64[Tensor, "b"]) -> Int64[Tensor, "b k"] | None:
        if not self.training or self.patch_dropout == 0.0 or self.visual.locked == "all":
            return None
        rows, columns = self.clip.config.vision.grid
        kept = max(1, int(rows * columns * (1.0 - self.patch_dropout)))
        drawn = keyed_uniform(self.seed ^ _PATCHES, sample_numbers, rows * columns)
        return drawn.argsort(dim=1, stable=True)[:, :kept]


def lock(layers: Layers, locked: int | Literal["all"], what: str) -> None:
    """Take the gradients from the first `locked` layers, input side first.

    Raises:
        UnveilError: there are no more layers than that.
    """
    if locked != "all" and locked >= len(layers):
        raise UnveilError(
            f"the {what} tower has {len(layers)} layers (embeddings, {len(layers) - 2} blocks, and what comes after "
            f"them), so that {locked} locked ones leave none to learn; give fewer, or all"
        )
    for layer in layers[: len(layers) if locked == "all" else locked]:
        for _, parameter in layer:
            parameter.requires_grad_(False)


def _learning(layers: Layers) -> Layers:
    """Without what is locked, under the task's names; the places of the layers stay."""
    return [[(f"clip.{name}", parameter) for name, parameter in layer if parameter.requires_grad] for layer in layers]
