"""How well scores find the images of each class where an image may show several: average precision."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class AveragePrecision:
    """Shares, 0 to 1."""

    per_class: tuple[float | None, ...]
    """None for a class that no image shows."""

    @property
    def mean(self) -> float:
        """Over the classes that some image shows."""
        known = [value for value in self.per_class if value is not None]
        return sum(known) / len(known) if known else float("nan")


def average_precision(scores: Float[Tensor, "n c"], targets: Bool[Tensor, "n c"]) -> AveragePrecision:
    """Of each class, the area under the steps of its precision over recall (scikit-learn's; not interpolated).

    Args:
        targets: True where the image shows the class.
    """
    from sklearn.metrics import average_precision_score

    return AveragePrecision(
        tuple(
            float(average_precision_score(wanted.numpy(), found.numpy())) if wanted.any() else None
            for wanted, found in zip(targets.T.cpu(), scores.double().T.cpu(), strict=True)
        )
    )


class SeveralClassesMeasure:
    """Keeps every image's scores by its place, since an average precision is no sum over batches.

    It is what `unveil.engine.evaluate` asks of a task. Afterwards `scores` and `seen` are to be summed over processes.

    Args:
        logits: images as bytes to one score for each class.
        images: in the source.
        classes: scores of an image.
    """

    training = False

    def __init__(
        self, logits: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b c"]], images: int, classes: int
    ) -> None:
        self._logits = logits
        self.scores = torch.zeros(images, classes)
        """Zeros where this process has not been."""
        self.seen = torch.zeros(images)
        """1 where it has."""

    def train(self, mode: bool = True) -> None:
        """There is nothing to train."""

    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Counts over the batch's valid rows."""
        valid = batch["valid"]
        logits = self._logits(batch["image"]).float()
        places = batch["indices"][valid].cpu()
        self.scores[places] = logits[valid].cpu()
        self.seen[places] = 1.0
        return {"images": valid.sum(), "not_finite": (~logits.isfinite().all(dim=1) & valid).sum()}

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        """The counts."""
        return {name: float(value) for name, value in state.items()}
