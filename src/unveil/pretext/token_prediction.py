"""BEiT's pretext task, in the form of BEiT v2: tell a frozen tokeniser's codes of the patches that are hidden."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from unveil.config import MaskedTokenPrediction, PatchAggregation, UnveilError, ViTConfig
from unveil.data.normalization import Normalization
from unveil.models.transformer import Block, take
from unveil.models.vit import ViT
from unveil.pretext.masked_modelling import stripe_mask
from unveil.pretext.regression import PretextTask, linear_head
from unveil.pretext.targets.codes import FrozenTokenizer


class TokenPrediction(PretextTask):
    """Backbone, a linear classifier of codes on the hidden patches, cross-entropy; BEiT v2's second head on demand.

    The tokeniser is a plain object beside the network: it is in no checkpoint and no optimizer.
    """

    backbone: ViT

    def __init__(
        self,
        backbone: ViT,
        tokenizer: FrozenTokenizer,
        *,
        seed: int,
        normalization: Normalization,
        objective: MaskedTokenPrediction,
    ) -> None:
        """Raises UnveilError where the tokeniser's patches are not the student's, or aggregation asks for a block that
        is not there."""
        super().__init__(backbone, seed=seed, normalization=normalization)
        config = backbone.config
        if tokenizer.grid != config.grid:
            (rows, columns), (own_rows, own_columns) = tokenizer.grid, config.grid
            raise UnveilError(
                f"the tokeniser {tokenizer.name} has codes for {rows} x {columns} patches, the network "
                f"{own_rows} x {own_columns}; train another tokeniser, or choose model.image_size and model.patch_size "
                "to fit"
            )
        self.head = linear_head(backbone, tokenizer.codes)
        self.aggregation = None if objective.aggregation is None else Aggregation(config, objective.aggregation)
        self.target = tokenizer

    def compile_(self) -> None:
        """Compile what does the arithmetic: the tokeniser's forward; the student's, with its losses."""
        self.target.compile_()
        self.classify = torch.compile(self.classify, dynamic=False)  # type: ignore[method-assign]

    def forward(self, batch: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums over all hidden patches of the batch, and their number. With two heads the loss is the sum of both."""
        weight = batch["hidden_weight"]
        losses, aggregated, right = self._told(batch, batch["hidden"], batch["mask"])
        count, right_sum = weight.sum(), (right * weight).sum()
        if aggregated is None:
            return {"loss": ((losses * weight).sum(), count), "code_accuracy": (right_sum, count)}
        second = (aggregated * weight).sum()
        return {
            "loss": ((losses * weight).sum() + second, count),
            "aggregation_loss": (second, count),
            "code_accuracy": (right_sum, count),
        }

    @torch.no_grad()
    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The first head's on the fixed stripe mask, so that two runs of one tokeniser compare."""
        rows, columns = self.backbone.config.grid
        mask = stripe_mask(rows, columns).to(batch["image"].device).expand(len(batch["image"]), -1)
        hidden = mask[0].nonzero().squeeze(1).expand(len(mask), -1)
        losses, _, right = self._told(batch, hidden, mask)
        valid = batch["valid"].to(losses)
        return {
            "loss_sum": (losses.sum(dim=1) * valid).sum(),
            "right": (right.sum(dim=1) * valid).sum(),
            "count": valid.sum() * hidden.shape[1],
        }

    def shard_units(self) -> list[nn.Module]:
        """With the blocks of the second head."""
        return super().shard_units() + ([] if self.aggregation is None else list(self.aggregation.blocks))

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {
            "loss": (state["loss_sum"] / state["count"]).item(),
            "code_accuracy": (state["right"] / state["count"]).item(),
        }

    @torch.no_grad()
    def codes(self, batch: dict[str, Any], patches: Int64[Tensor, "b k"] | None = None) -> Int64[Tensor, "b m"]:
        """What is to be told of each patch, or of the numbered ones: from the view of the same crop that has the
        tokeniser's resolution."""
        return self.target(batch.get("teacher_image", batch["image"]), patches)

    def classify(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b n"],
        hidden: Int64[Tensor, "b k"],
        wanted: Int64[Tensor, "b k"],
        drop_path_noise: Float[Tensor, "b blocks 2"] | None,
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"] | None, Bool[Tensor, "b k"]]:
        """Cross-entropy of each head (the second: in training only) at the `hidden` patches; where the first is right.

        Args:
            wanted: the hidden patches' codes.
            drop_path_noise: for the backbone's blocks, then the second head's.
        """
        second_head = self.aggregation if self.training else None
        noise, second_noise = drop_path_noise, None
        if drop_path_noise is not None:
            noise, second_noise = drop_path_noise.tensor_split([self.backbone.config.depth], dim=1)
        need = () if second_head is None else second_head.need
        found = self.backbone(images, mask, only=hidden, drop_path_noise=noise, need=need)
        logits = self.head(found.patches).float()
        second = None
        if second_head is not None:
            tokens = second_head(found.intermediates, self.backbone, second_noise)
            patches = self.backbone.finish(take(tokens, hidden + 1))
            second = _cross_entropy(self.head(patches).float(), wanted)
        return _cross_entropy(logits, wanted), second, logits.argmax(dim=-1) == wanted

    def _told(
        self, batch: dict[str, Any], hidden: Int64[Tensor, "b k"], mask: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"] | None, Bool[Tensor, "b k"]]:
        more = 0 if self.aggregation is None else len(self.aggregation.blocks)
        noise = self.drop_path_noise(batch["sample_numbers"], more)
        return self.classify(self.normalized(batch), mask, hidden, self.codes(batch, hidden), noise)


class Aggregation(nn.Module):
    """The blocks of BEiT v2's second head (section 2.3): the last block's cls token among an early block's patches.

    What the early patches do not know of the image must come through the cls token.
    """

    def __init__(self, config: ViTConfig, setting: PatchAggregation) -> None:
        """Raises UnveilError where the network has no such early block."""
        super().__init__()
        if setting.after_block >= config.depth:
            raise UnveilError(
                f"objective.aggregation.after_block is {setting.after_block}, which must be less than the network's "
                f"{config.depth} blocks"
            )
        self.early, self.late = setting.after_block - 1, config.depth - 1
        self.need = (f"blocks.{self.early}", f"blocks.{self.late}")
        numbers = range(setting.after_block, setting.after_block + setting.depth)
        last = max(config.depth, numbers.stop) - 1
        self.blocks = nn.ModuleList(Block(config, config.drop_path * number / last) for number in numbers)
        std = config.init_std
        for number, block in zip(numbers, cast(Iterable[Block], self.blocks), strict=True):
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.trunc_normal_(layer.weight, std=std, a=-std, b=std)
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
            # As the backbone's blocks of this number are scaled.
            with torch.no_grad():
                block.attn.proj.weight.div_(math.sqrt(2.0 * (number + 1)))
                block.mlp.fc2.weight.div_(math.sqrt(2.0 * (number + 1)))

    def forward(
        self,
        tokens: dict[int, Float[Tensor, "b _ d"]],
        backbone: ViT,
        drop_path_noise: Float[Tensor, "b depth 2"] | None,
    ) -> Float[Tensor, "b t d"]:
        """`tokens`: as the early and the last block of the backbone leave them, by the blocks' numbers; of the last the
        cls token is enough."""
        x = torch.cat((tokens[self.late][:, :1], tokens[self.early][:, 1:]), dim=1)
        bias = None if backbone.rel_pos_bias is None else backbone.rel_pos_bias(backbone.config.grid)
        for place, block in enumerate(self.blocks):
            x = block(x, None if drop_path_noise is None else drop_path_noise[:, place], bias)
        return x


def _cross_entropy(logits: Float[Tensor, "b k codes"], wanted: Int64[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
