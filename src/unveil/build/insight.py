"""A pre-training run as it was trained: student, predictor, teacher."""

import logging
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from unveil.build.common import build_source
from unveil.build.pretext import build_pretext
from unveil.build.pretraining import examples, teacher_size
from unveil.config import PretrainConfig, UnveilError
from unveil.data.normalization import normalize
from unveil.data.sources.base import Source
from unveil.pretext.masked_modelling import HiddenRegression
from unveil.pretext.targets.embedded import EmbeddedTeacher
from unveil.pretext.targets.pixels import PixelPatches
from unveil.weights.load import read_backbone

logger = logging.getLogger(__name__)


def load_masked_modelling(
    run: Path, config: PretrainConfig, *, stand_in: Source, weights: Literal["ema", "raw"], device: torch.device
) -> HiddenRegression:
    """The task of a run with its trained weights, ready to be asked.

    Args:
        stand_in: images from which the embedded teacher takes its mean feature where those of the run are gone.

    Raises:
        UnveilError: a teacher that cannot be had, or weights that are not of this configuration.
    """
    task = build_pretext(config)
    if not isinstance(task, HiddenRegression):
        raise UnveilError(
            f"{run} was trained by {type(config.objective).__name__}, which predicts no features of hidden patches; "
            "with --patch ROW,COLUMN similarity compares a patch with all others"
        )
    file, state = read_backbone(run, weights=weights)
    try:
        task.load_state_dict(state)
    except RuntimeError as error:
        raise UnveilError(
            f"{file} does not fit the run's config.json ({str(error).splitlines()[0]}); restore it"
        ) from error
    if isinstance(task.target, EmbeddedTeacher):
        try:
            source = build_source(config.data.source)
        except UnveilError as error:
            logger.warning(
                "the run's own images are not there (%s): the teacher takes its mean feature from those given", error
            )
            source = stand_in
        task.target.fit(examples(source, size_for_teacher(config, task)))
    task.target.to(device)
    return task.to(device).eval()


def size_for_teacher(config: PretrainConfig, task: HiddenRegression) -> int:
    """Side of the images that the teacher saw in training, pixels."""
    return teacher_size(config, task) or config.model.image_size


@torch.no_grad()
def prediction_similarity(
    task: HiddenRegression,
    images: UInt8[Tensor, "b 3 h w"],
    teacher_images: UInt8[Tensor, "b 3 th tw"],
    masks: Bool[Tensor, "b n"],
) -> Float[Tensor, "b n"]:
    """Cosine of prediction and target at every patch, with the patches of `masks` hidden from the student."""
    place = next(task.parameters()).device
    everywhere = torch.arange(masks.shape[1], device=place).expand(len(masks), -1)
    pixels = normalize(images.to(place), task.normalization)
    predicted = task.predict_hidden(pixels, masks.to(place), everywhere)
    wanted = task.target(teacher_images.to(place)).float()
    return torch.nn.functional.cosine_similarity(predicted.float(), wanted, dim=-1).cpu()


@torch.no_grad()
def reconstruct(
    task: HiddenRegression, images: UInt8[Tensor, "b 3 h w"], masks: Bool[Tensor, "b n"]
) -> UInt8[Tensor, "b 3 h w"]:
    """The images, with the patches of `masks`, which are hidden from the student, as it predicts them.

    Where the target's pixels are normalised, predictions get the mean and deviation of the true ones.

    Raises:
        UnveilError: the student predicts something else than pixels.
    """
    target = task.target
    if not isinstance(target, PixelPatches):
        raise UnveilError(
            f"the run predicts {target.name}, which is no picture; --what similarity shows how well it does"
        )
    place = next(task.parameters()).device
    everywhere = torch.arange(masks.shape[1], device=place).expand(len(masks), -1)
    predicted = task.predict_hidden(normalize(images.to(place), task.normalization), masks.to(place), everywhere)
    pictures = target.pictures(predicted.float().cpu(), images)
    hidden = masks.view(-1, 1, *target.grid).float()
    return torch.where(torch.nn.functional.interpolate(hidden, size=images.shape[2:]) > 0.5, pictures, images)
