"""Evaluation of a classifier: on the suites around ImageNet-1K, and on labelled images of its own classes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from torch import Tensor

from unveil.config import UnveilError
from unveil.config.data import CenterCrop
from unveil.data.loader import EvaluationLoader
from unveil.data.reading import Batch, Collate, View
from unveil.data.sources.base import Source
from unveil.engine import Parallel, Precision, evaluate
from unveil.engine.evaluation import Evaluated
from unveil.tasks.classification.metrics import summarize
from unveil.tasks.classification.suites.evaluation_set import EvaluationSet
from unveil.tasks.classification.suites.imagenet import rows_of_classes
from unveil.tasks.classification.suites.measure import LabelledMeasure, SuiteMeasure, SuiteView, collate_images
from unveil.tasks.classification.suites.table import Report, Score
from unveil.tasks.classification.view import LabelledView, collate_labelled

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
"""Called with what is evaluated, and batches done and in all."""


@runtime_checkable
class Classifier(Protocol):
    """What is evaluated; `unveil.load` gives one."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the head's rows, in order."""
        ...

    def logits(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Scores of the classes for images as bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """How images are read."""

    batch_size: int = 64
    """Images per process and forward pass."""
    workers: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(ReadingSettings):
    """How images come to the model."""

    image_size: int
    """Side, pixels."""
    crop: CenterCrop


def evaluate_suites(
    model: Classifier,
    sets: Sequence[EvaluationSet],
    missing: dict[str, str],
    settings: EvaluationSettings,
    parallel: Parallel,
    *,
    on_progress: OnProgress | None = None,
) -> Report:
    """The scores of all sets: counts added over all processes, so that their number changes nothing.

    Args:
        missing: suites that are not there, for the report.

    Raises:
        UnveilError: the model has other classes than ImageNet-1K's, answers with numbers that are not finite, or
            nothing in a set can be read.
    """
    rows = rows_of_classes(model.classes, model.name)
    scores = []
    for found in sets:
        suite = found.suite.name
        view = SuiteView(
            crop=settings.crop, image_size=settings.image_size, border=found.border, bilinear=found.bilinear
        )
        measure = SuiteMeasure(found, model.logits, rows, parallel.device)
        result, unreadable = run_measure(
            measure, found.source, view, collate_images, settings, parallel, suite, model.name, on_progress
        )
        # At once: whatever happens to the next set, this number is not lost.
        percent = (100 * result["top1"], 100 * result["top5"])
        logger.info("%s: top-1 %.2f, top-5 %.2f of %s images", suite, *percent, f"{result['images']:,.0f}")
        scores.append(
            Score(
                suite=suite,
                top1=result["top1"],
                top5=result["top5"],
                images=int(result["images"]),
                unreadable=unreadable,
                without_label=found.without_label,
                notes=found.notes,
            )
        )
    return Report(tuple(scores), missing=dict(missing))


def evaluate_labelled(
    model: Classifier,
    source: Source,
    settings: EvaluationSettings,
    parallel: Parallel,
    *,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """What `metrics.summarize` says of a source, and "unreadable": name and reason of each image left out.

    Args:
        source: its labels are places in the model's classes.

    Raises:
        UnveilError: the model answers with numbers that are not finite, or nothing can be read.
    """
    measure = LabelledMeasure(model.logits)
    view = LabelledView(crop=settings.crop, flip=False, image_size=settings.image_size)
    _, unreadable = run_measure(
        measure, source, view, collate_labelled, settings, parallel, "images", model.name, on_progress
    )
    return {**summarize(measure.totals, model.classes), "unreadable": unreadable}


def run_measure(
    measure: Evaluated,
    source: Source,
    view: View,
    collate: Collate,
    settings: ReadingSettings,
    parallel: Parallel,
    what: str,
    model: str,
    on_progress: OnProgress | None,
) -> tuple[dict[str, float], dict[str, str]]:
    """The measure's metrics over a source, and name and reason of each image that no process could read.

    Args:
        measure: counts "images" and "not_finite" among others.
        what: is evaluated, for progress and errors, as `model`.

    Raises:
        UnveilError: the model answers with numbers that are not finite, or nothing can be read.
    """
    loader = EvaluationLoader(
        source,
        view,
        collate,
        batch_size=settings.batch_size,
        rank=parallel.rank,
        world_size=parallel.world_size,
        workers=settings.workers,
    )

    def watched() -> Iterator[Batch]:
        for done, batch in enumerate(loader, start=1):
            yield batch
            if on_progress is not None:
                on_progress(what, done, len(loader))

    # The model chooses the format of its arithmetic itself.
    result = evaluate(measure, watched(), parallel, Precision.of("fp32", parallel.device))
    if result["not_finite"]:
        raise UnveilError(
            f"{model} answers {result['not_finite']:,.0f} of {result['images']:,.0f} images of {what} with numbers "
            "that are not finite; try --precision fp32 or bf16, or other weights"
        )
    unreadable: dict[str, str] = {}
    for of_one_process in parallel.gather(loader.unreadable):
        unreadable |= of_one_process
    return result, unreadable
