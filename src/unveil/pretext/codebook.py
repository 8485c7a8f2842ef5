"""A codebook on the unit sphere that no gradient moves: codes are running averages of the features that take them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.models.randomness import keyed_uniform

GRACE = 16
"""Steps that a revived code has until it is dead again, if nothing takes it: the use that it is given lasts so long."""

LEAST_USE = 1e-3
"""That a new code is given where none is ever revived: more than none, with which the codebook begins."""


class Codebook(nn.Module):
    """`size` unit vectors; a feature takes the nearest (BEiT v2, section 2.1 and released code).

    In training, `observe` adds up what each micro-batch says, and `learn` moves the codes once a step by the sums over
    the global batch, so that a step is the same however its batch is split. A code that (almost) nothing takes is dead;
    it becomes a feature of the batch, drawn with the step as key. So do all codes at the first step.

    Args:
        size: codes.
        dim: length of each.
        decay: of the running averages, of codes and of their use.
        revive_below: a code used less than this share of the average code's use is dead.
        seed: of the draws.
        global_batch_size: sample numbers step * this up to (step + 1) * this make up a step.
    """

    codes: Tensor
    usage: Tensor

    def __init__(
        self, size: int, dim: int, *, decay: float, revive_below: float, seed: int, global_batch_size: int
    ) -> None:
        super().__init__()
        self.decay = decay
        self.revive_below = revive_below
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.register_buffer("codes", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("usage", torch.zeros(size))
        # No buffers: between two steps they hold nothing, and DDP would overwrite them with the first process's.
        self._sums: dict[str, Tensor] = {}

    def nearest(self, features: Float[Tensor, "b n d"]) -> Int64[Tensor, "b n"]:
        """The code of each feature, which has length 1 in float32: the one with the largest product."""
        return (features @ self.codes.T).argmax(dim=-1)

    @torch.no_grad()
    def observe(
        self, features: Float[Tensor, "b n d"], taken: Int64[Tensor, "b n"], sample_numbers: Int64[Tensor, "b"]
    ) -> None:
        """Add a micro-batch to the sums of the step: how often each code was taken, by what, and what may revive it."""
        flat, numbers = features.flatten(0, 1), taken.flatten()
        found = {
            "counts": torch.bincount(numbers, minlength=len(self.codes)),
            "sums": torch.zeros_like(self.codes).index_add_(0, numbers, flat),
            "candidates": self._candidates(features, sample_numbers),
        }
        self._sums = {name: self._sums[name] + value for name, value in found.items()} if self._sums else found

    @torch.no_grad()
    def learn(self, updated: bool, add_up: Callable[[dict[str, Tensor]], None]) -> dict[str, Tensor]:
        """Move the codes by what was observed since the last call.

        A code goes the share 1 - decay of the way to the direction of the mean of its features, however many they are.

        Args:
            updated: whether the step moved the weights; where it did not, the codes stay as well.
            add_up: replaces each tensor by its sum over all processes.

        Returns:
            `codebook_use`, the share of the codes that the global batch took; `codebook_perplexity`, the exponential of
            the entropy of their shares, over their number; `codebook_revived`, how many were dead.
        """
        sums, self._sums = self._sums, {}
        add_up(sums)
        counts = sums["counts"]
        dead = torch.zeros_like(self.usage, dtype=torch.bool)
        if updated:
            unborn = ~self.usage.any()
            self.usage.lerp_(counts * (len(counts) / counts.sum()), 1.0 - self.decay)
            dead = (self.usage < self.revive_below) | unborn
            moved = F.normalize(torch.lerp(F.normalize(sums["sums"], dim=1), self.codes, self.decay), dim=1)
            self.codes.copy_(torch.where((counts > 0)[:, None], moved, self.codes))
            self.codes.copy_(torch.where(dead[:, None], sums["candidates"], self.codes))
            self.usage.masked_fill_(dead, max(self.revive_below, LEAST_USE) / self.decay**GRACE)
        return usage_metrics(counts) | {"codebook_revived": dead.sum()}

    def _candidates(
        self, features: Float[Tensor, "b n d"], sample_numbers: Int64[Tensor, "b"]
    ) -> Float[Tensor, "size d"]:
        """For each code the feature of the global batch that would revive it, where it is here, else zeros."""
        patches = features.shape[1]
        step = torch.div(sample_numbers[:1], self.global_batch_size, rounding_mode="floor")
        drawn = keyed_uniform(self.seed, step, len(self.codes))[0]
        place = (drawn.double() * (self.global_batch_size * patches)).long()
        here = (step * self.global_batch_size + place // patches)[:, None] == sample_numbers
        found = features[here.long().argmax(dim=1), place % patches]
        return found * here.any(dim=1)[:, None]


def usage_metrics(counts: Int64[Tensor, "size"]) -> dict[str, Tensor]:
    """The share of the codes that were taken, and their perplexity over their number, of how often each was taken."""
    shares = counts.double() / counts.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return {
        "codebook_use": (counts > 0).double().mean(),
        "codebook_perplexity": entropy.exp() / len(counts),
    }
