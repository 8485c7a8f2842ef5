"""`unveil pretrain`: masked pre-training on a folder of images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unveil.config import ImageFiles, PretrainConfig, UnveilError
from unveil.config.override import override, recipe_named
from unveil.config.resolve import Machine, batch_arithmetic, resolve
from unveil.config.teacher import parse_teacher
from unveil.recipes import PRETRAINING, choose_pretraining

if TYPE_CHECKING:
    from unveil.data.sources.base import Source

Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Text = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]


@dataclass(frozen=True)
class Pretrain:
    """Pre-train a ViT on images without labels; the same command goes on where it stopped.

    Example: unveil pretrain photos/ --out runs/mine
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES ...", help_behavior_hint="")]
    """Folders (searched to any depth), .tar shards, or images."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """Folder of the run. Left out: runs/ and the recipe's name."""
    recipe: Text = None
    """See: unveil recipes. Left out: chosen from the images and the hardware."""
    teacher: Annotated[str | None, tyro.conf.arg(metavar="NAME_OR_FILE", help_behavior_hint="")] = None
    """embedded, pixels, clip, an open_clip MODEL/PRETRAINED, a timm name, or a file."""
    steps: Number = None
    """Length in optimizer steps."""
    epochs: Annotated[float | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Length in passes over the images."""
    global_batch_size: Number = None
    """Images per step, over all devices and micro-batches."""
    seed: Number = None
    """Of everything random."""
    workers: Number = None
    """Processes that read images."""
    checkpoint_every: Number = None
    """Steps between checkpoints."""
    log_every: Number = None
    """Steps between lines of RUN/metrics.jsonl."""
    init_from: Annotated[str | None, tyro.conf.arg(metavar="RUN_OR_FILE", help_behavior_hint="")] = None
    """Start from the weights of a run or a file."""
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """Any other setting, as often as needed: --set model.depth=6"""
    dry_run: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print what would happen, and stop."""

    def run(self) -> int:
        from unveil.build import build_source, find_machine, pretrain
        from unveil.engine import Parallel

        with Parallel.start() as parallel:
            machine = find_machine(parallel)
            source = build_source(ImageFiles(paths=self.images))
            config = self.configure(images=len(source), machine=machine)
            out = self.out or Path("runs") / config.recipe
            if parallel.is_main:
                print(describe(config, source, machine, out, chosen=self.recipe is None), flush=True)
            if self.dry_run:
                return 0
            _, outcome = pretrain(config, source, out=out, parallel=parallel)
            if outcome.stopped:
                if parallel.is_main:
                    print(f"stopped and saved at step {outcome.step}; the same command goes on from there")
                return 143
            if parallel.is_main:
                print(
                    f"done: {out}/checkpoints/step_{outcome.step:08d}, loss {outcome.metrics.get('loss', float('nan')):.4f}"
                )
        return 0

    def configure(self, *, images: int, machine: Machine) -> PretrainConfig:
        """The recipe with this command's options, complete.

        Raises:
            UnveilError: an option that does not fit.
        """
        if self.recipe is None:
            config = choose_pretraining(images, machine.device)
        else:
            config = recipe_named(self.recipe, PRETRAINING)()
        if self.steps is not None and self.epochs is not None:
            raise UnveilError("both --steps and --epochs are given; give one of them")
        optimization, engine, data = config.optimization, config.engine, config.data
        if self.steps is not None:
            optimization = replace(optimization, steps=self.steps, epochs=None)
        if self.epochs is not None:
            optimization = replace(optimization, epochs=self.epochs, steps=None)
        if self.global_batch_size is not None:
            optimization = replace(optimization, global_batch_size=self.global_batch_size)
        for name in ("seed", "checkpoint_every", "log_every"):
            if getattr(self, name) is not None:
                engine = replace(engine, **{name: getattr(self, name)})
        data = replace(data, source=ImageFiles(paths=self.images))
        if self.workers is not None:
            data = replace(data, workers=self.workers)
        config = replace(config, optimization=optimization, engine=engine, data=data, init_from=self.init_from)
        if self.teacher is not None:
            config = replace(config, target=parse_teacher(self.teacher))
        return resolve(override(config, self.set), images=images, machine=machine)


def describe(config: PretrainConfig, source: "Source", machine: Machine, out: Path, *, chosen: bool) -> str:
    """What is about to happen, in the lines that a person wants to check before paying for it."""
    optimization, engine, model = config.optimization, config.engine, config.model
    assert optimization.steps is not None
    count = len(source)
    reason = f" (chosen for {count:,} images on {machine.device})" if chosen else ""
    rows, columns = model.grid
    passes = optimization.steps * optimization.global_batch_size / count
    lines = [
        ("recipe", f"{config.recipe}{reason}"),
        ("images", _describe_images(source)),
        (
            "student",
            f"ViT {model.width} wide, {model.depth} deep, {model.image_size} px in {rows} x {columns} patches of "
            f"{model.patch_size} px",
        ),
        (
            "teacher",
            f"{type(config.target).__name__.removesuffix('Target').lower()} {getattr(config.target, 'name', '')}".strip(),
        ),
        (
            "masking",
            f"{type(config.masking).__name__.removesuffix('Masking').lower()}, {config.masking.ratio:.0%} of the patches",
        ),
        ("batch", batch_arithmetic(config, machine)),
        ("length", f"{optimization.steps:,} steps = {passes:,.2f} passes over the images"),
        (
            "rate",
            f"0 to {optimization.optimizer.learning_rate:g} in {optimization.warmup_steps:,} steps, then cosine to "
            f"{optimization.min_learning_rate:g} (absolute, not scaled by the batch)",
        ),
        ("arithmetic", f"{engine.precision} on {machine.device}, parameters in fp32"),
        ("run", str(out)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _describe_images(source: "Source") -> str:
    """Count, three samples, mean size of those that can be read."""
    from unveil.data.sources.base import UnreadableSample

    count = len(source)
    places = sorted({place * count // 16 for place in range(16)})
    names, sizes = [], []
    for place in places:
        try:
            sample = source[place]
        except UnreadableSample:
            continue
        names.append(sample.name)
        sizes.append(sample.image.size)
    if not sizes:
        return f"{count:,}; none of {len(places)} tried could be read"
    width, height = (sum(side) / len(sizes) for side in zip(*sizes, strict=True))
    return f"{count:,}, about {width:.0f} x {height:.0f} px, such as {', '.join(names[:3])}"
