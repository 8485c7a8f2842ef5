"""Crops resized on the device, a batch at a time: the workers cut out, and leave the arithmetic of resizing to it.

The filter is Pillow's (bicubic, antialiased), as two matrix products of all images of a batch: from columns to columns,
then from rows to rows. Pillow rounds to bytes after each of the two, and so does this. It adds up in integers and this
in float32, so values that lie on the edge between two bytes may fall on the other side: about one in ten thousand does,
and none differs by more than `TOLERANCE`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int64, UInt8
from torch import Tensor

from unveil.data.crops import Box
from unveil.data.device_decoding import UndecodedCut, UndecodedSample, decode_on
from unveil.data.sources.base import Sample

TOLERANCE = 1
"""Of 255: between `resized` and `unveil.data.crops.resize_crop` of the same box, mirrored or not."""

REACH = 2.0
"""Pixels of the result (of the image, where that is enlarged) to each side that the filter looks at."""

SHARPNESS = -0.5
"""The bicubic kernel's free number, as Pillow has it."""


@dataclass(frozen=True)
class Cut:
    """A part of an image, and where in it the crop is."""

    pixels: UInt8[Tensor, "3 h w"]
    """The crop and as much around it as the filter can see."""
    box: Box
    """The crop, in pixels of the part."""


def cut_out(sample: Sample, box: Box, size: int) -> Cut | UndecodedCut:
    """What `resized` needs of an RGB image to bring `box` of it to `size` x `size` pixels, or to more."""
    if isinstance(sample, UndecodedSample):
        return UndecodedCut(sample.data, box, sample.name)
    image = sample.image
    window, box = _window(box, size, image.width, image.height)
    part = np.asarray(image.crop(window))
    return Cut(torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))), box)


def _window(box: Box, size: int, width: int, height: int) -> tuple[tuple[int, int, int, int], Box]:
    """The part of an image that the filter sees for a crop of it, and the crop in that part."""
    left, top, right, bottom = box
    across, down = (REACH * max((stop - start) / size, 1.0) for start, stop in ((left, right), (top, bottom)))
    first_column, first_row = max(0, math.floor(left - across)), max(0, math.floor(top - down))
    last_column, last_row = min(width, math.ceil(right + across)), min(height, math.ceil(bottom + down))
    inside = (left - first_column, top - first_row, right - first_column, bottom - first_row)
    return (first_column, first_row, last_column, last_row), inside


def collate_cuts(cuts: Sequence[Cut | UndecodedCut]) -> dict[str, Any]:
    """A batch of them: "cuts" (UInt8 b 3 h w), each in the upper left corner; "extents" (Int64 b 2), how many rows and
    columns each has there; "boxes" (Float64 b 4). Where some are to be decoded first, "undecoded": all, as they are."""
    if any(isinstance(cut, UndecodedCut) for cut in cuts):
        return {"undecoded": list(cuts)}
    return _together([cut for cut in cuts if isinstance(cut, Cut)])


def _together(cuts: Sequence[Cut]) -> dict[str, Tensor]:
    extents = torch.tensor([cut.pixels.shape[1:] for cut in cuts])
    rows, columns = extents.amax(dim=0).tolist()
    return {
        "cuts": torch.stack(
            [F.pad(cut.pixels, (0, columns - cut.pixels.shape[2], 0, rows - cut.pixels.shape[1])) for cut in cuts]
        ),
        "extents": extents,
        "boxes": torch.tensor([cut.box for cut in cuts], dtype=torch.float64),
    }


@dataclass(frozen=True)
class DeviceCrops:
    """Finishes on the device what `cut_out` and `collate_cuts` began."""

    device: torch.device
    image_size: int
    teacher_size: int | None = None
    """Of the teacher's own view of the same crop, if it has one."""

    def __call__(self, micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The micro-batches of a step, with "image", and "teacher_image", where they had cuts."""
        return [self._finished(batch) for batch in micro_batches]

    @torch.no_grad()
    def _finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        parts = _together(self._decoded(batch["undecoded"])) if "undecoded" in batch else batch
        cuts, extents, boxes = (parts[name].to(self.device, non_blocking=True) for name in ("cuts", "extents", "boxes"))
        flipped = batch["flipped"].to(self.device, non_blocking=True)
        views = {"image": self.image_size, "teacher_image": self.teacher_size}
        images = {
            name: resized(cuts, extents, boxes, flipped, size) for name, size in views.items() if size is not None
        }
        rest = {name: value for name, value in batch.items() if name not in ("undecoded", "cuts", "extents", "boxes")}
        return rest | images

    def _decoded(self, cuts: Sequence[Cut | UndecodedCut]) -> list[Cut]:
        """All of them on the device; what the workers have decoded is copied there."""
        images = iter(decode_on(self.device, [cut for cut in cuts if isinstance(cut, UndecodedCut)]))
        size = min(self.image_size, self.teacher_size or self.image_size)
        found = []
        for cut in cuts:
            if isinstance(cut, Cut):
                found.append(Cut(cut.pixels.to(self.device, non_blocking=True), cut.box))
                continue
            pixels = next(images)
            window, box = _window(cut.box, size, pixels.shape[2], pixels.shape[1])
            left, top, right, bottom = window
            found.append(Cut(pixels[:, top:bottom, left:right], box))
        return found


def resized(
    cuts: UInt8[Tensor, "b 3 h w"],
    extents: Int64[Tensor, "b 2"],
    boxes: Float64[Tensor, "b 4"],
    flipped: Bool[Tensor, "b"],
    size: int,
) -> UInt8[Tensor, "b 3 {size} {size}"]:
    """The box of each image resized to `size` x `size` (antialiased), mirrored where it is `flipped`."""
    rows, columns = cuts.shape[2:]
    left, top, right, bottom = boxes.unbind(dim=1)
    across = _weights(left, right, extents[:, 1], columns, size)
    across = torch.where(flipped[:, None, None], across.flip(1), across)
    down = _weights(top, bottom, extents[:, 0], rows, size)
    narrowed = _to_bytes(cuts.flatten(1, 2).float() @ across.transpose(1, 2)).unflatten(1, (3, rows))
    return _to_bytes(down[:, None] @ narrowed).to(torch.uint8)


def _to_bytes(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0.0, 255.0)


def _weights(
    start: Float64[Tensor, "b"], stop: Float64[Tensor, "b"], extent: Int64[Tensor, "b"], length: int, size: int
) -> Tensor:
    """How much each of `size` pixels takes from each of `length`, of which `extent` are the image's: (b, size, length).

    Places in double precision, as in Pillow: its kernel is centred on fractions of a pixel.
    """
    place = torch.arange(length, device=start.device, dtype=torch.float64)
    step = (stop - start)[:, None, None] / size
    scale = step.clamp(min=1.0)
    centre = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * step
    first = (centre - REACH * scale + 0.5).trunc().clamp(min=0.0)
    last = (centre + REACH * scale + 0.5).trunc().minimum(extent[:, None, None])
    weights = _bicubic((place + 0.5 - centre) / scale) * ((place >= first) & (place < last))
    return (weights / weights.sum(dim=2, keepdim=True)).float()


def _bicubic(x: Tensor) -> Tensor:
    x, a = x.abs(), SHARPNESS
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))
