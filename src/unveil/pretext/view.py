"""What the data workers make of one image for pre-training: a crop for the student, one for the teacher, a mask."""

import random
from dataclasses import dataclass
from typing import Any

import torch

from unveil.config.data import Crop
from unveil.data.crops import crop_box, resize_crop
from unveil.data.device_crops import collate_cuts, cut_out
from unveil.data.sources.base import Sample
from unveil.pretext.masked_modelling import pad_hidden
from unveil.pretext.masking import Masking


@dataclass(frozen=True, kw_only=True)
class WholeView:
    """Called in the workers. Draws from `rng` in a fixed order: crop, flip."""

    crop: Crop
    flip: bool
    image_size: int
    teacher_size: int | None
    """The teacher's resolution where it is not the student's; None: it gets the student's image, or a cached target."""
    resized_on_device: bool = False
    """Only cut the crop out, for `unveil.data.device_crops.DeviceCrops` to make the images of it."""

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        box = crop_box(sample.image.size, self.crop, rng)
        flipped = self.flip and rng.random() < 0.5
        if self.resized_on_device:
            size = min(self.image_size, self.teacher_size or self.image_size)
            return {"cut": cut_out(sample, box, size), "flipped": flipped}
        view: dict[str, Any] = {
            "image": resize_crop(sample.image, box, self.image_size, flipped),
            "flipped": flipped,
        }
        if self.teacher_size is not None:
            view["teacher_image"] = resize_crop(sample.image, box, self.teacher_size, flipped)
        return view


@dataclass(frozen=True, kw_only=True)
class MaskedView(WholeView):
    """The same and a mask, which is drawn last."""

    grid: tuple[int, int]
    masking: Masking

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        view = super().__call__(sample, rng)
        return view | {"mask": self.masking(rng, self.grid)}


def collate_whole(views: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack views into a batch."""
    batch: dict[str, Any] = {
        name: torch.stack([view[name] for view in views])
        for name in ("image", "teacher_image", "mask")
        if name in views[0]
    }
    if "cut" in views[0]:
        batch |= collate_cuts([view["cut"] for view in views])
    batch["flipped"] = torch.tensor([view["flipped"] for view in views])
    return batch


@dataclass(frozen=True)
class MaskedCollate:
    """Stack views into a batch, with the hidden patches as padded numbers and weights."""

    limit: int
    """Most patches that the masking ever hides."""

    def __call__(self, views: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate_whole(views)
        batch["hidden"], batch["hidden_weight"] = pad_hidden(batch["mask"], self.limit)
        return batch
