"""What teachers share: images brought to the wanted size, feature maps brought to the wanted grid, fast arithmetic."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from unveil.config import UnveilError

Grid = tuple[int, int]
"""Rows and columns."""


def fit_images(images: UInt8[Tensor, "b 3 h w"], size: tuple[int, int]) -> Float[Tensor, "b 3 height width"]:
    """The images as floats in 0 to 255, resized to height x width (bicubic, antialiased) where they differ."""
    pixels = images.float()
    if pixels.shape[2:] == size:
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0.0, 255.0)


def resize_features(features: Float[Tensor, "b n d"], own: Grid, wanted: Grid) -> Float[Tensor, "b m d"]:
    """A feature map of `own` rows and columns resized bicubically to `wanted`."""
    if own == wanted:
        return features
    cells = features.transpose(1, 2).unflatten(2, own).float()
    return F.interpolate(cells, wanted, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)


def mean_of_layers(layers: Sequence[Float[Tensor, "... d"]]) -> Float[Tensor, "... d"]:
    """The mean of several layers' features, each normalised without weights first: deeper ones are larger."""
    return torch.stack([F.layer_norm(layer.float(), layer.shape[-1:]) for layer in layers]).mean(dim=0)


def grid_error(teacher: str, own: Grid, student: Grid) -> UnveilError:
    """The error for a teacher whose features do not fall on the student's patches."""
    return UnveilError(
        f"the teacher {teacher} has a grid of {own[0]} x {own[1]} features, the student {student[0]} x {student[1]} "
        f"patches: choose model.image_size = {own[0]} x model.patch_size, or resize the features with "
        "--set target.resize_grid=true"
    )


def fast_precision(place: torch.device) -> torch.dtype:
    """bf16 where the processor multiplies it in hardware, fp16 on older GPUs, fp32 elsewhere."""
    if place.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if place.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32
