"""Contrastive training: from a configuration and captioned images to a trained CLIP."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from unveil.build.common import build_training_loader
from unveil.build.starting_clip import start_clip
from unveil.config import CenterCrop, ContrastiveConfig
from unveil.config.resolve import MAY_CHANGE_ON_RESUME
from unveil.config.serialize import to_json
from unveil.data.loader import EvaluationLoader
from unveil.data.order import ORDER_NAME
from unveil.data.sources.base import Source as ImageSource
from unveil.engine import Outcome, Parallel, Precision, RunFolder, Sink, build_sinks, evaluate, train
from unveil.models.clip import Clip
from unveil.tasks.contrastive.caption_watch import CaptionWatch
from unveil.tasks.contrastive.task import Contrastive
from unveil.tasks.contrastive.tokens import Tokenizer
from unveil.tasks.contrastive.view import CaptionedCollate, CaptionedView
from unveil.weights.report import LoadReport

logger = logging.getLogger(__name__)


def build_contrastive(config: ContrastiveConfig, *, held_out: int = 0) -> Contrastive:
    """The untrained CLIP of a configuration, with its loss.

    Args:
        held_out: pairs that evaluation is over.

    Raises:
        UnveilError: more layers to be locked than there are.
    """
    torch.manual_seed(config.engine.seed)
    return Contrastive(
        Clip(config.model),
        seed=config.engine.seed,
        normalization=config.data.normalization,
        local_loss=config.local_loss,
        patch_dropout=config.patch_dropout,
        visual=config.visual,
        text=config.text,
        held_out=held_out,
    )


def train_clip(
    config: ContrastiveConfig,
    source: ImageSource,
    *,
    out: Path | None = None,
    parallel: Parallel,
    watchers: tuple[Sink, ...] = (),
    validation: ImageSource | None = None,
    warn_of_repeats: bool = True,
) -> tuple[Contrastive, Outcome]:
    """Run, or go on with, a resolved contrastive training on captioned images.

    Args:
        out: folder of the run; None: nothing is written.
        watchers: sinks beside the run's own, for whoever looks on.
        validation: pairs that are held out, evaluated every `config.engine.evaluate_every` steps and at the end.
        warn_of_repeats: name the first caption that a batch has twice; False where there are few different ones.

    Raises:
        UnveilError: weights that do not fit, samples that cannot be read, whatever else a person can mend.
    """
    data, engine = config.data, config.engine
    # Before the run's folder is made: what turns out to be impossible here must leave no run behind.
    task = build_contrastive(config, held_out=0 if validation is None else len(validation))
    reports: list[LoadReport] = []
    if out is None or not RunFolder(out).checkpoints.steps():
        reports = start_clip(task.clip, config)
    tokenizer = Tokenizer(config.model.text.context_length)
    view = CaptionedView(crop=data.crop, flip=data.flip, image_size=config.model.vision.image_size, tokenizer=tokenizer)
    loader = build_training_loader(config, source, view, CaptionedCollate(), parallel)
    sinks = watchers if out is None else (*build_sinks(out, engine.trackers, to_json(config)), *watchers)
    folder = nullcontext() if out is None else _open_run(out, config, source, parallel)
    watch = CaptionWatch(loader.steps, tokenizer, parallel.gather, warn_of_repeats=warn_of_repeats)
    with folder as run:
        for report in reports:
            logger.info("%s", report)
        outcome = train(
            task,
            watch.steps,
            optimization=config.optimization,
            settings=engine,
            parallel=parallel,
            run=run,
            sinks=sinks,
            evaluate=None if validation is None else _evaluation(config, task, view, validation, parallel),
            after_step=task.after_step,
        )
    return task, outcome


def _open_run(out: Path, config: ContrastiveConfig, source: ImageSource, parallel: Parallel) -> RunFolder:
    return RunFolder.open(
        out,
        config=to_json(config),
        data={"order": ORDER_NAME, "parts": source.digest()},
        parallel=parallel,
        allowed_changes=MAY_CHANGE_ON_RESUME,
        keep_last=config.engine.keep_last,
    )


def _evaluation(
    config: ContrastiveConfig, task: Contrastive, view: CaptionedView, validation: ImageSource, parallel: Parallel
) -> Callable[[], dict[str, float]]:
    assert config.optimization.micro_batch_size is not None and config.data.workers is not None
    loader = EvaluationLoader(
        validation,
        replace(view, crop=CenterCrop(), flip=False),
        CaptionedCollate(),
        batch_size=config.optimization.micro_batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        workers=config.data.workers,
    )
    precision = Precision.of(config.engine.precision, parallel.device)
    return lambda: evaluate(task, loader, parallel, precision)
