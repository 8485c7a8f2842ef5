"""The test images that the report's pictures show."""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from unveil.data.order import sample_rng
from unveil.pretext.masking import masking_function
from unveil.quickstart.story import Story

SHOWN = 10
SIDE = 88
"""Pixels of one picture on a sheet."""


def hidden_examples(story: Story) -> tuple[UInt8[Tensor, "b 3 h w"], Bool[Tensor, "b n"]]:
    """The first test images, and a mask for each as pre-training draws them."""
    config = story.config.pretrain
    images = story.test.pixels[:SHOWN]
    masking = masking_function(config.masking)
    return images, torch.stack([masking(sample_rng(0, number), config.model.grid) for number in range(len(images))])
