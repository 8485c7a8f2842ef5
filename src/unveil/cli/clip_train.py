"""`unveil clip train`: contrastive training on images with captions."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

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
from unveil.config import ContrastiveConfig, ImageFiles, TowerOptimization, UnveilError
from unveil.config.override import recipe_named
from unveil.config.resolve import Machine, resolve
from unveil.recipes import CONTRASTIVE, choose_contrastive

if TYPE_CHECKING:
    from unveil.data.sources.base import Source
    from unveil.data.sources.captions import CaptionedSource
    from unveil.tasks.contrastive.caption_report import CaptionReport

HELD_OUT_AT_MOST = 5000
"""Pairs: as many as COCO's retrieval benchmark has images."""

TOO_MANY_TO_DIVIDE = 2_000_000
"""Pairs from which on none are held out: those of the web come as shards, of which a person gives some."""

Init = Annotated[str | None, tyro.conf.arg(metavar="RUN_OR_FILE", help_behavior_hint="")]


class Pairs(NamedTuple):
    """What the command was given, opened."""

    whole: "CaptionedSource"
    """Before any part was held out."""
    source: "Source"
    validation: "Source | None"
    paths: tuple[str, ...]
    validation_paths: tuple[str, ...]
    """Empty where a part of `paths` is held out, or nothing is."""


@dataclass(frozen=True, kw_only=True)
class ClipTrain(RunOptions):
    """Train a CLIP on images with captions; the same command goes on where it stopped.

    Example: unveil clip train pairs/ --vision-init runs/mine
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")]
    """.tar shards, a .csv, .tsv or .jsonl of path,caption, COCO's captions, or a folder of such."""
    vision_init: Init = None
    """Start the image tower from a pre-training run, or from weights."""
    text_init: Init = None
    """Start the text tower from that of a CLIP."""
    validation: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Pairs to validate on. Left out: DATA's own, or else a part of DATA."""
    no_validation: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Train on everything."""

    def run(self) -> int:
        return run_training(self, self.prepare)

    def prepare(self, machine: Machine, on_progress: Count | None) -> Training:
        """Raises UnveilError as `open` and `configure` do."""
        from unveil.build import train_clip
        from unveil.tasks.contrastive.caption_report import report_captions
        from unveil.tasks.contrastive.tokens import Tokenizer

        pairs = self.open(on_progress)
        config, out = self.configure(pairs, machine)
        tokenizer = Tokenizer(config.model.text.context_length)
        captions = report_captions(pairs.whole, tokenizer, config.optimization.global_batch_size)
        return Training(
            config=config,
            out=out,
            description=describe(config, pairs, captions, machine, out, chosen=self.recipe is None),
            doing="training",
            train=partial(train_clip, config, pairs.source, out=out, validation=pairs.validation, captions=captions),
            summary=summary,
        )

    def open(self, on_progress: Count | None = None) -> Pairs:
        """Training and validation pairs.

        Raises:
            UnveilError: nothing there, or nothing that has captions.
        """
        from unveil.data.sources.captions import find_captioned_splits, open_captioned
        from unveil.data.sources.labelled import hold_out

        if self.validation is not None and self.no_validation:
            raise UnveilError("both --validation and --no-validation are given; give one of them")
        paths = self.data
        beside: tuple[str, ...] = ()
        if len(paths) == 1:
            paths, beside = find_captioned_splits(paths[0])
        if self.no_validation:
            beside = ()
        elif self.validation is not None:
            beside = (self.validation,)
        whole = open_captioned(paths, on_progress=on_progress)
        if beside:
            return Pairs(whole, whole, open_captioned(beside, on_progress=on_progress), paths, beside)
        if self.no_validation or len(whole) > TOO_MANY_TO_DIVIDE:
            return Pairs(whole, whole, None, paths, ())
        return Pairs(whole, *hold_out(whole, most=HELD_OUT_AT_MOST), paths, ())

    def configure(self, pairs: Pairs, machine: Machine) -> tuple[ContrastiveConfig, Path]:
        """The recipe with this command's options, complete, and the folder of the run.

        Raises:
            UnveilError: an option that does not fit, or weights that cannot be read.
        """
        from unveil.build import fit_clip

        if self.recipe is None:
            config = choose_contrastive(machine.device)
        else:
            config = recipe_named(self.recipe, CONTRASTIVE)()
        out = self.out or Path("runs") / config.recipe
        config = replace(
            config,
            data=replace(
                config.data,
                source=ImageFiles(paths=pairs.paths),
                validation=ImageFiles(paths=pairs.validation_paths) if pairs.validation_paths else None,
            ),
            vision_init=self.vision_init,
            text_init=self.text_init,
            init_from=self.init_from,
        )
        if self.recipe is None:
            config = fit_clip(config, run=out, settings=self.set)
        return resolve(self.change(config), images=len(pairs.source), machine=machine), out


def describe(
    config: ContrastiveConfig, pairs: Pairs, captions: "CaptionReport", machine: Machine, out: Path, *, chosen: bool
) -> str:
    """What is about to happen, in the lines that a person wants to check before paying for it."""
    text, count = config.model.text, len(pairs.source)
    whole = "" if config.init_from is None else f", weights from {config.init_from}"
    if pairs.validation is None:
        held_out = "none"
    elif pairs.validation_paths:
        held_out = describe_images(pairs.validation)
    else:
        held_out = f"{len(pairs.validation):,} pairs held out"
    lines = [
        describe_recipe(config, count, machine, chosen=chosen),
        ("images", describe_images(pairs.source)),
        *captions.lines(),
        ("validation", held_out),
        ("image tower", describe_network(config.model.vision, init_from=config.vision_init) + whole),
        (
            "text tower",
            f"transformer {text.width} wide, {text.depth} deep, texts of {text.context_length} tokens"
            + (f", weights from {config.text_init}" if config.text_init else whole),
        ),
        ("space", f"{config.model.embedding_width} dimensions"),
        *describe_run(config, count, machine, out),
        *_tower("images'", config.visual),
        *_tower("texts'", config.text),
    ]
    if config.patch_dropout:
        lines.append(("patches", f"{config.patch_dropout:.0%} of them dropped in training"))
    return as_table(lines)


def summary(metrics: dict[str, float]) -> str:
    """Loss and recall of the held-out pairs where there are any, the training loss elsewhere."""
    if "validation_loss" not in metrics:
        return f"loss {metrics.get('loss', float('nan')):.4f}"
    to_text, to_image = (metrics[f"validation_{way}_r1"] for way in ("image_to_text", "text_to_image"))
    return (
        f"validation loss {metrics['validation_loss']:.4f}, recall at 1 {to_text:.2%} from image to text, "
        f"{to_image:.2%} from text to image"
    )


def _tower(name: str, given: TowerOptimization) -> list[tuple[str, str]]:
    """How a tower is optimised where that differs from the rest."""
    if given.locked == "all":
        return [(name, "locked")]
    parts = [f"locked up to layer {given.locked}"] if given.locked else []
    parts += [] if given.learning_rate is None else [f"rate up to {given.learning_rate:g}"]
    parts += [] if given.weight_decay is None else [f"weight decay {given.weight_decay:g}"]
    parts += [] if given.layer_decay is None else [f"layer decay {given.layer_decay:g}"]
    return [(name, ", ".join(parts))] if parts else []
