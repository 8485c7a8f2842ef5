"""`unveil finetune`: a network for a task, from labelled images."""

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
from unveil.config import (
    AugmentationConfig,
    BackboneConfig,
    ClassificationConfig,
    ImageFiles,
    RandomResizedCrop,
    RevColV2Config,
    UnveilError,
    ViTConfig,
)
from unveil.config.override import recipe_named
from unveil.config.resolve import Machine, resolve
from unveil.recipes import CLASSIFICATION, choose_classification

if TYPE_CHECKING:
    from unveil.data.sources.base import Source

SIZES = {
    ViTConfig: ("width", "depth", "heads", "mlp_width", "activation", "norm_before_blocks"),
    RevColV2Config: (
        *("patch_size", "widths", "layers", "kinds", "bottom_up_columns", "top_down_columns"),
        *("kernel_size", "mlp_ratio", "head_width"),
    ),
}
"""Of a network, which weights cannot be fitted to."""


class LabelledData(NamedTuple):
    """What the command was given, opened."""

    source: "Source"
    validation: "Source | None"
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    validation_paths: tuple[str, ...]
    """Empty where a part of `paths` is held out, or nothing is."""


@dataclass(frozen=True, kw_only=True)
class FinetuneClassification(RunOptions):
    """Fine-tune a classifier on labelled images; the same command goes on where it stopped.

    Example: unveil finetune classification flowers/ --init-from runs/mine
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA ...", help_behavior_hint="")]
    """A folder with train/ and val/; or class folders, .tar shards, a .csv of path,label."""
    validation: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Images to validate on. Left out: DATA/val, or else a fifth of DATA."""
    no_validation: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Train on everything."""
    classes: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Names of the classes in order, one a line. Left out: from the data."""

    def run(self) -> int:
        return run_training(self, self.prepare)

    def prepare(self, machine: Machine, on_progress: Count | None) -> Training:
        """Raises UnveilError as `open` and `configure` do."""
        from unveil.build import finetune

        data = self.open(on_progress)
        config, out = self.configure(data, machine)
        return Training(
            config=config,
            out=out,
            description=describe(config, data, machine, out, chosen=self.recipe is None),
            doing="fine-tuning",
            train=partial(finetune, config, data.source, out=out, validation=data.validation),
            summary=summary,
        )

    def open(self, on_progress: Count | None = None) -> LabelledData:
        """Training and validation images.

        Raises:
            UnveilError: nothing there, or images without a label or of a class that is not known.
        """
        from unveil.data.sources.labelled import find_splits, hold_out, open_labelled, read_classes

        if self.validation is not None and self.no_validation:
            raise UnveilError("both --validation and --no-validation are given; give one of them")
        paths, beside = self.data, None
        if len(paths) == 1:
            train, beside = find_splits(paths[0])
            paths = (train,)
        held_out = self.validation or beside
        validation_paths = () if self.no_validation or held_out is None else (held_out,)
        named = None if self.classes is None else read_classes(self.classes)
        source, classes = open_labelled(paths, classes=named, on_progress=on_progress)
        validation = None
        if validation_paths:
            validation, _ = open_labelled(validation_paths, classes=classes, on_progress=on_progress)
        elif not self.no_validation:
            source, validation = hold_out(source)
        return LabelledData(source, validation, classes, paths, validation_paths)

    def configure(self, data: LabelledData, machine: Machine) -> tuple[ClassificationConfig, Path]:
        """The recipe with this command's options, complete, and the folder of the run.

        Raises:
            UnveilError: an option that does not fit, or a recipe for another network than --init-from holds.
        """
        from unveil.build import network_in

        images = len(data.source)
        if self.recipe is None:
            config = choose_classification(images, machine.device)
        else:
            config = recipe_named(self.recipe, CLASSIFICATION)()
        out = self.out or Path("runs") / config.recipe
        validation = ImageFiles(paths=data.validation_paths) if data.validation_paths else None
        config = replace(
            config,
            classes=data.classes,
            data=replace(config.data, source=ImageFiles(paths=data.paths), validation=validation),
        )
        if self.init_from is None:
            return resolve(self.change(config), images=images, machine=machine), out
        # A run that goes on knows its network, and needs what it began with no more.
        known = out if (out / "config.json").is_file() else Path(self.init_from).expanduser()
        if self.recipe is None:
            model, normalization = network_in(known, self.set)
            ours = config.model
            if isinstance(model, ViTConfig) and isinstance(ours, ViTConfig):
                model = replace(model, activation_checkpointing=ours.activation_checkpointing)
            config = replace(
                config,
                model=replace(model, drop_path=ours.drop_path),
                data=replace(config.data, normalization=normalization or config.data.normalization),
            )
            config = self.change(config)
        else:
            config = self.change(config)
            if (known / "config.json").is_file():
                self._compare(network_in(known)[0], config.model)
        return resolve(config, images=images, machine=machine), out

    def _compare(self, theirs: BackboneConfig, ours: BackboneConfig) -> None:
        """Raises UnveilError where the recipe's network cannot take the weights."""
        if type(theirs) is not type(ours):
            kinds = [type(model).__name__.removesuffix("Config") for model in (theirs, ours)]
            raise UnveilError(
                f"the network in {self.init_from} is a {kinds[0]}, and that of --recipe {self.recipe} a {kinds[1]}; "
                "leave --recipe out to take the network from the weights, or choose a recipe of the same kind"
            )
        differing = [name for name in SIZES[type(ours)] if getattr(theirs, name) != getattr(ours, name)]
        if differing:
            there, here = (
                ", ".join(f"{name} {getattr(model, name)}" for name in differing) for model in (theirs, ours)
            )
            raise UnveilError(
                f"the network in {self.init_from} has {there}, and that of --recipe {self.recipe} {here}; leave "
                "--recipe out to take the sizes from the weights, or choose a recipe of the same sizes"
            )


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a network for a task.

    Example: unveil finetune classification flowers/ --init-from runs/mine
    """

    task: (
        Annotated[FinetuneClassification, tyro.conf.subcommand(name="classification")]
        | Annotated[None, tyro.conf.Suppress]  # tyro makes subcommands of unions only, which have two members.
    )
    """What the network is to do."""

    def run(self) -> int:
        assert self.task is not None
        return self.task.run()


def describe(config: ClassificationConfig, data: LabelledData, machine: Machine, out: Path, *, chosen: bool) -> str:
    """What is about to happen, in the lines that a person wants to check before paying for it."""
    count, optimization = len(data.source), config.optimization
    if data.validation is None:
        held_out = "none"
    elif data.validation_paths:
        held_out = describe_images(data.validation)
    else:
        held_out = f"{len(data.validation):,}, a fifth of the images held out"
    names = ", ".join(config.classes[:5]) + (", ..." if len(config.classes) > 5 else "")
    origin = {"new": "new", "keep": "kept from the weights", "remap": "rows picked from the weights by class name"}
    pooled = {"mean": "mean of the patches", "cls": "cls token"}[config.pooling]
    decay = "" if optimization.layer_decay is None else f", layer decay {optimization.layer_decay:g}"
    average = [] if config.ema_decay is None else [("average", f"of the weights, decay {config.ema_decay:g}")]
    lines = [
        describe_recipe(config, count, machine, chosen=chosen),
        ("images", describe_images(data.source)),
        ("validation", held_out),
        ("classes", f"{len(config.classes):,}: {names}"),
        ("network", describe_network(config.model, init_from=config.init_from)),
        ("head", f"{pooled}, {origin[config.head_from]}"),
        ("images are", _augmentation(config)),
        *average,
        *[(name, text + decay if name == "rate" else text) for name, text in describe_run(config, count, machine, out)],
    ]
    return as_table(lines)


def summary(metrics: dict[str, float]) -> str:
    """Accuracies where there was a validation, the training loss elsewhere."""
    if "validation_accuracy" not in metrics:
        return f"loss {metrics.get('loss', float('nan')):.4f}"
    text = f"validation accuracy {metrics['validation_accuracy']:.2%}"
    if "validation_ema_accuracy" in metrics:
        text += f", of the averaged weights {metrics['validation_ema_accuracy']:.2%}"
    return text


def _augmentation(config: ClassificationConfig) -> str:
    """What is done to training images, in the order in which it is done."""
    given: AugmentationConfig = config.augmentation
    steps = ["cropped at random" if isinstance(config.data.crop, RandomResizedCrop) else "cropped in the middle"]
    steps += ["mirrored"] if config.data.flip else []
    steps += [f"changed by {given.rand_augment}"] if given.rand_augment else []
    steps += [f"erased in part with probability {given.random_erasing:g}"] if given.random_erasing else []
    mixes = [f"{name} {alpha:g}" for name, alpha in (("Mixup", given.mixup), ("CutMix", given.cutmix)) if alpha]
    steps += [f"mixed by {' or '.join(mixes)}"] if mixes else []
    return ", ".join(steps)
