"""Zero-shot classification of labelled images by a CLIP."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from unveil.build.evaluation import OnProgress, ReadingSettings, run_measure
from unveil.build.image_batches import PreparedView, collate
from unveil.config import UnveilError
from unveil.data.sources.base import Source
from unveil.engine import Parallel
from unveil.tasks.classification.metrics import summarize
from unveil.tasks.classification.suites.measure import LabelledMeasure
from unveil.tasks.classification.view import collate_labelled
from unveil.tasks.contrastive.average_precision import SeveralClassesMeasure, average_precision
from unveil.tasks.contrastive.zero_shot import ZeroShotClassifier


def zero_shot_scores(
    classifier: ZeroShotClassifier,
    source: Source,
    settings: ReadingSettings,
    parallel: Parallel,
    *,
    what: str = "images",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """What `metrics.summarize` says of labelled images, and "unreadable": name and reason of each image left out.

    Sums are added over all processes, so that their number changes nothing.

    Args:
        source: its labels are places in the classifier's classes.
        what: is evaluated, for progress and errors.

    Raises:
        UnveilError: the model answers with numbers that are not finite, or nothing can be read.
    """
    measure = LabelledMeasure(classifier.logits)
    view = PreparedView(classifier.embedder.transform, classifier.embedder.image_size)
    _, unreadable = run_measure(
        measure, source, view, collate_labelled, settings, parallel, what, classifier.name, on_progress
    )
    return {**summarize(measure.totals, classifier.classes), "unreadable": unreadable}


def zero_shot_average_precision(
    classifier: ZeroShotClassifier,
    source: Source,
    targets: Bool[Tensor, "n c"],
    settings: ReadingSettings,
    parallel: Parallel,
    *,
    what: str = "images",
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """How well the classifier finds the images of each class, where an image may show several.

    Args:
        targets: which classes each image of the source shows.

    Returns:
        "images", "mean_average_precision" (None where no image shows anything), "per_class" (name -> average precision
        and images) and "unreadable", as JSON values.

    Raises:
        UnveilError: as `zero_shot_scores`; or another number of targets than of images or classes.
    """
    wanted = (len(source), len(classifier.classes))
    if tuple(targets.shape) != wanted:
        raise UnveilError(f"the targets of {what} are {tuple(targets.shape)} and must be {wanted}, images by classes")
    measure = SeveralClassesMeasure(classifier.logits, *wanted)
    view = PreparedView(classifier.embedder.transform, classifier.embedder.image_size)
    _, unreadable = run_measure(measure, source, view, collate, settings, parallel, what, classifier.name, on_progress)
    scores, seen = measure.scores.to(parallel.device), measure.seen.to(parallel.device)
    parallel.sum_(scores)
    parallel.sum_(seen)
    read = (seen > 0).cpu()
    found = average_precision(scores.cpu()[read], targets.cpu()[read])
    counts = targets.cpu()[read].sum(dim=0).tolist()
    rows = zip(classifier.classes, found.per_class, counts, strict=True)
    return {
        "images": int(read.sum()),
        "mean_average_precision": None if torch.isnan(torch.tensor(found.mean)) else found.mean,
        "per_class": {name: {"average_precision": value, "images": count} for name, value, count in rows},
        "unreadable": unreadable,
    }
