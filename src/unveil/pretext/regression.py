"""What pretext tasks share: the student and its noise; the target of those that regress one."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.data.normalization import Normalization, normalize
from unveil.models.backbone import Backbone
from unveil.models.randomness import keyed_uniform
from unveil.models.transformer import take
from unveil.models.vit import ViT
from unveil.pretext.targets.base import CompiledTarget, SelectiveTarget, Target
from unveil.pretext.targets.cache import TargetCache
from unveil.pretext.targets.ema import EmaTeacher


class PretextTask(nn.Module):
    """The base of tasks that train a network without labels."""

    def __init__(self, backbone: Backbone, *, seed: int, normalization: Normalization) -> None:
        super().__init__()
        self.backbone = backbone
        self.seed = seed
        self.normalization = normalization

    def after_step(self, updated: bool, add_up: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
        """Let what no gradient moves take its step; metrics of it.

        Args:
            updated: whether the step changed the weights.
            add_up: replaces tensors by their sums over all processes; the weights are the same in all of them.
        """
        return {}

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """The backbone's groups, input side first; what else is trained belongs to the last."""
        groups = [
            [(f"backbone.{name}", p) for name, p in group if p.requires_grad] for group in self.backbone.layer_groups()
        ]
        others = [(name, p) for name, p in self.named_parameters() if not name.startswith("backbone.")]
        groups[-1] += [(name, p) for name, p in others if p.requires_grad]
        return groups

    def shard_units(self) -> list[nn.Module]:
        """The blocks, which sharding gathers one at a time."""
        return self.backbone.shard_units()

    def no_weight_decay(self) -> set[str]:
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def normalized(self, batch: dict[str, Any]) -> Float[Tensor, "b c h w"]:
        """The student's images as its network wants them."""
        return normalize(batch["image"], self.normalization)

    def drop_path_noise(
        self, sample_numbers: Int64[Tensor, "b"], more_blocks: int = 0
    ) -> Float[Tensor, "b blocks 2"] | None:
        """Of the student's blocks in training, and of `more_blocks` after them; teachers have none."""
        config = self.backbone.config
        if not self.training or config.drop_path == 0.0:
            return None
        blocks = config.depth + more_blocks
        return keyed_uniform(self.seed, sample_numbers, blocks * 2).view(-1, blocks, 2)


class Regression(PretextTask):
    """The base of tasks that regress a target's feature of each patch.

    A frozen teacher is a plain object beside the network, not a part of it: it is in no checkpoint and no optimizer.
    The student's own running average (`EmaTeacher`) is a module, and so saved with it.
    """

    def __init__(self, backbone: Backbone, target: Target, *, seed: int, normalization: Normalization) -> None:
        super().__init__(backbone, seed=seed, normalization=normalization)
        self.target = target
        self.cache: TargetCache | None = None
        """The targets of the training samples where they were computed ahead."""

    def after_step(self, updated: bool, add_up: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
        """Let a teacher that follows the student's weights take its step."""
        if updated and isinstance(self.target, EmaTeacher):
            assert isinstance(self.backbone, ViT)  # The configuration sees to that.
            self.target.follow(self.backbone)
        return {}

    def shard_units(self) -> list[nn.Module]:
        """With those of a teacher that follows the student."""
        followed = self.target.network.shard_units() if isinstance(self.target, EmaTeacher) else []
        return super().shard_units() + followed

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"loss": (state["loss_sum"] / state["count"]).item()}

    def compile_(self) -> None:
        """Compile the teacher's forward; who inherits adds the student's, with its loss. Their shapes never change."""
        if isinstance(self.target, CompiledTarget):
            self.target.compile_()

    @torch.no_grad()
    def targets(self, batch: dict[str, Any], patches: Int64[Tensor, "b k"] | None = None) -> Float[Tensor, "b m t"]:
        """What each patch, or each of the numbered ones, should become: from the view of the same crop that has the
        teacher's resolution."""
        if self.cache is not None and self.training:
            features = self.cache.lookup(batch["indices"].cpu(), batch["flipped"].cpu())
            found = features.to(batch["image"].device, non_blocking=True)
        else:
            images = batch.get("teacher_image", batch["image"])
            if patches is not None and isinstance(self.target, SelectiveTarget):
                return self.target.at(images, patches).float()
            found = self.target(images)
        return (found if patches is None else take(found, patches)).float()


def linear_head(backbone: Backbone, dim: int) -> nn.Linear:
    """From the student's width to the target's, initialised as its other weights are (released code)."""
    head = nn.Linear(backbone.config.width, dim)
    std = backbone.config.init_std
    nn.init.trunc_normal_(head.weight, std=std, a=-std, b=std)
    nn.init.zeros_(head.bias)
    return head
