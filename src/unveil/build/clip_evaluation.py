"""Evaluation of a CLIP without training it: the zero-shot and retrieval benchmarks of the paper (section 2.3.5)."""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from unveil.build.evaluation import OnProgress, ReadingSettings, run_measure
from unveil.build.image_batches import PreparedView, collate
from unveil.build.zero_shot import zero_shot_average_precision, zero_shot_scores
from unveil.data.sources.base import Sample, Source
from unveil.engine import Parallel
from unveil.tasks.classification.metrics import summarize
from unveil.tasks.classification.suites.measure import LabelledMeasure
from unveil.tasks.classification.view import collate_labelled
from unveil.tasks.contrastive.embedder import Embedder
from unveil.tasks.contrastive.prompts import warn_of_long
from unveil.tasks.contrastive.retrieval import retrieval
from unveil.tasks.contrastive.suites.frames import VideoSample
from unveil.tasks.contrastive.suites.suite import Measure
from unveil.tasks.contrastive.suites.table import RetrievalScore, ZeroShotReport, ZeroShotScore
from unveil.tasks.contrastive.suites.zero_shot_set import BenchmarkSet, LabelledSet, MultiLabelSet, RetrievalSet
from unveil.tasks.contrastive.zero_shot import ZeroShotClassifier, zero_shot_classifier

logger = logging.getLogger(__name__)

TEXTS_AT_A_TIME = 256


def evaluate_clip(
    embedder: Embedder,
    sets: Sequence[BenchmarkSet],
    missing: dict[str, str],
    settings: ReadingSettings,
    parallel: Parallel,
    *,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> ZeroShotReport:
    """The scores of all benchmarks: sums and features of all processes together, so that their number changes nothing.

    Args:
        missing: benchmarks that are left out, and why, for the report.
        cache: folder of zero-shot classifiers, see `zero_shot_weights`.

    Raises:
        UnveilError: the model answers with numbers that are not finite, or nothing in a set can be read.
    """
    scores, pairs = [], []
    for found in sets:
        name = found.suite.name
        if isinstance(found, RetrievalSet):
            pair = _retrieve(embedder, found, settings, parallel, on_progress)
            pairs.append(pair)
            recalls = ", ".join(f"{way} {100 * share:.2f}" for way, share in pair.found.numbers().items())
            logger.info("%s: %s", name, recalls)
        else:
            score = _classify(embedder, found, settings, parallel, cache, on_progress)
            scores.append(score)
            # At once: whatever happens to the next set, this number is not lost.
            logger.info("%s: %.2f (%s) of %s", name, 100 * score.score, found.suite.measure, f"{score.images:,}")
    return ZeroShotReport(scores=tuple(scores), retrieval=tuple(pairs), missing=dict(missing))


def _classify(
    embedder: Embedder,
    found: LabelledSet,
    settings: ReadingSettings,
    parallel: Parallel,
    cache: Path | None,
    on_progress: OnProgress | None,
) -> ZeroShotScore:
    name = found.suite.name
    building = None if on_progress is None else partial(on_progress, f"{name}, texts")
    classifier = zero_shot_classifier(embedder, found.classes, found.templates, cache=cache, on_progress=building)
    top1 = top5 = mean_class = None
    if isinstance(found, MultiLabelSet):
        result = zero_shot_average_precision(
            classifier, found.source, found.targets, settings, parallel, what=name, on_progress=on_progress
        )
        score = result["mean_average_precision"]
    else:
        evaluated = _video_scores if found.suite.kind == "video" else zero_shot_scores
        result = evaluated(classifier, found.source, settings, parallel, what=name, on_progress=on_progress)
        top1, top5, mean_class = result["top1"], result["top5"], result["mean_class_accuracy"]
        score = _score(found.suite.measure, top1, top5, mean_class)
    return ZeroShotScore(
        suite=name,
        score=score,
        top1=top1,
        top5=top5,
        mean_class=mean_class,
        images=result["images"],
        classes=len(found.classes),
        templates=len(found.templates),
        unreadable=result["unreadable"],
        notes=found.notes,
    )


def _score(measure: Measure, top1: float, top5: float, mean_class: float) -> float:
    match measure:
        case "top-1":
            return top1
        case "mean of classes":
            return mean_class
        case "mean of top-1, top-5":
            return (top1 + top5) / 2
    raise ValueError(f"{measure} is no measure of images with one class each")


@dataclass(frozen=True)
class VideoView:
    """Called in the workers: the frames of a video as the model prepares images."""

    transform: Callable[[Image.Image], UInt8[Tensor, "3 h w"]]

    def __call__(self, sample: Sample, rng: random.Random) -> dict[str, Any]:
        assert isinstance(sample, VideoSample)
        return {"image": torch.stack([self.transform(frame) for frame in sample.frames]), "label": sample.label}


def _video_scores(
    classifier: ZeroShotClassifier,
    source: Source,
    settings: ReadingSettings,
    parallel: Parallel,
    *,
    what: str,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """`zero_shot_scores` of videos: a video's feature is the mean of its frames' unit features."""
    embedder = classifier.embedder

    def logits(videos: UInt8[Tensor, "b f 3 h w"]) -> Float[Tensor, "b c"]:
        parts = [embedder.encode_images(some) for some in videos.flatten(0, 1).split(settings.batch_size)]
        frames = torch.cat(parts).unflatten(0, videos.shape[:2])
        cosines = F.normalize(frames.mean(dim=1), dim=1) @ classifier.weights.T
        return (embedder.logit_scale * cosines + embedder.logit_bias).to(videos.device)

    measure = LabelledMeasure(logits)
    view = VideoView(embedder.transform)
    _, unreadable = run_measure(
        measure, source, view, collate_labelled, settings, parallel, what, classifier.name, on_progress
    )
    return {**summarize(measure.totals, classifier.classes), "unreadable": unreadable}


class _Features:
    """Keeps the features of all images: what `unveil.engine.evaluate` asks of a task."""

    training = False

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.of_image: dict[int, np.ndarray] = {}
        """By place in the source."""

    def train(self, mode: bool = True) -> None:
        """There is nothing to train."""

    def evaluate(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """How many rows are valid, and how many of them not finite, Int64."""
        valid = batch["valid"].cpu()
        features = self._embedder.encode_images(batch["image"])[valid]
        self.of_image.update(zip(batch["indices"].cpu()[valid].tolist(), features.numpy(), strict=True))
        counts = {"images": valid.sum(), "not_finite": (~features.isfinite().all(dim=1)).sum()}
        return {name: count.to(batch["image"].device) for name, count in counts.items()}

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        """The counts."""
        return {name: float(value) for name, value in state.items()}


def _retrieve(
    embedder: Embedder,
    found: RetrievalSet,
    settings: ReadingSettings,
    parallel: Parallel,
    on_progress: OnProgress | None,
) -> RetrievalScore:
    """An image that cannot be read is left out with its captions."""
    name, features = found.suite.name, _Features(embedder)
    view = PreparedView(embedder.transform, embedder.image_size)
    _, unreadable = run_measure(
        features, found.source, view, collate, settings, parallel, name, embedder.name, on_progress
    )
    of_image = {place: row for part in parallel.gather(features.of_image) for place, row in part.items()}
    places = sorted(of_image)
    texts = [(row, text) for row, place in enumerate(places) for text in found.captions[place]]
    warn_of_long([text for _, text in texts], embedder.context_length)
    result = retrieval(
        torch.from_numpy(np.stack([of_image[place] for place in places])),
        _embed_texts(embedder, [text for _, text in texts], parallel, f"{name}, texts", on_progress),
        torch.tensor([row for row, _ in texts]),
    )
    return RetrievalScore(suite=name, found=result, unreadable=unreadable, notes=found.notes)


def _embed_texts(
    embedder: Embedder, texts: Sequence[str], parallel: Parallel, what: str, on_progress: OnProgress | None
) -> Float[Tensor, "n d"]:
    """Each process embeds every so manieth part of them."""
    starts = range(0, len(texts), TEXTS_AT_A_TIME)
    own = starts[parallel.rank :: parallel.world_size]
    parts = {}
    for done, start in enumerate(own, start=1):
        parts[start] = embedder.encode_texts(texts[start : start + TEXTS_AT_A_TIME]).numpy()
        if on_progress is not None:
            on_progress(what, done, len(own))
    together = {start: part for of_one in parallel.gather(parts) for start, part in of_one.items()}
    return torch.from_numpy(np.concatenate([together[start] for start in starts]))
