"""Pre-training: student, teacher, masks, and the run."""

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
from unveil.build.runs import begins_anew, held_out, train_run
from unveil.build.starting_weights import fill_network
from unveil.config import (
    EmaTarget,
    FashionScenes,
    FeatureDistillation,
    MaskedAutoencoding,
    MaskedObjective,
    MaskedRegression,
    MaskedTokenPrediction,
    PixelTarget,
    PretrainConfig,
    RevColV2Config,
    UnveilError,
    VectorQuantizedDistillation,
    ViTConfig,
)
from unveil.config.data import CenterCrop, RandomResizedCrop
from unveil.config.revcolv2 import require_vit
from unveil.data.crops import crop_box, resize_crop
from unveil.data.device_crops import DeviceCrops
from unveil.data.device_decoding import UndecodedJpegs
from unveil.data.reading import Batch, Collate
from unveil.data.sources.base import EncodedSource, UnreadableSample
from unveil.data.sources.base import Source as ImageSource
from unveil.engine import Outcome, Parallel, Sink
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.pretext.distillation import Distillation
from unveil.pretext.masked_autoencoding import MaskedAutoencoder
from unveil.pretext.masked_modelling import HiddenRegression, MaskedModelling
from unveil.pretext.masked_pixels import MaskedPixels
from unveil.pretext.masking import masking_function
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.build import build_target
from unveil.pretext.targets.cache import TargetCache
from unveil.pretext.targets.codes import FrozenTokenizer, load_tokenizer
from unveil.pretext.targets.ema import EmaTeacher
from unveil.pretext.targets.embedded import EmbeddedTeacher
from unveil.pretext.token_prediction import TokenPrediction
from unveil.pretext.tokenizer import TokenizerTraining
from unveil.pretext.view import MaskedCollate, MaskedView, WholeView, collate_whole

logger = logging.getLogger(__name__)

EXAMPLES = 128
"""Images over which the embedded teacher takes its mean feature: thousands of cells."""


Pretext = HiddenRegression | Distillation | TokenizerTraining | TokenPrediction
"""A task that a configuration's objective stands for."""


def build_pretext(
    config: PretrainConfig, *, target: Target | None = None, tokenizer: FrozenTokenizer | None = None
) -> Pretext:
    """Student, head and teacher.

    Args:
        target: a frozen teacher in the place of the configuration's, which is then not loaded; as `tokenizer`.

    Raises:
        UnveilError: a teacher that cannot be had, or does not fit the student.
    """
    objective = config.objective
    match objective:
        case MaskedRegression():
            if isinstance(config.model, RevColV2Config):
                return _masked_pixels(config, config.model, objective, target)
            backbone, target = _student_and_target(config, target, mask_token=True)
            return MaskedModelling(
                backbone,
                target,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
            )
        case MaskedAutoencoding():
            backbone, target = _student_and_target(config, target, mask_token=False)
            return MaskedAutoencoder(
                backbone,
                target,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
            )
        case FeatureDistillation():
            backbone, target = _student_and_target(config, target, mask_token=False)
            return Distillation(
                backbone,
                target,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
            )
        case VectorQuantizedDistillation():
            backbone, target = _student_and_target(config, target, mask_token=False)
            return TokenizerTraining(
                backbone,
                target,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
                global_batch_size=config.optimization.global_batch_size,
            )
        case MaskedTokenPrediction():
            tokenizer = tokenizer or load_tokenizer(objective.tokenizer)
            torch.manual_seed(config.engine.seed)
            return TokenPrediction(
                ViT(_vit_of(config), mask_token=True),
                tokenizer,
                seed=config.engine.seed,
                normalization=config.data.normalization,
                objective=objective,
            )


def _student_and_target(config: PretrainConfig, given: Target | None, *, mask_token: bool) -> tuple[ViT, Target]:
    """The teacher is built first: what it draws at random must not change the student."""
    model, wanted = _vit_of(config), config.target
    frozen = given
    if frozen is None and not isinstance(wanted, EmaTarget):
        frozen = build_target(wanted, grid=model.grid, patch_size=model.patch_size)
    torch.manual_seed(config.engine.seed)
    backbone = ViT(model, mask_token=mask_token)
    if frozen is None and isinstance(wanted, EmaTarget):
        return backbone, EmaTeacher(backbone, wanted, normalization=config.data.normalization)
    assert frozen is not None
    return backbone, frozen


def _vit_of(config: PretrainConfig) -> ViTConfig:
    return require_vit(config.model, type(config.objective).__name__)


def _masked_pixels(
    config: PretrainConfig, model: RevColV2Config, objective: MaskedRegression, given: Target | None
) -> MaskedPixels:
    assert isinstance(config.target, PixelTarget)  # The configuration refuses others.
    torch.manual_seed(config.engine.seed)
    return MaskedPixels(
        RevColV2(model, mask_token=True),
        given or build_target(config.target, grid=model.grid, patch_size=model.mask_unit),
        seed=config.engine.seed,
        normalization=config.data.normalization,
        objective=objective,
    )


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
