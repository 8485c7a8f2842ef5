"""`unveil pretrain`: masked pre-training on a folder of images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unveil.config import ImageFiles, PretrainConfig, UnveilError
from unveil.config.override import override, recipe_named
from unveil.config.pretext import Masking, Target
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
        import torch

        from unveil.build import build_source, find_machine, pretrain
        from unveil.cli.terminal import counting, log_on_terminal, tenths
        from unveil.engine import ConsoleProgress, Parallel

        with Parallel.start() as parallel, log_on_terminal(parallel.rank):
            machine = find_machine(parallel)
            with counting("images", shown=parallel.is_main) as count:
                source = build_source(ImageFiles(paths=self.images), count)
            config = self.configure(images=len(source), machine=machine)
            out = self.out or Path("runs") / config.recipe
            description = describe(config, source, machine, out, chosen=self.recipe is None)
            if parallel.is_main:
                print(description, flush=True)
            if self.dry_run:
                return 0
            try:
                _, outcome = pretrain(
                    config,
                    source,
                    out=out,
                    parallel=parallel,
                    watchers=(ConsoleProgress("pre-training"),),
                    on_cache=tenths("the teacher's features of the images"),
                )
            except torch.OutOfMemoryError as error:
                raise UnveilError(no_memory(config)) from error
            if parallel.is_main and outcome.stopped:
                print(f"stopped and saved at step {outcome.step}; the same command goes on from there")
            elif parallel.is_main:
                loss = outcome.metrics.get("loss", float("nan"))
                print(f"done: {out}/checkpoints/step_{outcome.step:08d}, loss {loss:.4f}")
        return 143 if outcome.stopped else 0

    def configure(self, *, images: int, machine: Machine) -> PretrainConfig:
        """The recipe with this command's options, complete.

        Raises:
            UnveilError: an option that does not fit.
        """
        if self.steps is not None and self.epochs is not None:
            raise UnveilError("both --steps and --epochs are given; give one of them")
        for name in ("steps", "epochs", "global_batch_size", "checkpoint_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UnveilError(f"--{name.replace('_', '-')} is {value}; give more than 0")
        if self.workers is not None and self.workers < 0:
            raise UnveilError(f"--workers is {self.workers}; give 0 (this process reads the images) or more")
        if self.recipe is None:
            config = choose_pretraining(images, machine.device)
        else:
            config = recipe_named(self.recipe, PRETRAINING)()
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
    """What is about to happen, in the lines that a person wants to check before paying for it.

    Raises:
        UnveilError: masking that leaves no patch visible.
    """
    from unveil.build import count_parameters
    from unveil.engine import RunFolder
    from unveil.pretext.masking import masking_function

    optimization, engine, model = config.optimization, config.engine, config.model
    assert optimization.steps is not None
    count = len(source)
    reason = f" (chosen for {count:,} images on {machine.device}; another: unveil recipes)" if chosen else ""
    rows, columns = model.grid
    passes = optimization.steps * optimization.global_batch_size / count
    hidden = masking_function(config.masking).limit(model.grid)
    saved = RunFolder(out).checkpoints.steps()
    lines = [
        ("recipe", f"{config.recipe}{reason}"),
        ("images", _describe_images(source)),
        (
            "student",
            f"ViT {model.width} wide, {model.depth} deep, {count_parameters(model) / 1e6:,.1f} M parameters, "
            f"{model.image_size} px in {rows} x {columns} patches of {model.patch_size} px"
            + (f", weights from {config.init_from}" if config.init_from else ""),
        ),
        ("teacher", f"{_kind(config.target)} {getattr(config.target, 'name', '')}".strip()),
        ("masking", f"{_kind(config.masking)}, at most {hidden} of {rows * columns} patches hidden"),
        ("batch", batch_arithmetic(config, machine)),
        ("length", f"{optimization.steps:,} steps = {passes:,.2f} passes over the images"),
        (
            "rate",
            f"0 to {optimization.optimizer.learning_rate:g} in {optimization.warmup_steps:,} steps, then cosine to "
            f"{optimization.min_learning_rate:g} (absolute, not scaled by the batch)",
        ),
        ("arithmetic", f"{engine.precision} on {machine.device}, parameters in fp32"),
        ("run", f"{out}, going on after step {saved[-1]:,}" if saved else str(out)),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def no_memory(config: PretrainConfig) -> str:
    """The sentence for a GPU that is full."""
    micro = config.optimization.micro_batch_size
    assert micro is not None
    smaller = next(size for size in range(max(1, micro // 2), 0, -1) if micro % size == 0)
    way_out = (
        f"--set optimization.micro_batch_size={smaller} gives the same result"
        if micro > 1
        else "--set model.activation_checkpointing=true, or a smaller model"
    )
    return f"the GPU's memory does not hold {micro} images in one forward and backward pass; try {way_out}"


def _kind(config: Masking | Target) -> str:
    """BlockMasking -> "block", EmbeddedTarget -> "embedded"."""
    return type(config).__name__.removesuffix("Masking").removesuffix("Target").lower()


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
