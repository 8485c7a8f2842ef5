"""What every teacher offers: one feature vector for each patch of the student."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int64, UInt8
from torch import Tensor, device


@runtime_checkable
class Target(Protocol):
    """A frozen teacher. A plain object beside the network, so that it is in no checkpoint, average or shard.

    It normalises images itself, sees them whole, and computes no gradients.
    """

    name: str
    """What the features are of; two targets of one name give the same features (the cache is keyed on it)."""
    dim: int
    """Length of one patch's feature."""
    grid: tuple[int, int]
    """Rows and columns of the features: those of the student's patches."""
    image_size: int
    """Side of the square images that it wants, pixels."""

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Features of each patch, row by row."""
        ...

    def to(self, place: device | str) -> "Target":
        """Move the weights there; returns itself."""
        ...


@runtime_checkable
class SelectiveTarget(Target, Protocol):
    """A target that spares itself arithmetic where not all patches are asked for."""

    def at(self, images: UInt8[Tensor, "b 3 h w"], patches: Int64[Tensor, "b k"]) -> Float[Tensor, "b k d"]:
        """Features of the patches of these numbers, in their order: to float tolerance those of a call for all."""
        ...


@runtime_checkable
class CompiledTarget(Target, Protocol):
    """A target whose arithmetic can be compiled."""

    def compile_(self) -> None:
        """Compile it; what the calls give stays the same to float tolerance."""
        ...
