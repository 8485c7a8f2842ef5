"""Pre-training: images and masks for the workers, the teacher on its device, and the run."""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from unveil.build.common import build_source, build_training_loader
from unveil.build.pretext import Pretext, build_pretext
from unveil.build.runs import begins_anew, held_out, train_run
from unveil.build.starting_weights import fill_network
from unveil.config import (
    FashionScenes,
    MaskedObjective,
    PretrainConfig,
    UnveilError,
)
from unveil.config.data import CenterCrop, RandomResizedCrop
from unveil.data.crops import crop_box, resize_crop
from unveil.data.device_crops import DeviceCrops
from unveil.data.device_decoding import UndecodedJpegs
from unveil.data.reading import Batch, Collate
from unveil.data.sources.base import EncodedSource, UnreadableSample
from unveil.data.sources.base import Source as ImageSource
from unveil.engine import Outcome, Parallel, Sink
from unveil.models.vit import ViT
from unveil.pretext.masking import masking_function
from unveil.pretext.targets.cache import TargetCache
from unveil.pretext.targets.ema import EmaTeacher
from unveil.pretext.targets.embedded import EmbeddedTeacher
from unveil.pretext.token_prediction import TokenPrediction
from unveil.pretext.view import MaskedCollate, MaskedView, WholeView, collate_whole

logger = logging.getLogger(__name__)

EXAMPLES = 128
"""Images over which the embedded teacher takes its mean feature: thousands of cells."""


def pretrain(
    config: PretrainConfig,
    source: ImageSource,
    *,
    out: Path,
    parallel: Parallel,
    watchers: tuple[Sink, ...] = (),
    on_cache: Callable[[int, int], None] | None = None,
) -> tuple[Pretext, Outcome]:
    """Run, or go on with, a resolved pre-training in the folder `out`.

    Args:
        watchers: sinks beside the run's own, for whoever looks on.
        on_cache: called with (done, total) images while targets are computed ahead.

    Raises:
        UnveilError: whatever the person can mend.
    """
    # Before the run's folder is made: what turns out to be impossible here must leave no run behind.
    task = build_pretext(config)
    if isinstance(task.target, EmbeddedTeacher):
        task.target.fit(examples(source, teacher_size(config, task) or config.model.image_size))
    reports = []
    if config.init_from is not None and begins_anew(out):
        reports.append(fill_network(task.backbone, Path(config.init_from)))
        if isinstance(task.target, EmaTeacher):
            assert isinstance(task.backbone, ViT)
            task.target.copy_from(task.backbone)
    cache = None
    if config.cache_targets:
        assert not isinstance(task, TokenPrediction)  # The configuration refuses that.
        random_crops = isinstance(config.data.crop, RandomResizedCrop)
        cache = task.cache = TargetCache(task.target, len(source), flips=config.data.flip, random_crops=random_crops)
    view, collate = view_and_collate(config, task)
    steps = training_steps(config, task, source, parallel)
    validation = _validation(config, task, view, collate, parallel)

    def to_the_teacher() -> None:
        task.target.to(parallel.device)
        if cache is not None:
            _fill(cache, config, task, source, parallel, on_cache)

    outcome = train_run(
        config,
        task,
        steps,
        parts=source.digest() | _other_parts(task),
        out=out,
        parallel=parallel,
        watchers=watchers,
        evaluation=validation,
        reports=reports,
        at_start=to_the_teacher,
        after_step=lambda updated: task.after_step(updated, parallel.sum_),
    )
    return task, outcome


def _other_parts(task: Pretext) -> dict[str, dict[str, Any]]:
    """What a run depends on beside its images, to be compared like them when it goes on."""
    if isinstance(task, TokenPrediction):
        return {task.target.name: {"count": task.target.codes, "sha256": task.target.digest}}
    return {}


def view_and_collate(config: PretrainConfig, task: Pretext) -> tuple[WholeView, Collate]:
    """What the workers make of images: with a mask, where the objective hides patches."""
    view = WholeView(
        crop=config.data.crop,
        flip=config.data.flip,
        image_size=config.model.image_size,
        teacher_size=None if config.cache_targets else teacher_size(config, task),
        resized_on_device=config.data.resize_on == "device",
    )
    if not isinstance(config.objective, MaskedObjective):
        return view, collate_whole
    masking, grid = masking_function(config.masking), config.model.grid
    return MaskedView(**vars(view), grid=grid, masking=masking), MaskedCollate(limit=masking.limit(grid))


def training_steps(
    config: PretrainConfig, task: Pretext, source: ImageSource, parallel: Parallel
) -> Callable[[int, int], Iterator[list[Batch]]]:
    """This process's micro-batches of each step: what workers have read, finished on the device where that is wanted.

    Raises:
        UnveilError: the device shall decode images that are not in files.
    """
    if config.data.decode_on == "device":
        if not isinstance(source, EncodedSource):
            raise UnveilError("data.decode_on=device needs images in files or tars; leave it out")
        source = UndecodedJpegs(source)
    loader = build_training_loader(config, source, *view_and_collate(config, task), parallel)
    if config.data.resize_on == "workers":
        return loader.steps
    finish = DeviceCrops(
        parallel.device, config.model.image_size, None if config.cache_targets else teacher_size(config, task)
    )
    return lambda first, last: map(finish, loader.steps(first, last))


def examples(source: ImageSource, size: int) -> UInt8[Tensor, "b 3 h w"]:
    """Centre crops of some images of a source, evenly spread: the same for the same source.

    Raises:
        UnveilError: none of them can be read.
    """
    count = min(EXAMPLES, len(source))
    crops, problem = [], ""
    for place in (number * len(source) // count for number in range(count)):
        try:
            image = source[place].image
        except UnreadableSample as error:
            problem = str(error)
            continue
        crops.append(resize_crop(image, crop_box(image.size, CenterCrop(), random.Random(0)), size, False))
    if not crops:
        raise UnveilError(f"none of {count} images tried can be read, such as {problem}; copy the images again")
    return torch.stack(crops)


def teacher_size(config: PretrainConfig, task: Pretext) -> int | None:
    """The side of a view of the teacher's own, where the student's image will not do.

    Images of the student's size or less hold nothing that a second, larger view could show: the embedded scenes are
    drawn at the student's size, and the teacher enlarges them itself.
    """
    size = task.target.image_size
    scenes = config.data.source
    drawn_at_student_size = isinstance(scenes, FashionScenes) and scenes.size <= config.model.image_size
    return None if drawn_at_student_size or size == config.model.image_size else size


def _fill(
    cache: TargetCache,
    config: PretrainConfig,
    task: Pretext,
    source: ImageSource,
    parallel: Parallel,
    on_cache: Callable[[int, int], None] | None,
) -> None:
    crop = config.data.crop
    size = teacher_size(config, task) or config.model.image_size
    undrawn = random.Random(0)
    cache.fill(
        source,
        lambda sample: resize_crop(sample.image, crop_box(sample.image.size, crop, undrawn), size, False),
        parallel.device,
        on_cache or (lambda done, total: None),
    )


def _validation(
    config: PretrainConfig, task: Pretext, view: WholeView, collate: Collate, parallel: Parallel
) -> Callable[[], dict[str, float]] | None:
    if config.data.validation is None:
        return None
    # Released code: short side to 256, middle 224. The cache, if there is one, knows the training images only.
    view = replace(
        view,
        crop=CenterCrop(share=224 / 256),
        flip=False,
        teacher_size=teacher_size(config, task),
        resized_on_device=False,
    )
    return held_out(config, task, build_source(config.data.validation), view, collate, parallel)
