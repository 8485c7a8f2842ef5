"""`unveil pretrain`: masked pre-training on a folder of images."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unveil.cli.options import (
    RunOptions,
    as_table,
    describe_images,
    describe_network,
    describe_recipe,
    describe_run,
)
from unveil.cli.training import Count, Training, run_training
from unveil.config import ImageFiles, MaskedObjective, MaskedTokenPrediction, PretrainConfig, UnveilError
from unveil.config.override import recipe_named
from unveil.config.pretext import Masking, Target
from unveil.config.resolve import Machine, resolve
from unveil.config.teacher import parse_teacher
from unveil.recipes import PRETRAINING, choose_pretraining

if TYPE_CHECKING:
    from unveil.data.sources.base import Source


@dataclass(frozen=True, kw_only=True)
class Pretrain(RunOptions):
    """Pre-train a ViT on images without labels; the same command goes on where it stopped.

    Example: unveil pretrain photos/ --out runs/mine
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES ...", help_behavior_hint="")]
    """Folders (searched to any depth), .tar shards, or images."""
    teacher: Annotated[str | None, tyro.conf.arg(metavar="NAME_OR_FILE", help_behavior_hint="")] = None
    """embedded, pixels, hog, ema, clip, an open_clip MODEL/PRETRAINED, a timm name, or a file."""

    def run(self) -> int:
        return run_training(self, self.prepare)

    def prepare(self, machine: Machine, on_progress: Count | None) -> Training:
        """Raises UnveilError for images that are not there, or options that do not fit."""
        from unveil.build import build_source, pretrain
        from unveil.cli.terminal import tenths

        source = build_source(ImageFiles(paths=self.images), on_progress)
        config = self.configure(images=len(source), machine=machine)
        out = self.out or Path("runs") / config.recipe
        on_cache = tenths("the teacher's features of the images")
        return Training(
            config=config,
            out=out,
            description=describe(config, source, machine, out, chosen=self.recipe is None),
            doing="pre-training",
            train=partial(pretrain, config, source, out=out, on_cache=on_cache),
            summary=lambda metrics: f"loss {metrics.get('loss', float('nan')):.4f}",
        )

    def configure(self, *, images: int, machine: Machine) -> PretrainConfig:
        """The recipe with this command's options, complete.

        Raises:
            UnveilError: an option that does not fit.
        """
        if self.recipe is None:
            config = choose_pretraining(images, machine.device)
        else:
            config = recipe_named(self.recipe, PRETRAINING)()
        config = replace(config, data=replace(config.data, source=ImageFiles(paths=self.images)))
        if self.teacher is not None:
            if isinstance(config.objective, MaskedTokenPrediction):
                raise UnveilError(
                    f"the recipe {config.recipe} predicts the codes of a tokeniser, which has learned from a teacher; "
                    "leave --teacher out, or give another tokeniser with --set objective.tokenizer=RUN"
                )
            config = replace(config, target=parse_teacher(self.teacher))
        return resolve(self.change(config), images=images, machine=machine)


def describe(config: PretrainConfig, source: "Source", machine: Machine, out: Path, *, chosen: bool) -> str:
    """What is about to happen, in the lines that a person wants to check before paying for it.

    Raises:
        UnveilError: masking that leaves no patch visible.
    """
    from unveil.pretext.masking import masking_function

    rows, columns = config.model.grid
    masking = "none, the student sees whole images"
    if isinstance(config.objective, MaskedObjective):
        hidden = masking_function(config.masking).limit(config.model.grid)
        masking = f"{_kind(config.masking)}, at most {hidden} of {rows * columns} patches hidden"
    lines = [
        describe_recipe(config, len(source), machine, chosen=chosen),
        ("images", describe_images(source)),
        ("student", describe_network(config.model, init_from=config.init_from)),
        _describe_teacher(config),
        ("masking", masking),
        *describe_run(config, len(source), machine, out),
    ]
    return as_table(lines)


def _describe_teacher(config: PretrainConfig) -> tuple[str, str]:
    match config.objective:
        case MaskedTokenPrediction(tokenizer=tokenizer):
            return "tokeniser", tokenizer
        case _:
            return "teacher", f"{_kind(config.target)} {getattr(config.target, 'name', '')}".strip()


def _kind(config: Masking | Target) -> str:
    """BlockMasking -> "block", EmbeddedTarget -> "embedded"."""
    return type(config).__name__.removesuffix("Masking").removesuffix("Target").lower()
