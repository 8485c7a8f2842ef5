"""`unveil probe`: what the features of a frozen network are worth."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unveil.cli.finetune import FinetuneClassification, LabelledData
from unveil.cli.options import Number, RunOptions, Text
from unveil.cli.probe_text import describe, level_results, results
from unveil.cli.training import naming_what_to_make_smaller, status_of
from unveil.config import ImageFiles, ProbeConfig, UnveilError
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

POOLED = {"mean": "mean of the patches", "cls": "cls token"}


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
    levels: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Of a RevColV2 (reconstruction): what each level holds of classes, and what of pixels."""
    validation: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Images to judge by. Left out: DATA/val, or else a fifth of DATA."""
    classes: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Names of the classes in order, one a line. Left out: from the data."""

    def run(self) -> int:
        from unveil.build import find_machine
        from unveil.cli.terminal import counting, log_on_terminal
        from unveil.engine import Parallel

        self.check()
        with Parallel.start() as parallel, log_on_terminal(parallel.rank):
            machine = find_machine(parallel)
            with counting("images", shown=parallel.is_main) as count:
                data = self.open(count)
            model = self.load(parallel)
            config, out = self.configure(data, model, machine)
            measure = self.measure_levels if self.levels else self.measure
            return measure(data, model, config, out, machine, parallel)

    def measure(
        self,
        data: LabelledData,
        model: "Model | Columns",
        config: ProbeConfig,
        out: Path,
        machine: Machine,
        parallel: "Parallel",
    ) -> int:
        """What is read of the network; the exit status."""
        from unveil.build import probe
        from unveil.build.probing import check_probe, frozen_features
        from unveil.engine import ConsoleProgress

        assert data.validation is not None
        check_probe(config, data.source, self.methods)
        frozen = frozen_features(config, model.backbone, model.classifier, parallel)
        if parallel.is_main:
            read = f"{POOLED[config.pooling]}, {config.model.width} numbers an image"
            print(describe(config, data, machine, out, self.methods, read), flush=True)
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

    def measure_levels(
        self,
        data: LabelledData,
        model: "Model | Columns",
        config: ProbeConfig,
        out: Path,
        machine: Machine,
        parallel: "Parallel",
    ) -> int:
        """Each level of a RevColV2; the exit status."""
        from unveil.build.level_probing import check_levels, level_features, probe_levels

        assert data.validation is not None
        check_levels(config, data.source, self.methods)
        frozen = level_features(config, model.backbone, parallel)
        if parallel.is_main:
            read = f"each level of the last column of each half, {len(frozen.levels)} in all: the mean of its cells"
            print(describe(config, data, machine, out, self.methods, read), flush=True)
        if self.dry_run:
            return 0
        with naming_what_to_make_smaller(config):
            report = probe_levels(
                config,
                frozen,
                data.source,
                data.validation,
                methods=self.methods,
                out=out,
                parallel=parallel,
                on_features=progress_of_features(),
            )
        if parallel.is_main:
            print(level_results(report, out))
        return 0

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
        out = self.out or Path("runs") / (f"{config.recipe}_levels" if self.levels else config.recipe)
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


def progress_of_features() -> Callable[[str, int, int], None]:
    """To be called with what, done and total: a line of the log for each further tenth of each."""
    from unveil.cli.terminal import tenths

    lines: dict[str, Callable[[int, int], None]] = {}
    return lambda what, done, total: lines.setdefault(what, tenths(f"features of the {what}"))(done, total)
