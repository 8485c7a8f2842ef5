"""Features of a frozen network: pooled, in fp32; and a table of those of all images that are always seen alike."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from unveil.config import UnveilError
from unveil.data.loader import EvaluationLoader
from unveil.data.normalization import Normalization, normalize
from unveil.data.sources.base import Sample, UnreadableSample
from unveil.models.backbone import Backbone
from unveil.models.revcolv2 import RevColV2

MOST_BYTES = 2**30
"""Of a table in fp32; a larger one is kept in fp16."""


class FrozenFeatures:
    """Images as bytes to one vector each: the cls token, or the mean of the patch tokens, behind the final norm.

    RevColV2 has no such norm. What is read of it is the mean of what it was made to read: `probed_backbone`.

    No gradient passes, nothing is dropped, and no weight changes. A plain object, so that it is in no checkpoint and no
    optimizer.

    Args:
        pooled_norm: of a network that was fine-tuned on the mean of its patches and has its only norm behind it.
        autocast: gives the format of the arithmetic.

    Raises:
        UnveilError: the network has no norm that belongs to this pooling.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        pooling: Literal["mean", "cls"],
        normalization: Normalization,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
        pooled_norm: nn.Module | None = None,
    ) -> None:
        if isinstance(backbone, RevColV2):
            if pooling == "cls":
                raise UnveilError("RevColV2 has no cls token; use --pooling mean")
        elif isinstance(backbone.norm, nn.Identity) and (pooled_norm is None or pooling == "cls"):
            way_out = "use --pooling mean" if pooling == "cls" and pooled_norm is not None else "use other weights"
            raise UnveilError(
                f"the network has no norm for --pooling {pooling}: where it was fine-tuned on the mean of its patches, "
                f"nothing ever read its cls token, and without a norm its features have no scale; {way_out}"
            )
        self.backbone = backbone.to(device).eval().requires_grad_(False)
        self.pooled_norm = None if pooled_norm is None or pooling == "cls" else pooled_norm.to(device).eval()
        self.pooling = pooling
        self.normalization: Normalization = normalization
        self.device = device
        self._autocast = autocast

    @property
    def width(self) -> int:
        return self.backbone.config.width

    def compile_(self) -> None:
        """Compile what does the arithmetic."""
        self.pool = torch.compile(self.pool, dynamic=False)  # type: ignore[method-assign]

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """On the device, fp32."""
        with self._autocast():
            return self.pool(normalize(images.to(self.device, non_blocking=True), self.normalization)).float()

    def pool(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Of normalised images, in the format that the network answers in."""
        found = self.backbone(images)
        if self.pooling == "cls":
            return found.cls
        mean = found.patches.float().mean(dim=1)
        return mean if self.pooled_norm is None else self.pooled_norm(mean)


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Features of all images of a source, by place. On the processor, the same on every process."""

    features: Float[Tensor, "n views d"]
    """fp32 or, beyond `MOST_BYTES`, fp16. The second view is the mirror image. Zeros where not readable."""
    labels: Int64[Tensor, "n"]
    """-1 where not readable."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def readable(self) -> Bool[Tensor, "n"]:
        return self.labels >= 0

    def lookup(self, places: Int64[Tensor, "b"], mirrored: Bool[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """fp32."""
        return self.features[places, mirrored.long()].float()

    def upright(self, places: Int64[Tensor, "b"]) -> tuple[Float[Tensor, "m d"], Int64[Tensor, "m"]]:
        """fp32 features, not mirrored, and labels of those of `places` that could be read."""
        places = places[self.readable[places]]
        return self.features[places, 0].float(), self.labels[places]


def read_table(
    frozen: FrozenFeatures,
    loader: EvaluationLoader,
    *,
    mirrored: bool,
    sum_over_processes: Callable[[Tensor], None],
    on_progress: Callable[[int, int], None],
) -> FeatureTable:
    """Look at every image of the loader's source once; the processes share the work, and all get the whole table.

    Args:
        loader: of batches with "image" and "label".
        mirrored: at the mirror images, too.
        sum_over_processes: replaces a tensor by its sum over all of them.
        on_progress: called with the number of images done and in all.

    Raises:
        UnveilError: nothing can be read, or features are not finite or too large for the table.
    """
    count, stride = len(loader.source), loader.batch_size * loader.world_size
    views = 2 if mirrored else 1
    half = count * views * frozen.width * 4 > MOST_BYTES
    features = torch.zeros(count, views, frozen.width, dtype=torch.float16 if half else torch.float32)
    labels = torch.full((count,), -1)
    for start, batch in zip(range(0, count, stride), loader, strict=True):
        images, valid = batch["image"], batch["valid"].to(frozen.device)
        found = torch.stack([frozen(images), frozen(images.flip(-1))] if mirrored else [frozen(images)], dim=1)
        found = found.where(valid[:, None, None], 0.0)
        _check(found, batch["names"], torch.finfo(features.dtype).max)
        # Each process adds its rows to zeros.
        rows = found.new_zeros(loader.world_size, *found.shape)
        numbers = batch["label"].new_zeros(loader.world_size, len(valid), device=frozen.device)
        rows[loader.rank] = found
        numbers[loader.rank] = torch.where(valid, batch["label"].to(frozen.device), -1)
        sum_over_processes(rows)
        sum_over_processes(numbers)
        end = min(start + stride, count)
        features[start:end] = rows.flatten(0, 1)[: end - start].to(features.dtype).cpu()
        labels[start:end] = numbers.flatten()[: end - start].cpu()
        on_progress(end, count)
    if not (labels >= 0).any():
        raise UnveilError(f"none of the {count:,} labelled images can be read; copy them again")
    return FeatureTable(features=features, labels=labels)


def _check(features: Float[Tensor, "b views d"], names: list[str], limit: float) -> None:
    largest = features.abs().amax(dim=(1, 2))
    bad = ~(largest <= limit)
    if bad.any():
        row = int(bad.float().argmax())
        what = "not finite" if not torch.isfinite(largest[row]) else f"as large as {largest[row]:.3g}"
        raise UnveilError(
            f"the features of {names[row]} are {what}; try --set engine.precision=fp32, or other weights than these"
        )


@dataclass(frozen=True)
class TableSource:
    """Stands for the images of a table, so that the training loader draws from it in the same order as from them."""

    table: FeatureTable
    places: Int64[Tensor, "n"]
    """Which of them, in order."""

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        """The image is a dot. Raises UnreadableSample where the real one could not be read."""
        label = int(self.table.labels[self.places[index]])
        name = f"image {index}"
        if label < 0:
            raise UnreadableSample(name, "its features are missing")
        return Sample(_DOT, name, label, index)

    def digest(self) -> dict[str, dict[str, Any]]:
        return {"features": {"count": len(self), "sha256": ""}}


_DOT = Image.new("RGB", (1, 1))


@dataclass(frozen=True)
class TableView:
    """Draws from `rng` what a centre crop and a flip draw: the flip."""

    flip: bool

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        return {"label": sample.label, "mirrored": self.flip and rng.random() < 0.5}


def collate_table(views: list[dict[str, Any]]) -> dict[str, Any]:
    """Labels (Int64 b) and whether each is seen mirrored (Bool b)."""
    return {name: torch.tensor([view[name] for view in views]) for name in ("label", "mirrored")}
