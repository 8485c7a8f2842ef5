"""Classification: from a configuration and labelled images to a fine-tuned network."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch

from unveil.build.common import build_training_loader
from unveil.build.starting_weights import start_from
from unveil.config import CenterCrop, ClassificationConfig, UnveilError
from unveil.config.resolve import MAY_CHANGE_ON_RESUME
from unveil.config.serialize import to_json
from unveil.data.loader import EvaluationLoader
from unveil.data.order import ORDER_NAME
from unveil.data.sources.base import Source as ImageSource
from unveil.engine import Outcome, Parallel, Precision, RunFolder, Sink, build_sinks, evaluate, train
from unveil.models.vit import ViT
from unveil.tasks.classification.mixing import Mixing
from unveil.tasks.classification.task import Classification
from unveil.tasks.classification.view import LabelledView, collate_labelled, rand_augment

logger = logging.getLogger(__name__)


def build_classification(config: ClassificationConfig) -> Classification:
    """The untrained network of a configuration that names its classes.

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
        ViT(config.model, final_norm=config.pooling == "cls"),
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
) -> tuple[Classification, Outcome]:
    """Run, or go on with, a resolved fine-tuning on labelled images.

    Args:
        source: its labels are places in `config.classes`.
        out: folder of the run; None: nothing is written.
        watchers: sinks beside the run's own, for whoever looks on.
        validation: evaluated every `config.engine.evaluate_every` steps and at the end, on centre crops.

    Raises:
        UnveilError: weights or a head that do not fit, samples that cannot be read, whatever else a person can mend.
    """
    data, engine, augmentation = config.data, config.engine, config.augmentation
    # Before the run's folder is made: what turns out to be impossible here must leave no run behind.
    task = build_classification(config)
    if augmentation.rand_augment is not None:
        rand_augment(augmentation.rand_augment, config.model.image_size, data.normalization)
    report = None
    if config.init_from is not None and (out is None or not RunFolder(out).checkpoints.steps()):
        report = start_from(task, config)
    loader = build_training_loader(
        config, source, training_view(config), collate_labelled, parallel, paired=augmentation.mixes
    )
    sinks = watchers if out is None else (*build_sinks(out, engine.trackers, to_json(config)), *watchers)
    folder = nullcontext() if out is None else _open_run(out, config, source, parallel)
    with folder as run:
        if report is not None:
            logger.info("%s", report)
        outcome = train(
            task,
            loader.steps,
            optimization=config.optimization,
            settings=engine,
            parallel=parallel,
            run=run,
            sinks=sinks,
            evaluate=None if validation is None else _evaluation(config, task, validation, parallel),
            ema_decay=config.ema_decay,
        )
    return task, outcome


def training_view(config: ClassificationConfig) -> LabelledView:
    """What the workers make of an image in training."""
    return LabelledView(
        crop=config.data.crop,
        flip=config.data.flip,
        image_size=config.model.image_size,
        normalization=config.data.normalization,
        rand_augment=config.augmentation.rand_augment,
        random_erasing=config.augmentation.random_erasing,
    )


def _open_run(out: Path, config: ClassificationConfig, source: ImageSource, parallel: Parallel) -> RunFolder:
    return RunFolder.open(
        out,
        config=to_json(config),
        data={"order": ORDER_NAME, "parts": source.digest()},
        parallel=parallel,
        allowed_changes=MAY_CHANGE_ON_RESUME,
        keep_last=config.engine.keep_last,
    )


def _evaluation(
    config: ClassificationConfig, task: Classification, validation: ImageSource, parallel: Parallel
) -> Callable[[], dict[str, float]]:
    assert config.optimization.micro_batch_size is not None and config.data.workers is not None
    loader = EvaluationLoader(
        validation,
        LabelledView(crop=CenterCrop(share=config.test_crop), flip=False, image_size=config.model.image_size),
        collate_labelled,
        batch_size=config.optimization.micro_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        workers=config.data.workers,
    )
    precision = Precision.of(config.engine.precision, parallel.device)
    return lambda: evaluate(task, loader, parallel, precision)
