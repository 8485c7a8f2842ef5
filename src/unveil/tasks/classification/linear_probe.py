"""The linear probe of MAE and EVA: a norm without weights and a linear layer, trained on frozen features.

Released EVA code: BatchNorm1d(affine=False, eps=1e-6) and a linear layer (truncated normal of deviation 0.01, bias 0)
on the cls token; everything else, the final norm included, stays as it was pre-trained.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unveil.tasks.classification.feature_table import FrozenFeatures
from unveil.tasks.classification.metrics import Scores, accumulate

Head = tuple[Float[Tensor, "classes d"], Float[Tensor, "classes"]]
"""Weight and bias of a linear layer."""

Batch = dict[str, Any]

EPSILON, MOMENTUM = 1e-6, 0.1
"""Of the norm (released code; the momentum is PyTorch's default)."""


class GlobalBatchNorm(nn.Module):
    """BatchNorm1d(affine=False) whose statistics are those of the global batch, over all processes.

    With frozen features and without weights no gradient goes through the statistics, so a sum over the processes is all
    that synchronising takes. (Released code: each GPU its own; with 400 images on each that is nearly the same.) Names
    and dtypes of the buffers are BatchNorm1d's.

    Args:
        sum_over_processes: replaces a tensor by its sum over all of them.
    """

    def __init__(self, width: int, sum_over_processes: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self._sum = sum_over_processes

    @torch.no_grad()
    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """In training by the batch, which the running statistics take in; in evaluation by those."""
        if not self.training:
            return (features - self.running_mean) * torch.rsqrt(self.running_var + EPSILON)
        exact = features.double()
        counts = torch.full_like(exact[0], len(exact))
        sums = torch.stack([exact.sum(dim=0), exact.square().sum(dim=0), counts])
        self._sum(sums)
        total, total_of_squares, count = sums
        mean = total / count
        variance = (total_of_squares / count - mean.square()).clamp_min(0.0)
        unbiased = variance * count / (count - 1.0)
        self.running_mean.lerp_(mean.float(), MOMENTUM)
        self.running_var.lerp_(unbiased.float(), MOMENTUM)
        self.num_batches_tracked += 1
        return ((exact - mean) * torch.rsqrt(variance + EPSILON)).float()


class LinearProbe(nn.Module):
    """The task: its batches hold "features", which `FeatureSteps` brings.

    The frozen network hangs on it as a plain object, so that a checkpoint holds the head alone. The head computes in
    fp32 whatever the format of the network: it costs next to nothing.
    """

    def __init__(
        self, frozen: FrozenFeatures, classes: tuple[str, ...], *, sum_over_processes: Callable[[Tensor], None]
    ) -> None:
        super().__init__()
        # Names as in the released linear-probe checkpoints: head.0.running_mean, head.1.weight, ...
        self.head = nn.Sequential(
            GlobalBatchNorm(frozen.width, sum_over_processes), nn.Linear(frozen.width, len(classes))
        )
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.classes = classes
        self.frozen = frozen

    @property
    def norm(self) -> GlobalBatchNorm:
        return cast(GlobalBatchNorm, self.head[0])

    @property
    def linear(self) -> nn.Linear:
        return cast(nn.Linear, self.head[1])

    def compile_(self) -> None:
        """Compile the frozen network: that is where the arithmetic is."""
        self.frozen.compile_()

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sum of the cross-entropy over the batch and of the correct answers, each with the number of images."""
        logits = self.logits(batch["features"])
        loss = F.cross_entropy(logits, batch["label"], reduction="sum")
        count = torch.tensor(float(len(logits)), device=logits.device)
        return {"loss": (loss, count), "accuracy": ((logits.argmax(dim=1) == batch["label"]).sum().float(), count)}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        return accumulate(self.logits(batch["features"]), batch["label"], batch["valid"])

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return Scores.of(state).numbers()

    def logits(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Scores of the classes for features."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features)

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        return [[(f"head.1.{name}", parameter) for name, parameter in self.linear.named_parameters()]]

    def shard_units(self) -> list[nn.Module]:
        return []

    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.no_grad()
    def folded(self) -> Head:
        """The one linear layer that norm and layer make up in evaluation: W / sqrt(var + eps) and b - that W mean."""
        weight, bias = self.linear.weight.double(), self.linear.bias.double()
        weight = weight * torch.rsqrt(self.norm.running_var.double() + EPSILON)
        return weight.float(), (bias - weight @ self.norm.running_mean.double()).float()


class FeatureSteps:
    """`steps` of the loop: the micro-batches of a loader, seen by the frozen network, joined to one batch.

    So the head always has a process's whole share of the global batch before it, and images go through the network in
    as small parts as its memory needs.

    Args:
        steps: of a training loader.
        features: of one of its micro-batches: computed from its images, or looked up.
    """

    def __init__(
        self,
        steps: Callable[[int, int], Iterator[list[Batch]]],
        features: Callable[[Batch], Float[Tensor, "b d"]],
    ) -> None:
        self.steps = steps
        self.features = features

    def __call__(self, first: int, last: int) -> Iterator[list[Batch]]:
        for micro_batches in self.steps(first, last):
            joined = {name: torch.cat([batch[name] for batch in micro_batches]) for name in ("label", "sample_numbers")}
            joined["features"] = torch.cat([self.features(batch) for batch in micro_batches])
            yield [joined | {"names": [name for batch in micro_batches for name in batch["names"]]}]


def feature_batches(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, "n"], *, size: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Evaluation batches of features that are in memory: equally many of equal size for every rank, the last padded."""
    stride = size * world_size
    for start in range(rank * size, -(-len(labels) // stride) * stride, stride):
        places = torch.arange(start, start + size)
        valid = places < len(labels)
        places = places.clamp(max=len(labels) - 1)
        yield {"features": features[places], "label": labels[places], "valid": valid, "sample_numbers": places}
