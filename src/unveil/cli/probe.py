"""`unveil probe`: what the features of a frozen network are worth."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from unveil.cli.finetune import FinetuneClassification, LabelledData
from unveil.cli.options import (
    Number,
    RunOptions,
    Text,
    as_table,
    describe_images,
    describe_network,
    describe_run,
)
from unveil.cli.training import naming_what_to_make_smaller, status_of
from unveil.config import CenterCrop, ImageFiles, ProbeConfig, UnveilError
from unveil.config.override import recipe_named
from unveil.config.resolve import Machine, resolve
from unveil.recipes import PROBES
from unveil.recipes.small_data_classification import probe_small

if TYPE_CHECKING:
    from unveil.api import Model
    from unveil.build.probing import Columns
    from unveil.engine import Parallel

Method = Literal["linear", "lbfgs", "knn"]
QUICK: tuple[Method, ...] = ("lbfgs", "knn")

EXTREMES = 3
"""Classes named at either end, and mistakes."""


@dataclass(frozen=True, kw_only=True)
class Probe(RunOptions):
    """Measure what a frozen network's features are worth.

    Example: unveil probe flowers/ --model runs/mine
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")]
    """A folder with train/ and val/; or class folders, .tar shards, a .csv of path,label."""
    init_from: Annotated[str | None, tyro.conf.arg(name="model", metavar="RUN_OR_FILE", help_behavior_hint="")] = None
    """The network: a run, a file of weights, timm/NAME, or open_clip's MODEL/PRETRAINED."""
    recipe: Text = None
    """How the linear probe learns; see: unveil recipes. Left out: probe_small."""
    method: Annotated[tuple[Method, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """linear (the recipe's, by steps), lbfgs, knn. Left out: lbfgs knn; with --recipe linear."""
    pooling: Annotated[Literal["mean", "cls"] | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """mean (of the patch tokens) or cls (that token). Left out: the recipe's."""
    labels: Number = None
    """Learn from so many images only, evenly from all classes."""
    draws: Number = None
    """Draw those anew so often, and average."""
    validation: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Images to judge by. Left out: DATA/val, or else a fifth of DATA."""
    classes: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Names of the classes in order, one a line. Left out: from the data."""

    def run(self) -> int:
        from unveil.build import find_machine, probe
        from unveil.build.probing import check_probe, frozen_features
        from unveil.cli.terminal import counting, log_on_terminal
        from unveil.engine import ConsoleProgress, Parallel

        self.check()
        with Parallel.start() as parallel, log_on_terminal(parallel.rank):
            machine = find_machine(parallel)
            with counting("images", shown=parallel.is_main) as count:
                data = self.open(count)
            assert data.validation is not None
            model = self.load(parallel)
            config, out = self.configure(data, model, machine)
            check_probe(config, data.source, self.methods)
            frozen = frozen_features(config, model.backbone, model.classifier, parallel)
            if parallel.is_main:
                print(describe(config, data, machine, out, self.methods), flush=True)
            if self.dry_run:
                return 0
            with naming_what_to_make_smaller(config):
                outcome = probe(
                    config,
                    frozen,
                    data.source,
                    data.validation,
                    methods=self.methods,
                    out=out,
                    parallel=parallel,
                    watchers=(ConsoleProgress("linear probe"),),
                    on_features=progress_of_features(),
                )
            if parallel.is_main and outcome.stopped:
                print("stopped and saved; the same command goes on from there")
            elif parallel.is_main:
                print(results(outcome.report, out))
        return status_of(outcome)

    @property
    def methods(self) -> tuple[Method, ...]:
        return self.method or (QUICK if self.recipe is None else ("linear",))

    def open(self, on_progress: Callable[[int], None] | None = None) -> LabelledData:
        """Raises UnveilError as `unveil finetune classification` does."""
        if self.init_from is None:
            raise UnveilError("which network is to be probed? give --model RUN_OR_FILE")
        same = FinetuneClassification(data=self.data, validation=self.validation, classes=self.classes)
        return same.open(on_progress)

    def load(self, parallel: "Parallel") -> "Model | Columns":
        """Raises UnveilError where `unveil.load` does."""
        from unveil.api import load
        from unveil.build.probing import load_columns_to_probe
        from unveil.weights.load import UNTOLD

        assert self.init_from is not None
        if (columns := load_columns_to_probe(Path(self.init_from).expanduser())) is not None:
            return columns
        untold = [setting for setting in self.set if setting.partition("=")[0] in UNTOLD]
        return load(self.init_from, device=str(parallel.device), settings=untold)

    def configure(self, data: LabelledData, model: "Model | Columns", machine: Machine) -> tuple[ProbeConfig, Path]:
        """The recipe with this command's options, complete, and the folder of the probe.

        The network is that of the weights. A recipe that is named says what size images have.

        Raises:
            UnveilError: an option that does not fit.
        """
        network = model.backbone.config
        if self.recipe is None:
            config = replace(probe_small(), model=network, test_crop=model.crop.share)
        else:
            config = recipe_named(self.recipe, PROBES)()
            config = replace(config, model=replace(network, image_size=config.model.image_size))
        out = self.out or Path("runs") / config.recipe
        validation = ImageFiles(paths=data.validation_paths) if data.validation_paths else None
        source = ImageFiles(paths=data.paths)
        config = replace(
            config,
            classes=data.classes,
            data=replace(config.data, source=source, validation=validation, normalization=model.normalization),
            pooling=self.pooling or config.pooling,
            labels=self.labels,
            draws=1 if self.draws is None else self.draws,
        )
        config = self.change(config)
        if replace(config.model, image_size=network.image_size) != network:
            raise UnveilError("of the network only model.image_size can be set: its weights tell the rest")
        images = len(data.source) if config.labels is None else config.labels
        return resolve(config, images=images, machine=machine), out


def describe(
    config: ProbeConfig,
    data: LabelledData,
    machine: Machine,
    out: Path,
    methods: tuple[Method, ...],
) -> str:
    """What is about to happen, in the lines that a person wants to check before paying for it."""
    assert data.validation is not None
    count = len(data.source) if config.labels is None else config.labels
    names = ", ".join(config.classes[:5]) + (", ..." if len(config.classes) > 5 else "")
    held_out = (
        describe_images(data.validation)
        if data.validation_paths
        else f"{len(data.validation):,}, a fifth of the images held out"
    )
    draws = "" if config.draws == 1 else f", drawn {config.draws} times"
    few = [] if config.labels is None else [("labels", f"{config.labels:,}, evenly from all classes{draws}")]
    pooled = {"mean": "mean of the patches", "cls": "cls token"}[config.pooling]
    lines = [
        ("images", describe_images(data.source)),
        ("validation", held_out),
        ("classes", f"{len(config.classes):,}: {names}"),
        *few,
        ("network", describe_network(config.model, init_from=config.init_from)),
        ("features", f"{pooled}, {config.model.width} numbers an image"),
        ("methods", ", ".join(methods)),
    ]
    if "linear" in methods:
        cached = isinstance(config.data.crop, CenterCrop)
        mirrored = ", those of the mirror images too" if config.data.flip else ""
        views = f"computed once{mirrored}" if cached else "of random crops, computed anew at each step"
        lines += [("recipe", config.recipe), ("its features", views)]
        lines += [line for line in describe_run(config, count, machine, out) if line[0] not in ("arithmetic", "run")]
    return as_table([*lines, ("arithmetic", f"{config.engine.precision} on {machine.device}"), ("out", str(out))])


def progress_of_features() -> Callable[[str, int, int], None]:
    """To be called with what, done and total: a line of the log for each further tenth of each."""
    from unveil.cli.terminal import tenths

    lines: dict[str, Callable[[int, int], None]] = {}
    return lambda what, done, total: lines.setdefault(what, tenths(f"features of the {what}"))(done, total)


def results(report: dict[str, Any], out: Path) -> str:
    """The numbers of all methods; the easiest and hardest classes and the worst mistakes of the first."""
    rows = [("", "top-1", "top-5", "mean of classes", "calibration error")]
    for method, found in report["methods"].items():
        spread = f" ± {100 * found['deviation_of_top1']:.2f}" if "deviation_of_top1" in found else ""
        numbers = [_percent(found[name]) for name in ("top5", "mean_class_accuracy", "calibration_error")]
        rows.append((method, _percent(found["top1"]) + spread, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    first, found = next(iter(report["methods"].items()))
    ranked = sorted(
        (entry["accuracy"], name) for name, entry in found["per_class"].items() if entry["accuracy"] is not None
    )
    ends = {"hardest": ranked[:EXTREMES], "easiest": ranked[::-1][:EXTREMES]}
    lines += ["", f"of {first}:"]
    lines += [f"{end}: {', '.join(f'{name} {_percent(share)}' for share, name in some)}" for end, some in ends.items()]
    lines += [
        f"{_percent(mistake['share'])} of {mistake['class']} are taken for {mistake['answer']}"
        for mistake in found.get("most_confused", [])[:EXTREMES]
    ]
    unreadable = report["unreadable_validation_images"]
    lines += [f"warning: {unreadable:,} validation images could not be read and are left out"] if unreadable else []
    kept = report["head_in_model"]
    head = f"; {out}/model.safetensors (with the head of {kept}: unveil predict {out} FILES)" if kept else ""
    picture = f", {out}/confusion.png" if "most_confused" in found else ""
    return "\n".join([*lines, "", f"written: {out}/report.json{picture}{head}"])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
