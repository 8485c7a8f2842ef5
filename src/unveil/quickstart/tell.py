"""The quickstart from the first chapter to the last."""

import time
from dataclasses import replace
from pathlib import Path

from unveil.build import find_machine, pretrain
from unveil.config import ImageFiles, UnveilError
from unveil.config.quickstart import QuickstartConfig
from unveil.config.resolve import resolve
from unveil.engine import Parallel, Precision
from unveil.pretext.masked_modelling import MaskedModelling
from unveil.quickstart.captions import compare_clips
from unveil.quickstart.few_labels import compare_finetuning, extract_all, probe
from unveil.quickstart.images import open_data, read_images
from unveil.quickstart.story import Clock, Progress, StepReporter, Story, end_where_stopped, logged_losses


def tell(
    config: QuickstartConfig,
    *,
    data: Path | None,
    out: Path,
    parallel: Parallel,
    progress: Progress,
    captions: bool = False,
) -> Story:
    """Run the chapters one after the other.

    Args:
        data: class folders of the person's own, with train/ and test/ inside or, without, a fifth held out; None: the
            embedded scenes.
        out: the pre-training's run goes to `out`/pretrain.
        captions: also the optional last chapter, whose runs go to `out`/clip.

    Raises:
        UnveilError: data that will not do, or captions for a network that can be in no CLIP.
    """
    if captions and config.captions is None:
        raise UnveilError(
            "the chapter of captions trains a CLIP, whose image tower is a ViT, and the model is a RevColV2; leave "
            "--chapters out, or --model"
        )
    began = time.monotonic()
    clock = Clock(progress, captions=captions)
    size = config.pretrain.model.image_size
    with clock.chapter("reading images") as done:
        source, test_source, classes = open_data(config, data)
        train, test = read_images(source, size, lambda share: done(share * 0.8)), read_images(test_source, size, done)
    with clock.chapter("pre-training") as done:
        pretraining = config.pretrain
        ahead = 0.15 if pretraining.cache_targets else 0.0
        reporter = StepReporter(lambda share: done(ahead + (1.0 - ahead) * share))
        if data is not None:
            # Unlike the scenes, photos do not come mirrored, and there may be few of them.
            photos = replace(pretraining.data, source=ImageFiles(paths=(str(data),)), flip=True)
            pretraining = replace(pretraining, data=photos)
        pretraining = resolve(pretraining, images=len(source), machine=find_machine(parallel))
        task, outcome = pretrain(
            pretraining,
            source,
            out=out / "pretrain",
            parallel=parallel,
            watchers=(reporter,),
            on_cache=lambda count, total: done(ahead * count / total),
        )
        end_where_stopped(outcome)
    assert isinstance(task, MaskedModelling)
    story = Story(
        config=replace(config, pretrain=pretraining),
        classes=classes,
        source=source,
        train=train,
        test=test,
        task=task,
        losses=logged_losses(out / "pretrain" / "metrics.jsonl"),
        features={},
        report={},
    )
    precision = Precision.of(pretraining.engine.precision, parallel.device)
    with clock.chapter("features") as done:
        extract_all(story, parallel, precision, done)
    with clock.chapter("linear probe and kNN") as done:
        probe(story, done)
    with clock.chapter("fine-tuning") as done:
        compare_finetuning(story, out / "pretrain", parallel, precision, done)
    if captions:
        with clock.chapter("images and captions") as done:
            compare_clips(story, out, parallel, precision, done)
    story.report["seconds"] = time.monotonic() - began
    story.report["chapters"] = clock.seconds
    progress("done", 1.0)
    return story
