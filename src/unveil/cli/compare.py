"""`unveil compare`: several pre-trainings on the same images, each probed and fine-tuned."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unveil.cli.finetune import FinetuneClassification, LabelledData
from unveil.cli.options import Number, as_table, describe_images
from unveil.cli.training import status_of
from unveil.config import ImageFiles, MaskedTokenPrediction, PretrainConfig, UnveilError
from unveil.config.comparison import ComparisonConfig
from unveil.config.override import override, recipe_named
from unveil.config.teacher import parse_teacher
from unveil.recipes import CLASSIFICATION, PRETRAINING
from unveil.recipes.small_data_classification import probe_small

SIDES = ("pretrain", "tokenizer", "finetune", "scratch", "probe")
"""What --set NAME=VALUE begins with, or with the name of a recipe."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Pre-train with several recipes on the same images; probe and fine-tune each; write one table and picture.

    The same command goes on where it stopped, and does no finished part again: recipes, lengths and seeds may be added.

    Example: unveil compare small_cpu distillation_small_cpu --data flowers/ --epochs 25 100
    """

    recipes: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE ...", help_behavior_hint="")
    ]
    """Of pre-training; see: unveil recipes."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")] = ()
    """A folder with train/ and val/; or class folders, .tar shards, a .csv of path,label."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/compare")
    """Folder for comparison.md, .json and .png, and all runs."""
    epochs: Annotated[tuple[float, ...], tyro.conf.arg(metavar="N ...")] = (25.0, 100.0)
    """Lengths of pre-training in passes over the images."""
    labels: Number = None
    """Fine-tune with so many labels, evenly from all classes. Left out: all."""
    probe_labels: Number = None
    """Probe with so many labels. Left out: all."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Repetitions of everything."""
    draws: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Fine-tunings of each network, with labels drawn anew."""
    finetune: Annotated[str, tyro.conf.arg(metavar="RECIPE")] = "finetune_small"
    """How each is fine-tuned; from scratch the same without layer decay."""
    teacher: Annotated[str | None, tyro.conf.arg(metavar="NAME_OR_FILE", help_behavior_hint="")] = None
    """Of all recipes, as in unveil pretrain. Left out: each recipe's own."""
    without: Annotated[
        tuple[Literal["scratch", "teacher"], ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")
    ] = ()
    """Rows to be left out: scratch, teacher."""
    validation: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Images to judge by. Left out: DATA/val, or else a fifth of DATA."""
    classes: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Names of the classes in order, one a line. Left out: from the data."""
    workers: Number = None
    """Processes that read images."""
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """Any other setting: of pretrain (all recipes), of one recipe (small_cpu.masking.ratio=0.5), of tokenizer,
    finetune, scratch or probe."""
    dry_run: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print what would happen, and stop."""

    def run(self) -> int:
        from unveil.build.comparison import Comparison
        from unveil.build.comparison_report import DOCUMENT, PICTURE, as_markdown
        from unveil.cli.terminal import counting, log_on_terminal
        from unveil.engine import ConsoleProgress, Parallel

        self.check()
        with Parallel.start() as parallel, log_on_terminal(parallel.rank):
            with counting("images", shown=parallel.is_main) as count:
                data = self.open(count)
            assert data.validation is not None
            config = self.configure(data)
            if parallel.is_main:
                print(describe(config, data, self.out), flush=True)
            if self.dry_run:
                return 0

            def say(part: str) -> None:
                if parallel.is_main:
                    print(part, flush=True)

            compared = Comparison(
                config=config,
                source=data.source,
                validation=data.validation,
                out=self.out,
                parallel=parallel,
                watch=lambda name: (ConsoleProgress(name),),
                on_part=say,
            ).run()
            if parallel.is_main and compared.stopped:
                print("stopped and saved; the same command goes on from there")
            elif parallel.is_main:
                print(as_markdown(config, compared.rows), end="")
                print(f"written: {self.out / DOCUMENT}, {self.out / PICTURE}")
        return status_of(compared)

    def check(self) -> None:
        """Before any image is looked for.

        Raises:
            UnveilError: a recipe or a setting without a name, or of a name that is not known; no images.
        """
        if not self.recipes:
            raise UnveilError("which recipes are to be compared? unveil recipes lists them")
        for name in self.recipes:
            recipe_named(name, PRETRAINING)
        recipe_named(self.finetune, CLASSIFICATION)
        self._settings()
        if not self.data:
            raise UnveilError("which images are the recipes to be compared on? give --data DATA, with labels")

    def open(self, on_progress: Callable[[int], None] | None = None) -> LabelledData:
        """Raises UnveilError as `unveil finetune classification` does."""
        same = FinetuneClassification(data=self.data, validation=self.validation, classes=self.classes)
        return same.open(on_progress)

    def configure(self, data: LabelledData) -> ComparisonConfig:
        """The recipes with this command's options.

        Raises:
            UnveilError: an option that does not fit.
        """
        settings = self._settings()
        pretrain = tuple(self._pretraining(name, data, settings) for name in self.recipes)
        finetune = recipe_named(self.finetune, CLASSIFICATION)()
        scratch = replace(finetune, optimization=replace(finetune.optimization, layer_decay=None))
        probe = replace(probe_small(), labels=self.probe_labels, draws=1)
        return ComparisonConfig(
            pretrain=pretrain,
            tokenizer=self._tokenizer(pretrain, data, settings),
            epochs=self.epochs,
            probe=override(replace(probe, classes=data.classes), settings["probe"]),
            finetune=override(replace(finetune, classes=data.classes), settings["finetune"]),
            scratch=override(replace(scratch, classes=data.classes), [*settings["finetune"], *settings["scratch"]]),
            labels=self.labels,
            draws=self.draws,
            seeds=self.seeds,
            scratch_row="scratch" not in self.without,
            teacher_row="teacher" not in self.without,
        )

    def _settings(self) -> dict[str, list[str]]:
        """NAME=VALUE of each side, in the order in which they count.

        Raises:
            UnveilError: one that is of none of them.
        """
        workers = [] if self.workers is None else [f"data.workers={self.workers}"]
        sides = (*SIDES, *self.recipes)
        found = {side: [] if side in self.recipes else list(workers) for side in sides}
        for text in self.set:
            side, dot, rest = text.partition(".")
            if side not in found or not dot:
                raise UnveilError(f"--set {text}: begin the name with {', '.join(sides[:-1])} or {sides[-1]} and a dot")
            found[side].append(rest)
        return found

    def _pretraining(self, recipe: str, data: LabelledData, settings: dict[str, list[str]]) -> PretrainConfig:
        config = recipe_named(recipe, PRETRAINING)()
        config = replace(config, data=replace(config.data, source=ImageFiles(paths=data.paths)))
        if self.teacher is not None:
            config = replace(config, target=parse_teacher(self.teacher))
        return override(config, [*settings["pretrain"], *settings.get(recipe, [])])

    def _tokenizer(
        self, pretrain: tuple[PretrainConfig, ...], data: LabelledData, settings: dict[str, list[str]]
    ) -> PretrainConfig | None:
        """The recipe of the tokeniser that recipes name by a run that is not there: "runs/vqkd_small_cpu".

        Raises:
            UnveilError: two recipes want two tokenisers.
        """
        wanted = {
            Path(config.objective.tokenizer).name
            for config in pretrain
            if isinstance(config.objective, MaskedTokenPrediction)
            and not Path(config.objective.tokenizer).expanduser().exists()
        }
        if not wanted:
            return None
        if len(wanted) > 1:
            raise UnveilError(
                f"the recipes need {len(wanted)} tokenisers ({', '.join(sorted(wanted))}); compare them "
                "one after the other, or train these first"
            )
        tokenizer = self._pretraining(wanted.pop(), data, settings)
        return override(tokenizer, settings["tokenizer"])


def describe(config: ComparisonConfig, data: LabelledData, out: Path) -> str:
    """What is about to happen, in the lines that a person wants to check before paying for it."""
    assert data.validation is not None
    images, recipes, lengths = len(data.source), len(config.pretrain), len(config.epochs)
    trained = [config.recipe for config in config.pretrain]
    seen = sum(config.epochs) * images * recipes * config.seeds
    draws = "" if config.draws == 1 else f", drawn {config.draws} times"
    seeds = "" if config.seeds == 1 else f", {config.seeds} of each"
    held_out = (
        describe_images(data.validation)
        if data.validation_paths
        else f"{len(data.validation):,}, a fifth of the images held out"
    )
    rows = [name for name, wanted in (("scratch", config.scratch_row), ("teacher", config.teacher_row)) if wanted]
    lines = [
        ("recipes", ", ".join([*rows, *trained])),
        ("images", describe_images(data.source)),
        ("validation", held_out),
        ("lengths", f"{', '.join(f'{epochs:g}' for epochs in config.epochs)} epochs"),
        *([] if config.tokenizer is None else [("tokeniser", f"{config.tokenizer.recipe}, trained first")]),
        ("probe", f"L-BFGS on the mean of the patches, {_labels(config.probe.labels)}"),
        ("fine-tuning", f"{config.finetune.recipe}, {_labels(config.labels)}{draws}"),
        ("in all", f"{recipes * lengths * config.seeds} pre-trainings{seeds}, {seen:,.0f} images seen"),
        ("out", str(out)),
    ]
    return as_table(lines)


def _labels(count: int | None) -> str:
    return "all labels" if count is None else f"{count:,} labels"
