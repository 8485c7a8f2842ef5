"""`unveil eval`: a classifier on labelled images, or on the suites around ImageNet-1K."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from unveil.cli.model_options import (
    ModelOptions,
    Name,
    Number,
    check_at_least_one,
    check_workers,
    input_size,
    left_out,
    memory_for,
)
from unveil.cli.options import as_table
from unveil.config import UnveilError
from unveil.config.data import CenterCrop

if TYPE_CHECKING:
    from unveil.api import Model
    from unveil.build.evaluation import EvaluationSettings, OnProgress
    from unveil.engine import Parallel

log = logging.getLogger(__name__)

MOST_IN_REPORT = 100
"""Classes up to which report.json has the confusion matrix (rows: true class): a line for each cell."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelOptions):
    """Evaluate a classifier on labelled images, or with --suite on ImageNet-1K and its variants (EVA's Table 5).

    Example: unveil eval runs/eva_1k sets/ --suite imagenet-1k v2 real
    """

    model: Name
    """A run, a file of weights, timm/NAME, or open_clip's MODEL/PRETRAINED."""
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")]
    """Labelled images of the model's classes; with --suite, the folder that holds the sets."""
    suite: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=FOLDER] ...", help_behavior_hint="")] = ()
    """imagenet-1k, v2, real, adversarial, rendition, sketch, objectnet; or all."""
    protocol: Annotated[Literal["released", "authors"], tyro.conf.arg(help_behavior_hint="")] = "released"
    """How v2 and objectnet are judged: like the released EVA code, or like the sets' authors (docs/evaluation.md)."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Write report.json, table.md and, of labelled images, confusion.png there."""
    image_size: Number = None
    """Side, pixels. Left out, as with --crop: the model's own."""
    crop: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")] = None
    """Share of the short side that is seen."""
    limit: Number = None
    """At most so many images of each set, evenly spread: to try things out."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 64
    """Images per process and forward pass."""
    workers: Number = None
    """Processes that read images."""

    def run(self) -> int:
        from unveil.cli.terminal import log_on_terminal
        from unveil.engine import Parallel

        self._check()
        with Parallel.start(self.device) as parallel, log_on_terminal(parallel.rank):
            model = replace(self, device=str(parallel.device)).load(self.model)
            settings = self._settings(model, parallel)
            with evaluation_progress(shown=parallel.is_main) as progress, memory_for(self.batch_size):
                evaluated = self._suites if self.suite else self._labelled
                findings = evaluated(model, settings, parallel, progress)
            parallel.on_main(lambda: self._report(findings, settings))
        return 0

    def _check(self) -> None:
        """Raises UnveilError for options that cannot be."""
        given = {"image_size": self.image_size, "batch_size": self.batch_size, "limit": self.limit}
        check_at_least_one(**{name: value for name, value in given.items() if value is not None})
        check_workers(self.workers)
        check_device(self.device)
        if self.crop is not None and not 0.0 < self.crop <= 1.0:
            raise UnveilError(f"--crop is {self.crop:g}; give a share of the short side, above 0 and at most 1")
        if self.suite and len(self.data) > 1:
            raise UnveilError(f"with --suite, DATA is the one folder that holds the sets, not {' '.join(self.data)}")
        if not self.suite and not self.data:
            raise UnveilError("no images are given; name labelled images, or a folder of sets with --suite")
        check_out(self.out)

    def _settings(self, model: "Model", parallel: "Parallel") -> "EvaluationSettings":
        """Raises UnveilError for a size that does not divide into patches."""
        from unveil.build.common import find_machine
        from unveil.build.evaluation import EvaluationSettings

        return EvaluationSettings(
            image_size=input_size(model, self.image_size),
            crop=model.crop if self.crop is None else CenterCrop(share=self.crop),
            batch_size=self.batch_size,
            workers=min(16, find_machine(parallel).cores - 1) if self.workers is None else self.workers,
        )

    def _suites(
        self, model: "Model", settings: "EvaluationSettings", parallel: "Parallel", progress: "OnProgress | None"
    ) -> "Findings":
        from unveil.build.evaluation import evaluate_suites
        from unveil.tasks.classification.suites.layouts import open_suites
        from unveil.tasks.classification.suites.table import as_markdown, as_text

        root = Path(self.data[0]).expanduser() if self.data else None
        sets, missing = open_suites(self.suite, root, protocol=self.protocol, limit=self.limit)
        report = evaluate_suites(model, sets, missing, settings, parallel, on_progress=progress)
        return Findings(as_text(report), as_markdown(report), {"protocol": self.protocol, **report.as_json()})

    def _labelled(
        self, model: "Model", settings: "EvaluationSettings", parallel: "Parallel", progress: "OnProgress | None"
    ) -> "Findings":
        from unveil.build.evaluation import evaluate_labelled
        from unveil.cli.terminal import counting
        from unveil.data.sources.labelled import find_splits, open_labelled
        from unveil.data.sources.subset import SubsetSource

        if not model.classes:
            raise UnveilError(f"{model.name} has no classifier; fine-tune or probe it first: unveil finetune --help")
        paths = self.data
        if len(paths) == 1 and (held_out := find_splits(paths[0])[1]) is not None:
            log.info("%s has a train/ folder: evaluating on %s", paths[0], held_out)
            paths = (held_out,)
        with counting("images", shown=parallel.is_main) as count:
            source, _ = open_labelled(paths, classes=model.classes, on_progress=count)
        total = len(source)
        if self.limit is not None and self.limit < total:
            source = SubsetSource(source, [number * total // self.limit for number in range(self.limit)])
        summary = evaluate_labelled(model, source, settings, parallel, on_progress=progress)
        confusion = summary["confusion"]
        if len(model.classes) > MOST_IN_REPORT:
            del summary["confusion"]
        notes = [f"limited to {len(source):,} of {total:,} images"] if len(source) < total else []
        text, markdown = labelled_tables(summary, notes)
        return Findings(text, markdown, {"data": list(paths), **summary}, confusion, model.classes)

    def _report(self, findings: "Findings", settings: "EvaluationSettings") -> None:
        import torch

        from unveil.engine.disk import needing_space, write_atomically, write_json

        print(findings.text, flush=True)
        if self.out is None:
            return
        circumstances = {
            "model": self.model,
            "weights": "of the last step" if self.weights == "raw" else "averaged, where the run kept them",
            "image_size": settings.image_size,
            "crop": settings.crop.share,
            "precision": self.precision,
            "limit": self.limit,
        }
        said = ", ".join(f"{name} {value}" for name, value in circumstances.items() if value is not None)
        with needing_space(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out / "table.md", f"{findings.markdown}\n{said}\n")
        write_json(self.out / "report.json", circumstances | findings.content)
        written = ["report.json", "table.md"]
        if findings.confusion is not None:
            from unveil.visualize.confusion import confusion_picture
            from unveil.visualize.figures import save_picture

            matrix = torch.tensor(findings.confusion)
            save_picture(confusion_picture(matrix, findings.classes, title=self.model), self.out / "confusion.png")
            written.append("confusion.png")
        print(f"written: {', '.join(str(self.out / name) for name in written)}")


def check_device(device: str | None) -> None:
    """Raises UnveilError for a device that is not known, or one for several processes."""
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UnveilError(f"--device {device} is not known; give cpu, cuda or cuda:1")
    if device is not None and ":" in device and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UnveilError("of several processes each takes a GPU of its own; leave --device out")


def check_out(out: Path | None) -> None:
    """Before hours of evaluation, not after.

    Raises:
        UnveilError: the folder cannot be made or written to.
    """
    if out is None:
        return
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        problem = "cannot be written to" if place.is_dir() else "is a file"
        raise UnveilError(f"--out {out}: {place} {problem}; give another folder")


class Findings(NamedTuple):
    """What an evaluation found."""

    text: str
    """For the terminal."""
    markdown: str
    content: dict[str, Any]
    """For report.json."""
    confusion: list[list[int]] | None = None
    """Images by true class (rows) and answer (columns)."""
    classes: tuple[str, ...] = ()


def labelled_tables(summary: dict[str, Any], notes: list[str]) -> tuple[str, str]:
    """The numbers for a terminal; and in Markdown, with each class's."""

    def shown(value: float | None, scale: float = 100.0, unit: str = " %") -> str:
        return "-" if value is None else f"{scale * value:.2f}{unit}"

    lines = [
        ("images", f"{summary['images']:,}"),
        ("top-1", shown(summary["top1"])),
        ("top-5", shown(summary["top5"])),
        ("mean of the classes", shown(summary["mean_class_accuracy"])),
        ("calibration error", shown(summary["calibration_error"])),
        ("loss", shown(summary["loss"], 1.0, " nats")),
    ]
    unreadable = summary["unreadable"]
    if unreadable:
        notes = [*notes, left_out(len(unreadable), summary["images"] + len(unreadable))]
    classes = [
        (name.replace("|", "\\|"), f"{of_class['images']:,}", shown(of_class["accuracy"]))
        for name, of_class in summary["per_class"].items()
    ]
    markdown = ["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in lines), ""]
    markdown += [*(f"- {note}" for note in notes), *([""] if notes else [])]
    markdown += ["| class | images | top-1 |", "| --- | ---: | ---: |", *(f"| {' | '.join(row)} |" for row in classes)]
    return "\n".join([as_table(lines), *notes]), "\n".join(markdown) + "\n"


@contextmanager
def evaluation_progress(*, shown: bool) -> Iterator["OnProgress | None"]:
    """A bar on a terminal, else a line for each tenth of a set."""
    from unveil.cli.terminal import bar, tenths

    lines: dict[str, Callable[[int, int], None]] = {}
    with bar("evaluating") if shown else nullcontext() as moved:

        def say(what: str, done: int, total: int) -> None:
            if moved is None:
                lines.setdefault(what, tenths(what))(done, total)
            else:
                moved(done, total)

        yield say if shown else None
