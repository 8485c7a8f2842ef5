"""Contrastive training: from a configuration and captioned images to a trained CLIP."""

from dataclasses import replace
from pathlib import Path

import torch

from unveil.build.common import build_training_loader
from unveil.build.runs import begins_anew, held_out, log_of_run, train_run
from unveil.build.starting_clip import start_clip
from unveil.config import CenterCrop, ContrastiveConfig
from unveil.data.sources.base import Source as ImageSource
from unveil.engine import Outcome, Parallel, Sink
from unveil.models.clip import Clip
from unveil.tasks.contrastive.caption_report import CaptionReport
from unveil.tasks.contrastive.caption_watch import CaptionWatch
from unveil.tasks.contrastive.task import Contrastive
from unveil.tasks.contrastive.tokens import Tokenizer
from unveil.tasks.contrastive.view import CaptionedCollate, CaptionedView


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
    captions: CaptionReport | None = None,
) -> tuple[Contrastive, Outcome]:
    """Run, or go on with, a resolved contrastive training on captioned images.

    Args:
        out: folder of the run; None: nothing is written.
        watchers: sinks beside the run's own, for whoever looks on.
        validation: pairs that are held out, evaluated every `config.engine.evaluate_every` steps and at the end.
        warn_of_repeats: name the first caption that a batch has twice; False where there are few different ones.
        captions: for the run's log.

    Raises:
        UnveilError: weights that do not fit, samples that cannot be read, whatever else a person can mend.
    """
    data = config.data
    task = build_contrastive(config, held_out=0 if validation is None else len(validation))
    reports = start_clip(task.clip, config) if begins_anew(out) else []
    tokenizer = Tokenizer(config.model.text.context_length)
    view = CaptionedView(crop=data.crop, flip=data.flip, image_size=config.model.vision.image_size, tokenizer=tokenizer)
    loader = build_training_loader(config, source, view, CaptionedCollate(), parallel)
    watch = CaptionWatch(loader.steps, tokenizer, parallel.gather, warn_of_repeats=warn_of_repeats)
    evaluation = None
    if validation is not None:
        middle = replace(view, crop=CenterCrop(), flip=False)
        evaluation = held_out(config, task, validation, middle, CaptionedCollate(), parallel)
    outcome = train_run(
        config,
        task,
        watch.steps,
        parts=source.digest(),
        out=out,
        parallel=parallel,
        watchers=watchers,
        evaluation=evaluation,
        reports=reports,
        at_start=lambda: log_of_run.info("%s", captions) if captions is not None else None,
        after_step=task.after_step,
    )
    return task, outcome
