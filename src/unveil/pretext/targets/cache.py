"""Features computed once and looked up ever after, for images whose views are not random."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from unveil.config import UnveilError
from unveil.data.sources.base import Sample, Source, UnreadableSample
from unveil.pretext.targets.base import Target

CHUNK = 64
"""Images per call of the teacher. Never the training's batch: the last bits of a feature depend on this number, and a
resumed run, or one on other hardware limits, must compute the same."""


class TargetCache:
    """The features of every sample of a source, and of its mirror image where flips are drawn.

    Kept in fp16: its rounding (a relative 2^-11) moves the cosine of two features by some 1e-5, below what the
    teacher's own bf16 does, at half the size. 10,000 images of 49 patches and 1280 channels take 1.3 GB, with mirrored
    ones 2.5 GB: in memory, or in a file in `folder` that is gone when the process ends.
    """

    def __init__(
        self, target: Target, count: int, *, flips: bool, random_crops: bool, folder: Path | None = None
    ) -> None:
        """`count`: samples in the source. `random_crops`: whether the student's crops are drawn anew each time.

        Raises:
            UnveilError: with random crops no two views are alike; no room in `folder`.
        """
        if random_crops:
            raise UnveilError(
                "the teacher's features of random crops cannot be cached, since no two are alike: "
                "use a centre crop (--set data.crop=CenterCrop) or no cache"
            )
        self.target = target
        self.flips = flips
        rows, columns = target.grid
        shape = (count, 2 if flips else 1, rows * columns, target.dim)
        self._features = _allocate(shape, folder)
        self._known = torch.zeros(count, dtype=torch.bool)

    def fill(
        self,
        source: Source,
        view: Callable[[Sample], UInt8[Tensor, "3 h w"]],
        place: torch.device | str,
        progress: Callable[[int, int], None],
    ) -> None:
        """Compute everything, in the source's order, in chunks of fixed size. Unreadable samples are left out.

        Args:
            view: A sample's image as the teacher is to see it, not mirrored.
            place: Where the target is.
            progress: Called with the samples done and their number.

        Raises:
            UnveilError: a feature too large for fp16.
        """
        count = len(self._known)
        for start in range(0, count, CHUNK):
            numbers, images = [], []
            for index in range(start, min(start + CHUNK, count)):
                try:
                    images.append(view(source[index]))
                except UnreadableSample:
                    continue
                numbers.append(index)
            if images:
                self._store(torch.tensor(numbers), torch.stack(images).to(place))
            progress(min(start + CHUNK, count), count)

    def _store(self, numbers: Int64[Tensor, "b"], images: UInt8[Tensor, "b 3 h w"]) -> None:
        for mirrored in range(2 if self.flips else 1):
            features = self.target(images.flip(3) if mirrored else images).to("cpu", torch.float16)
            if not features.isfinite().all():
                raise UnveilError(f"features of the teacher {self.target.name} are too large to be cached in fp16")
            self._features[numbers, mirrored] = features
        self._known[numbers] = True

    def lookup(self, indices: Int64[Tensor, "b"], flipped: Bool[Tensor, "b"]) -> Float[Tensor, "b n d"]:
        """Features, fp16 on the CPU, of samples by their index in the source.

        Raises:
            UnveilError: a sample could not be read when the cache was filled.
        """
        if not self._known[indices].all():
            missing = indices[~self._known[indices]].tolist()
            raise UnveilError(
                f"samples {missing} could not be read when the teacher's features were computed, but can be now: "
                "start again"
            )
        return self._features[indices, flipped.long() if self.flips else torch.zeros_like(indices)]


def _allocate(shape: tuple[int, ...], folder: Path | None) -> Float[Tensor, "count mirrored n d"]:
    if folder is None:
        return torch.zeros(shape, dtype=torch.float16)
    size = torch.Size(shape).numel()
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="teacher-features-") as file:
            # Written and not only sized, so that a full disk is found now and not as a crash in the middle.
            os.posix_fallocate(file.fileno(), 0, 2 * size)
            # The mapping keeps the space after the name is gone.
            return torch.from_file(file.name, shared=True, size=size, dtype=torch.float16).view(shape)
    except OSError as error:
        raise UnveilError(
            f"no room in {folder} for {2 * size / 1e9:.1f} GB of the teacher's features ({error})"
        ) from error
