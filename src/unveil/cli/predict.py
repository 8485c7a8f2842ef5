"""`unveil predict`: the likeliest classes of images."""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from unveil.cli.model_options import (
    PICTURES,
    Files,
    ModelOptions,
    Name,
    Number,
    check_at_least_one,
    check_output,
    check_workers,
    left_out,
    memory_for,
)
from unveil.config import UnveilError
from unveil.config.data import CenterCrop

if TYPE_CHECKING:
    from torch import Tensor

    from unveil.build.image_batches import PlainView
    from unveil.data.sources.base import Source

SHEET = 48
"""Images on a sheet: more would not be looked at."""


class Prediction(NamedTuple):
    """What is said of one image."""

    name: str
    place: int
    """In the source."""
    answers: list[tuple[str, float]]
    """Labels and probabilities, the likeliest first."""


class Predictor(NamedTuple):
    """A model that says what is on images."""

    view: "PlainView"
    """What it sees of them."""
    shown: CenterCrop
    """The part that a sheet shows."""
    answers: Callable[["Tensor", int], list[list[tuple[str, float]]]]
    """Bytes (b 3 h w) to so many labels with their probabilities, the likeliest first."""


@dataclass(frozen=True)
class Predict(ModelOptions):
    """Say what is on images: the likeliest classes, with their probabilities.

    Example: unveil predict runs/flowers photos/ --format csv --out flowers.csv --sheet flowers.png

    Of a CLIP: unveil predict runs/clip photos/ --labels "a cat,a dog"
    """

    model: Name
    """A run, a file of weights, timm/NAME, or open_clip's MODEL/PRETRAINED; with --labels a CLIP, also MODEL/FILE."""
    files: Files
    """Images, folders (searched to any depth), .tar shards, or patterns of them."""
    labels: Annotated[str | None, tyro.conf.arg(metavar="NAMES", help_behavior_hint="")] = None
    """What a CLIP chooses among: names with commas between them, or a .txt with one a line."""
    templates: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Sentences with {} for the name, one a line; or imagenet, OpenAI's 80. Left out: the names as they are."""
    top_k: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 5
    """Classes for each image."""
    format: Annotated[Literal["table", "jsonl", "csv"], tyro.conf.arg(help_behavior_hint="")] = "table"
    """For people, or for programs: one JSON object an image, one CSV line a class."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write there instead of printing."""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png", help_behavior_hint="")] = None
    """A picture of the first 48 images with their three likeliest classes."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 32
    """Images per forward pass."""
    workers: Number = None
    """Processes that read images."""

    def run(self) -> int:
        from unveil.cli.terminal import counting, log_on_terminal
        from unveil.data.sources.open import open_images

        self._check()
        with log_on_terminal(0):
            with counting("images") as count:
                source = open_images(self.files, on_progress=count)
            predictor = self._classifier() if self.labels is None else self._zero_shot(self.labels)
            predictions = self._predict(predictor, source)
            self._write(as_text(predictions, self.format))
            if self.sheet is not None:
                self._write_sheet(predictor, source, predictions)
        if len(predictions) < len(source):
            print(left_out(len(source) - len(predictions), len(source)), file=sys.stderr)
        return 0

    def _check(self) -> None:
        """Raises UnveilError for options that cannot be."""
        check_at_least_one(top_k=self.top_k, batch_size=self.batch_size)
        check_workers(self.workers)
        check_output("out", self.out)
        check_output("sheet", self.sheet, PICTURES)
        if self.labels is None and self.templates is not None:
            raise UnveilError("--templates are sentences for --labels; give both, or neither")

    def _classifier(self) -> Predictor:
        """Raises UnveilError where the model has no head."""
        from unveil.build.image_batches import MiddleView

        model = self.load(self.model)
        model.predict([])
        return Predictor(MiddleView(model.crop, model.image_size), model.crop, model.predict)

    def _zero_shot(self, labels: str) -> Predictor:
        """Raises UnveilError for labels or templates that cannot be, or a model that is no CLIP."""
        from unveil.build.image_batches import PreparedView
        from unveil.cli.terminal import bar
        from unveil.engine.disk import cache_folder
        from unveil.tasks.contrastive.prompts import AS_IT_IS, open_labels, open_templates
        from unveil.tasks.contrastive.zero_shot import zero_shot_classifier

        names = open_labels(labels)
        sentences = AS_IT_IS if self.templates is None else open_templates(self.templates)
        model = self.load_clip(self.model)
        with bar("reading labels") as progress:
            classifier = zero_shot_classifier(
                model, names, sentences, cache=cache_folder() / "zero_shot", on_progress=progress
            )
        return Predictor(PreparedView(model.transform, model.image_size), CenterCrop(), classifier.predict)

    def _predict(self, predictor: Predictor, source: "Source") -> list[Prediction]:
        from unveil.build.image_batches import image_batches
        from unveil.cli.terminal import bar

        size = min(self.batch_size, len(source))
        predictions = []
        batches = image_batches(source, predictor.view, batch_size=size, workers=self.workers)
        with bar("predicting") as progress, memory_for(size):
            for number, batch in enumerate(batches, start=1):
                rows = batch["valid"].nonzero().flatten().tolist()
                answers = predictor.answers(batch["image"][rows], self.top_k)
                for row, answer in zip(rows, answers, strict=True):
                    predictions.append(Prediction(batch["names"][row], int(batch["indices"][row]), answer))
                if progress is not None:
                    progress(min(number * size, len(source)), len(source))
        return predictions

    def _write(self, text: str) -> None:
        from unveil.engine.disk import needing_space, write_atomically

        if self.out is None:
            print(text, end="", flush=True)
            return
        with needing_space(self.out):
            write_atomically(self.out, text)

    def _write_sheet(self, predictor: Predictor, source: "Source", predictions: Sequence[Prediction]) -> None:
        from unveil.build.image_batches import middle
        from unveil.visualize.figures import save_picture
        from unveil.visualize.prediction_sheet import THUMBNAIL, Card, prediction_sheet

        assert self.sheet is not None
        cards = []
        for name, place, answers in predictions[:SHEET]:
            picture = middle(source[place].image, predictor.shown, THUMBNAIL)
            cards.append(Card(name.rsplit("/", 1)[-1], picture, answers[:3]))
        save_picture(prediction_sheet(cards), self.sheet)
        shown = f" (the first {SHEET} of {len(predictions):,})" if len(predictions) > SHEET else ""
        print(f"wrote {self.sheet}{shown}", file=sys.stderr)


def as_text(predictions: Sequence[Prediction], form: Literal["table", "jsonl", "csv"]) -> str:
    """All predictions as lines of a format."""
    match form:
        case "jsonl":
            return "".join(
                json.dumps(
                    {"file": name, "predictions": [{"label": label, "probability": p} for label, p in answers]},
                    ensure_ascii=False,
                )
                + "\n"
                for name, _, answers in predictions
            )
        case "csv":
            buffer = io.StringIO()
            writer = csv.writer(buffer, lineterminator="\n")
            writer.writerow(["file", "rank", "label", "probability"])
            for name, _, answers in predictions:
                writer.writerows([name, rank, label, p] for rank, (label, p) in enumerate(answers, start=1))
            return buffer.getvalue()
        case "table":
            return _table(predictions)


def _table(predictions: Sequence[Prediction]) -> str:
    """Columns of even width: file, then each class with its percentage."""
    rows = [[name, *(f"{100 * p:5.1f} % {label}" for label, p in answers)] for name, _, answers in predictions]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "".join(f"{line}\n" for line in lines)
