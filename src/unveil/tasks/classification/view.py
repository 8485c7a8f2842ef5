"""What the data workers make of one labelled image: a crop and its label."""

import random
from dataclasses import dataclass
from typing import Any

import torch

from unveil.config.data import Crop
from unveil.data.crops import crop_box, resize_crop
from unveil.data.sources.base import Sample


@dataclass(frozen=True)
class LabelledView:
    """Called in the workers. Draws from `rng` in a fixed order: crop, flip."""

    crop: Crop
    flip: bool
    image_size: int

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        box = crop_box(sample.image.size, self.crop, rng)
        flipped = self.flip and rng.random() < 0.5
        return {"image": resize_crop(sample.image, box, self.image_size, flipped), "label": sample.label}


def collate_labelled(views: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack views into a batch; -1 stands for a label that is not known."""
    labels = [-1 if view["label"] is None else view["label"] for view in views]
    return {"image": torch.stack([view["image"] for view in views]), "label": torch.tensor(labels)}
