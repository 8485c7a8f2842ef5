"""What the commands that use a trained model have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unveil.config import UnveilError

if TYPE_CHECKING:
    from unveil.api import ClipModel, Model

Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
Files = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES ...", help_behavior_hint="")]


PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes of the pictures that are written."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How the model is loaded and run; to be inherited."""

    weights: Annotated[Literal["ema", "raw"], tyro.conf.arg(help_behavior_hint="")] = "ema"
    """Averaged weights where the run kept them, or those of the last step."""
    device: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """cpu, cuda, cuda:1. Left out: a GPU where there is one."""
    precision: Annotated[Literal["fp32", "auto", "bf16", "fp16"], tyro.conf.arg(help_behavior_hint="")] = "fp32"
    """Of the arithmetic; auto is the fastest safe one."""
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """What no shape in a file tells: model.heads, model.activation, model.norm_epsilon."""

    def load(self, name: str) -> "Model":
        """Raises UnveilError where `unveil.load` does."""
        from unveil.api import load

        return load(name, weights=self.weights, device=self.device, precision=self.precision, settings=self.set)

    def load_clip(self, name: str) -> "ClipModel":
        """Raises UnveilError where `unveil.load_clip` does."""
        from unveil.build.clip_models import load_clip

        return load_clip(name, weights=self.weights, device=self.device, precision=self.precision, settings=self.set)


def check_at_least_one(**values: int) -> None:
    """Raises UnveilError for options that are less than 1."""
    for name, value in values.items():
        if value < 1:
            raise UnveilError(f"--{name.replace('_', '-')} is {value}; give at least 1")


def input_size(model: "Model", image_size: int | None) -> int:
    """Side of the network's input, pixels: as asked for, or the model's own.

    Raises:
        UnveilError: it does not divide into the model's patches.
    """
    size, unit = image_size or model.image_size, model.size_unit
    if size % unit:
        raise UnveilError(
            f"--image-size {size} does not divide into the model's patches of {unit} pixels; try "
            f"{max(1, round(size / unit)) * unit}"
        )
    return size


def check_workers(workers: int | None) -> None:
    """Raises UnveilError for less than none."""
    if workers is not None and workers < 0:
        raise UnveilError(f"--workers is {workers}; give 0 (this process reads the images) or more")


def check_output(option: str, file: Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Raises UnveilError where a file cannot be written, or has none of the suffixes, if some are given."""
    if file is None:
        return
    if suffixes and file.suffix.lower() not in suffixes:
        raise UnveilError(f"--{option} {file} must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}")
    if file.is_dir() or not file.parent.is_dir():
        problem = "is a folder; give the name of a file" if file.is_dir() else "lies in no folder that is there"
        raise UnveilError(f"--{option} {file} {problem}")


@contextmanager
def memory_for(batch_size: int) -> Iterator[None]:
    """Inside the block the model runs on so many images at a time.

    Raises:
        UnveilError: the GPU's memory does not hold them.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UnveilError(
            f"the GPU's memory does not hold {batch_size} images in a forward pass; try --batch-size "
            f"{max(1, batch_size // 2)}"
        ) from error


def left_out(count: int, total: int) -> str:
    """The warning about images that could not be read, which the log has named."""
    return f"warning: {count:,} of {total:,} images could not be read and {'is' if count == 1 else 'are'} left out"
