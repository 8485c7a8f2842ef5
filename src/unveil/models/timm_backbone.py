"""Any encoder of timm behind the seams of our own: a feature for each place in the image, layers for layer decay."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unveil.config import UnveilError
from unveil.models.vit import Features

Network = Any
"""One of timm's: an nn.Module with attributes that no type describes."""


@dataclass(frozen=True, kw_only=True)
class TimmSizes:
    """What a head needs to know of the encoder below it, under the names of our own configurations."""

    image_size: int
    """Side of the square images that it is given, pixels."""
    width: int
    norm_epsilon: float = 1e-6
    """Of the norm that a head puts behind it."""
    depth: int = 1
    drop_path: float = 0.0


class TimmBackbone(nn.Module):
    """An encoder of timm that learns. The cells of its last map, after the norm that precedes its head, are the
    patches; their mean stands in for a cls token.

    It is in evaluation mode also when it learns. So a BatchNorm keeps the statistics that it came with, and only its
    scale and bias learn: with the statistics of a batch a step would depend on how that is split over processes and
    micro-batches, and averaged weights would go with the statistics of others. And nothing in it draws random numbers,
    which would be keyed on no sample.

    Args:
        network: its head is taken off, and everything below its last map learns.
        name: what errors call it.
        image_size: side of the square images that it is given, pixels.
        scale, shift: of each channel, from pixels as they come to pixels as it knows them.

    Raises:
        UnveilError: it has not one feature for each place in the image.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: Network, *, name: str, image_size: int, scale: Float[Tensor, "3"], shift: Float[Tensor, "3"]
    ) -> None:
        super().__init__()
        network.reset_classifier(0)
        # On a processor convolutions take a third less time with the channels last.
        self.network: Network = network.to(memory_format=torch.channels_last).eval().requires_grad_(True)
        self.name = name
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)
        with torch.enable_grad():
            cells = self._cells(torch.zeros(1, 3, image_size, image_size))
            self._freeze_unused(cells)
        self.config = TimmSizes(image_size=image_size, width=cells.shape[3])

    def _freeze_unused(self, cells: Tensor) -> None:
        """Some networks have layers behind the pooling (MobileNetV3's last convolution), which the map knows not of."""
        parameters = list(self.network.parameters())
        gradients = torch.autograd.grad(cells.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def train(self, mode: bool = True) -> "TimmBackbone":
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, images: Float[Tensor, "b 3 h w"], *, drop_path_noise: Tensor | None = None) -> Features:
        """The features of normalised images. No noise is of use here: `config.drop_path` is 0."""
        cells = self._cells(images)
        patches = cells.flatten(1, 2)
        grid = (cells.shape[1], cells.shape[2])
        return Features(cls=patches.mean(dim=1), patches=patches, grid=grid, intermediates={}, levels={}, attention={})

    def _cells(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b rows columns d"]:
        pixels = torch.addcmul(self.shift, images, self.scale).contiguous(memory_format=torch.channels_last)
        return last_map(self.network, pixels, self.name)

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Every parameter once, input side first: stem, each stage (with the norms behind the last), an empty group
        where a ViT has its final norm."""
        from timm.models import group_parameters

        numbers = group_parameters(self.network, self.network.group_matcher(coarse=True), reverse=True)
        groups: list[list[tuple[str, nn.Parameter]]] = [[] for _ in range(max(numbers.values()) + 2)]
        for name, parameter in self.network.named_parameters():
            groups[numbers[name]].append((f"network.{name}", parameter))
        return groups

    def no_weight_decay(self) -> set[str]:
        """Parameters that are spared beside biases and norms: those that timm names, as far as they are there."""
        spared = set(getattr(self.network, "no_weight_decay", set)())
        return {f"network.{name}" for name, _ in self.network.named_parameters() if name in spared}

    def shard_units(self) -> list[nn.Module]:
        """What timm names as sources of maps, and what is in a row with it: a ViT's blocks, other networks' stages."""
        units: list[nn.Module] = []
        for entry in _described(self.network):
            row = entry["module"].rpartition(".")[0]
            units += self.network.get_submodule(row).children() if row else [getattr(self.network, entry["module"])]
        return [unit for unit in dict.fromkeys(units) if any(True for _ in unit.parameters())]


def last_map(network: Network, pixels: Float[Tensor, "b 3 h w"], name: str) -> Float[Tensor, "b rows columns d"]:
    """What an encoder says of each place: prefix tokens dropped, after the norm that precedes its head.

    Raises:
        UnveilError: it does not say so much.
    """
    return _normalized(network, _as_map(network, network.forward_features(pixels), pixels, name))


def stride_of(network: Network) -> int:
    """Input pixels per cell of the last map."""
    return _described(network)[-1]["reduction"]


def _described(network: Network) -> list[dict[str, Any]]:
    """What timm says of the maps of an encoder, input side first."""
    info = network.feature_info
    return info if isinstance(info, list) else info.get_dicts()


def _as_map(network: Network, features: Any, pixels: Tensor, name: str) -> Float[Tensor, "b rows columns d"]:
    if isinstance(features, Tensor) and features.ndim == 4:
        channels_last = str(getattr(network, "output_fmt", "NCHW")) == "NHWC"
        return features if channels_last else features.permute(0, 2, 3, 1)
    stride = stride_of(network)
    rows, columns = pixels.shape[2] // stride, pixels.shape[3] // stride
    if isinstance(features, Tensor) and features.ndim == 3:
        patches = features[:, getattr(network, "num_prefix_tokens", 0) :]
        if patches.shape[1] == rows * columns:
            return patches.unflatten(1, (rows, columns))
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    raise UnveilError(
        f"the encoder {name} gives features of shape {shape}, "
        f"not one for each of {rows} x {columns} places; choose another encoder"
    )


def _normalized(network: Network, cells: Float[Tensor, "b rows columns d"]) -> Float[Tensor, "b rows columns d"]:
    """Some networks keep their last norm for the pooled features: `fc_norm` in ViTs, `head.norm` in ConvNeXts."""
    after_pooling = getattr(network, "fc_norm", None)
    if isinstance(after_pooling, nn.LayerNorm):
        return after_pooling(cells)
    of_maps = getattr(getattr(network, "head", None), "norm", None)
    if isinstance(of_maps, nn.Module):
        return of_maps(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return cells
