"""What teachers share: images brought to the wanted size, feature maps brought to the wanted grid, fast arithmetic."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from unveil.config import UnveilError
from unveil.models.transformer import take
from unveil.models.vit import ViT

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


def mean_of_last_blocks(
    network: ViT, images: Float[Tensor, "b 3 h w"], count: int, only: Int64[Tensor, "b k"] | None
) -> Float[Tensor, "b m d"]:
    """`mean_of_layers` of what a ViT's last blocks make of all patches, or of those numbered in `only`."""
    depth = network.config.depth
    need = tuple(f"blocks.{number}" for number in range(depth - count, depth))
    *earlier, last = (tokens[:, 1:] for tokens in network(images, only=only, need=need).intermediates.values())
    if only is not None:
        earlier = [take(patches, only) for patches in earlier]
    return mean_of_layers([*earlier, last])


def grid_error(teacher: str, own: Grid, student: Grid) -> UnveilError:
    """The error for a teacher whose features do not fall on the student's patches."""
    return UnveilError(
        f"the teacher {teacher} has a grid of {own[0]} x {own[1]} features, the student {student[0]} x {student[1]} "
        f"patches: choose model.image_size = {own[0]} x model.patch_size, or resize the features with "
        "--set target.resize_grid=true"
    )


def round_matrices(network: nn.Module, precision: torch.dtype) -> None:
    """Keep the weights of linear maps and convolutions in the precision that autocast would round them to in each call.

    It keeps its copies of weights that learn only; those of a frozen network it would make again and again. Norms,
    tokens and positions stay in fp32, and so does the sum that runs through the blocks: no bit of the results changes.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(precision)


def fast_precision(place: torch.device) -> torch.dtype:
    """bf16 where the processor multiplies it in hardware, fp16 on older GPUs, fp32 elsewhere."""
    if place.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if place.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return torch.bfloat16
    return torch.float32
