"""The benchmarks in one of several processes: apart from the tests, since each process imports what stands here."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from unveil.build.clip_evaluation import evaluate_clip
from unveil.build.evaluation import ReadingSettings
from unveil.engine import Parallel
from unveil.tasks.contrastive.suites.layouts import open_zero_shot_suites

SETS = ("food101", "stl10", "ucf101", "coco")


class MeanColour:
    """An image is the mean of its colours; a text is a colour of its own."""

    name = "mean colour"
    identity = "0123"
    image_size = 4
    width = 3
    context_length = 77
    logit_scale = 10.0
    logit_bias = 0.0
    device = torch.device("cpu")

    def transform(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        small = np.array(image.convert("RGB").resize((4, 4), Image.Resampling.NEAREST))
        return torch.from_numpy(small.transpose(2, 0, 1).copy())

    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return F.normalize(images.float().mean(dim=(2, 3)) + 1.0, dim=1)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        colours = [list(zlib.crc32(text.encode()).to_bytes(4, "big")[:3]) for text in texts]
        return F.normalize(torch.tensor(colours, dtype=torch.float32).view(-1, 3) + 1.0, dim=1)


def evaluated(root: str, batch_size: int) -> dict[str, Any]:
    """The report on what lies below `root`."""
    with Parallel.start("cpu") as parallel:
        sets, missing = open_zero_shot_suites(SETS, Path(root), frames=2)
        settings = ReadingSettings(batch_size=batch_size)
        return evaluate_clip(MeanColour(), sets, missing, settings, parallel).as_json()
