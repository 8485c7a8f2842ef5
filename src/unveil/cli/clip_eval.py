"""`unveil clip eval`: a CLIP on the zero-shot and retrieval benchmarks of the paper, or on labelled images."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unveil.cli.evaluate import (
    MOST_IN_REPORT,
    Findings,
    check_device,
    check_out,
    evaluation_progress,
    labelled_tables,
)
from unveil.cli.model_options import ModelOptions, Name, Number, check_at_least_one, check_workers, memory_for
from unveil.config import UnveilError

if TYPE_CHECKING:
    from unveil.build.evaluation import OnProgress, ReadingSettings
    from unveil.engine import Parallel
    from unveil.tasks.contrastive.embedder import Embedder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipEval(ModelOptions):
    """Measure a CLIP without training it: zero-shot classification and retrieval (EVA's Table 10b).

    Example: unveil clip eval runs/clip sets/ --suite imagenet-1k v2 cifar10 flickr30k
    """

    model: Name
    """A run of `clip train`, a file of weights, or open_clip's MODEL/PRETRAINED or MODEL/FILE."""
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")]
    """The folder that holds the sets; without --suite, labelled images (class folders, tars, a CSV)."""
    suite: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=FOLDER] ...", help_behavior_hint="")] = ()
    """Benchmarks (docs/clip_evaluation.md names them); or all."""
    class_names: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Names of the classes: JSON, lists by suite; without --suite, text with a name a line."""
    templates: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Sentences with {} for the name: JSON, lists by suite; without --suite, text with one a line."""
    frames: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 1
    """Of each video: the centre one, or N whose features are averaged."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Write report.json and table.md there."""
    limit: Number = None
    """At most so many samples of each set, evenly spread: to try things out."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 64
    """Images per process and forward pass."""
    workers: Number = None
    """Processes that read images."""

    def run(self) -> int:
        from unveil.build.clip_models import load_clip
        from unveil.build.common import find_machine
        from unveil.build.evaluation import ReadingSettings
        from unveil.cli.terminal import log_on_terminal
        from unveil.engine import Parallel

        self._check()
        with Parallel.start(self.device) as parallel, log_on_terminal(parallel.rank):
            model = load_clip(
                self.model,
                weights=self.weights,
                device=str(parallel.device),
                precision=self.precision,
                settings=self.set,
            )
            workers = min(16, find_machine(parallel).cores - 1) if self.workers is None else self.workers
            settings = ReadingSettings(batch_size=self.batch_size, workers=workers)
            with evaluation_progress(shown=parallel.is_main) as progress, memory_for(self.batch_size):
                evaluated = self._suites if self.suite else self._labelled
                findings = evaluated(model, settings, parallel, progress)
            parallel.on_main(lambda: self._report(findings))
        return 0

    def _check(self) -> None:
        """Raises UnveilError for options that cannot be."""
        check_at_least_one(batch_size=self.batch_size, frames=self.frames)
        if self.limit is not None:
            check_at_least_one(limit=self.limit)
        check_workers(self.workers)
        check_device(self.device)
        if self.suite and len(self.data) > 1:
            raise UnveilError(f"with --suite, DATA is the one folder that holds the sets, not {' '.join(self.data)}")
        if not self.suite and not self.data:
            raise UnveilError("no images are given; name labelled images, or a folder of sets with --suite")
        check_out(self.out)

    def _suites(
        self, model: "Embedder", settings: "ReadingSettings", parallel: "Parallel", progress: "OnProgress | None"
    ) -> Findings:
        from unveil.build.clip_evaluation import evaluate_clip
        from unveil.engine.disk import cache_folder
        from unveil.tasks.contrastive.suites.layouts import open_zero_shot_suites
        from unveil.tasks.contrastive.suites.names import read_names
        from unveil.tasks.contrastive.suites.table import as_markdown, as_text

        sets, missing = open_zero_shot_suites(
            self.suite,
            Path(self.data[0]).expanduser() if self.data else None,
            names=read_names(self.class_names, self.templates),
            frames=self.frames,
            limit=self.limit,
        )
        report = evaluate_clip(
            model, sets, missing, settings, parallel, cache=cache_folder() / "zero_shot", on_progress=progress
        )
        return Findings(as_text(report), as_markdown(report), report.as_json())

    def _labelled(
        self, model: "Embedder", settings: "ReadingSettings", parallel: "Parallel", progress: "OnProgress | None"
    ) -> Findings:
        from unveil.build.zero_shot import zero_shot_scores
        from unveil.cli.terminal import counting
        from unveil.data.sources.labelled import find_splits, open_labelled, read_classes
        from unveil.data.sources.subset import SubsetSource
        from unveil.engine.disk import cache_folder
        from unveil.tasks.contrastive.prompts import open_templates
        from unveil.tasks.contrastive.suites.class_folders import spaced
        from unveil.tasks.contrastive.suites.names import ANYTHING
        from unveil.tasks.contrastive.zero_shot import zero_shot_classifier

        paths = self.data
        if len(paths) == 1 and (held_out := find_splits(paths[0])[1]) is not None:
            log.info("%s has a train/ folder: evaluating on %s", paths[0], held_out)
            paths = (held_out,)
        with counting("images", shown=parallel.is_main) as count:
            source, classes = open_labelled(paths, on_progress=count)
        names = tuple(map(spaced, classes)) if self.class_names is None else read_classes(str(self.class_names))
        if len(names) != len(classes):
            raise UnveilError(
                f"{self.class_names} has {len(names):,} names and {' '.join(paths)} {len(classes):,} classes "
                f"({', '.join(classes[:3])}, ...); give one name for each, in this order"
            )
        templates = ANYTHING if self.templates is None else open_templates(str(self.templates))
        total = len(source)
        if self.limit is not None and self.limit < total:
            source = SubsetSource(source, [number * total // self.limit for number in range(self.limit)])
        classifier = zero_shot_classifier(model, names, templates, cache=cache_folder() / "zero_shot")
        summary = zero_shot_scores(classifier, source, settings, parallel, on_progress=progress)
        if len(names) > MOST_IN_REPORT:
            del summary["confusion"]
        notes = [f"zero-shot, {len(templates)} sentences for each of {len(names)} classes, such as {templates[0]!r}"]
        notes += [f"limited to {len(source):,} of {total:,} images"] if len(source) < total else []
        text, markdown = labelled_tables(summary, notes)
        return Findings(text, markdown, {"data": list(paths), **summary})

    def _report(self, findings: Findings) -> None:
        from unveil.engine.disk import needing_space, write_atomically, write_json

        print(findings.text, flush=True)
        if self.out is None:
            return
        circumstances = {
            "model": self.model,
            "weights": "of the last step" if self.weights == "raw" else "averaged, where the run kept them",
            "precision": self.precision,
            "frames": self.frames,
            "class_names": None if self.class_names is None else str(self.class_names),
            "templates": None if self.templates is None else str(self.templates),
            "limit": self.limit,
        }
        said = ", ".join(f"{name} {value}" for name, value in circumstances.items() if value is not None)
        with needing_space(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomically(self.out / "table.md", f"{findings.markdown}\n{said}\n")
        write_json(self.out / "report.json", circumstances | findings.content)
        print(f"written: {self.out / 'report.json'}, {self.out / 'table.md'}")
