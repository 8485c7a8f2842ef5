"""The student's own running average as its teacher (data2vec, Baevski et al. 2022, sections 3.2 and 3.3)."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from unveil.config import EmaTarget, UnveilError
from unveil.data.normalization import Normalization, normalize
from unveil.models.vit import ViT
from unveil.pretext.targets.inference import mean_of_last_blocks


class EmaTeacher(nn.Module):
    """teacher <- decay * teacher + (1 - decay) * student after each step; it sees the image whole.

    The feature of a patch is the mean of its tokens behind the last blocks, each normalised without weights, normalised
    once more. Unlike other teachers it is a module: no weights elsewhere stand for it, so it is in the task's
    checkpoints, and a resumed run has the teacher that it was stopped with. No gradient and no optimizer touch it.
    """

    def __init__(self, student: ViT, config: EmaTarget, *, normalization: Normalization) -> None:
        """Raises UnveilError where the student has fewer blocks than are to be averaged."""
        super().__init__()
        depth = student.config.depth
        if config.layers > depth:
            raise UnveilError(
                f"target.layers is {config.layers} and the student has {depth} blocks; give at most {depth}"
            )
        self.decay = config.decay
        self.name = f"ema/{config.layers} layers/decay {config.decay:g}"
        self.dim, self.grid, self.image_size = student.config.width, student.config.grid, student.config.image_size
        self._layers = config.layers
        self._normalization: Normalization = normalization
        self.network = copy.deepcopy(student).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        return self._features(images, None)

    @torch.no_grad()
    def at(self, images: UInt8[Tensor, "b 3 h w"], patches: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """The features of some patches."""
        return self._features(images, patches)

    def _features(self, images: UInt8[Tensor, "b 3 h w"], only: Int64[Tensor, "b k"] | None) -> Float[Tensor, "b m d"]:
        mean = mean_of_last_blocks(self.network, normalize(images, self._normalization), self._layers, only)
        return F.layer_norm(mean, (self.dim,))

    @torch.no_grad()
    def copy_from(self, student: ViT) -> None:
        """Begin with the student's weights."""
        self.network.load_state_dict(student.state_dict())

    @torch.no_grad()
    def follow(self, student: ViT) -> None:
        """Take in the student's weights as they are now."""
        torch._foreach_lerp_(list(self.network.parameters()), list(student.parameters()), 1.0 - self.decay)
