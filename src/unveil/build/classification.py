"""Classification: from a configuration and labelled images to a fine-tuned network."""

from pathlib import Path

import torch

from unveil.build.common import build_training_loader
from unveil.build.runs import begins_anew, held_out, train_run
from unveil.build.starting_weights import start_from
from unveil.config import CenterCrop, ClassificationConfig, UnveilError
from unveil.data.sources.base import Source as ImageSource
from unveil.engine import Outcome, Parallel, Sink
from unveil.models.backbone import classified_backbone
from unveil.tasks.classification.mixing import Mixing
from unveil.tasks.classification.task import Backbone, Classification
from unveil.tasks.classification.view import LabelledView, collate_labelled, rand_augment


def build_classification(config: ClassificationConfig, backbone: Backbone | None = None) -> Classification:
    """The untrained network of a configuration that names its classes.

    Args:
        backbone: in place of the one that the configuration describes.

    Raises:
        UnveilError: fewer than two classes.
    """
    if len(config.classes) < 2:
        found = f"only {config.classes[0]!r} is there" if config.classes else "none is named"
        raise UnveilError(f"a classifier needs two classes or more, and {found}; check the data")
    augmentation = config.augmentation
    mixing = None
    if augmentation.mixes:
        mixing = Mixing(
            augmentation,
            classes=len(config.classes),
            label_smoothing=config.label_smoothing,
            seed=config.engine.seed,
        )
    torch.manual_seed(config.engine.seed)
    return Classification(
        backbone or classified_backbone(config.model, final_norm=config.pooling == "cls"),
        config.classes,
        seed=config.engine.seed,
        normalization=config.data.normalization,
        label_smoothing=config.label_smoothing,
        head_init_scale=config.head_init_scale,
        pooling=config.pooling,
        freeze_patch_embedding=config.freeze_patch_embedding,
        mixing=mixing,
    )


def finetune(
    config: ClassificationConfig,
    source: ImageSource,
    *,
    out: Path | None = None,
    parallel: Parallel,
    watchers: tuple[Sink, ...] = (),
    validation: ImageSource | None = None,
    backbone: Backbone | None = None,
) -> tuple[Classification, Outcome]:
    """Run, or go on with, a resolved fine-tuning on labelled images.

    Args:
        source: its labels are places in `config.classes`.
        out: folder of the run; None: nothing is written.
        watchers: sinks beside the run's own, for whoever looks on.
        validation: evaluated every `config.engine.evaluate_every` steps and at the end, on centre crops.
        backbone: fine-tuned from where it stands, in place of the one that the configuration describes. Only without
            `out`: a run's configuration could not tell what its weights are of.

    Raises:
        UnveilError: weights or a head that do not fit, samples that cannot be read, whatever else a person can mend.
    """
    augmentation = config.augmentation
    # Before the run's folder is made: what turns out to be impossible here must leave no run behind.
    task = build_classification(config, backbone)
    image_size = task.backbone.config.image_size
    if augmentation.rand_augment is not None:
        rand_augment(augmentation.rand_augment, image_size, config.data.normalization)
    reports = [start_from(task, config)] if config.init_from is not None and begins_anew(out) else []
    loader = build_training_loader(
        config, source, training_view(config, image_size), collate_labelled, parallel, paired=augmentation.mixes
    )
    evaluation = None
    if validation is not None:
        view = LabelledView(crop=CenterCrop(share=config.test_crop), flip=False, image_size=image_size)
        evaluation = held_out(config, task, validation, view, collate_labelled, parallel)
    outcome = train_run(
        config,
        task,
        loader.steps,
        parts=source.digest(),
        out=out,
        parallel=parallel,
        watchers=watchers,
        evaluation=evaluation,
        reports=reports,
        ema_decay=config.ema_decay,
    )
    return task, outcome


def training_view(config: ClassificationConfig, image_size: int) -> LabelledView:
    """What the workers make of an image in training."""
    return LabelledView(
        crop=config.data.crop,
        flip=config.data.flip,
        image_size=image_size,
        normalization=config.data.normalization,
        rand_augment=config.augmentation.rand_augment,
        random_erasing=config.augmentation.random_erasing,
    )
