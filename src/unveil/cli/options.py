"""What the commands that train have in common: options, and the lines that say what is about to happen."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unveil.config import BackboneConfig, ContrastiveConfig, RevColV2Config, UnveilError
from unveil.config.override import override
from unveil.config.resolve import Machine, Run, batch_arithmetic
from unveil.config.revcolv2 import in_words

if TYPE_CHECKING:
    from unveil.data.sources.base import Source

Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Text = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run, to be inherited."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """Folder of the run. Left out: runs/ and the recipe's name."""
    recipe: Text = None
    """See: unveil recipes. Left out: chosen from the images and the hardware."""
    init_from: Annotated[str | None, tyro.conf.arg(metavar="RUN_OR_FILE", help_behavior_hint="")] = None
    """Start from the weights of a run or a file."""
    steps: Number = None
    """Length in optimizer steps."""
    epochs: Annotated[float | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """Length in passes over the images."""
    global_batch_size: Number = None
    """Images per step, over all devices and micro-batches."""
    seed: Number = None
    """Of everything random."""
    parallel: Annotated[
        Literal["ddp", "zero1", "fsdp"] | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")
    ] = None
    """What torchrun's processes divide: the images (ddp), and the optimizer (zero1), and the weights (fsdp)."""
    workers: Number = None
    """Processes that read images."""
    checkpoint_every: Number = None
    """Steps between checkpoints."""
    log_every: Number = None
    """Steps between lines of RUN/metrics.jsonl."""
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """Any other setting, as often as needed: --set model.depth=6"""
    dry_run: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print what would happen, and stop."""

    def check(self) -> None:
        """Raises UnveilError for numbers that cannot be."""
        if self.steps is not None and self.epochs is not None:
            raise UnveilError("both --steps and --epochs are given; give one of them")
        for name in ("steps", "epochs", "global_batch_size", "checkpoint_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UnveilError(f"--{name.replace('_', '-')} is {value}; give more than 0")
        if self.workers is not None and self.workers < 0:
            raise UnveilError(f"--workers is {self.workers}; give 0 (this process reads the images) or more")

    def change(self, config: Run) -> Run:
        """A recipe with these options; of an option and --set the latter counts.

        Raises:
            UnveilError: a setting that does not fit.
        """
        given = {
            "optimization.steps": self.steps,
            "optimization.epochs": self.epochs,
            "optimization.global_batch_size": self.global_batch_size,
            "engine.seed": self.seed,
            "engine.parallel": self.parallel,
            "engine.checkpoint_every": self.checkpoint_every,
            "engine.log_every": self.log_every,
            "data.workers": self.workers,
        }
        assignments: list[str] = [f"{name}={value}" for name, value in given.items() if value is not None]
        return override(replace(config, init_from=self.init_from), [*assignments, *self.set])


def as_table(lines: list[tuple[str, str]]) -> str:
    """Names in one column, what is said of them in the next."""
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def describe_recipe(config: Run, count: int, machine: Machine, *, chosen: bool) -> tuple[str, str]:
    reason = f" (chosen for {count:,} images on {machine.device}; another: unveil recipes)" if chosen else ""
    return "recipe", f"{config.recipe}{reason}"


def describe_network(model: BackboneConfig, *, init_from: str | None) -> str:
    from unveil.build import count_parameters

    rows, columns = model.grid
    pieces = "units" if isinstance(model, RevColV2Config) else "patches"
    size = f"{count_parameters(model) / 1e6:,.1f} M parameters, {model.image_size} px"
    start = f", weights from {init_from}" if init_from else ""
    return f"{in_words(model)}, {size} in {rows} x {columns} {pieces} of {model.mask_unit} px{start}"


def describe_run(config: Run, count: int, machine: Machine, out: Path) -> list[tuple[str, str]]:
    """Batch arithmetic, length, learning rate and folder of a resolved configuration."""
    from unveil.engine import RunFolder

    optimization = config.optimization
    assert optimization.steps is not None
    passes = optimization.steps * optimization.global_batch_size / count
    saved = RunFolder(out).checkpoints.steps()
    shared = f"; {config.engine.parallel} among {machine.world_size} processes" if machine.world_size > 1 else ""
    return [
        ("batch", batch_arithmetic(config, machine)),
        ("length", f"{optimization.steps:,} steps = {passes:,.2f} passes over the images"),
        (
            "rate",
            f"0 to {optimization.optimizer.learning_rate:g} in {optimization.warmup_steps:,} steps, then cosine to "
            f"{optimization.min_learning_rate:g} (absolute, not scaled by the batch)",
        ),
        ("arithmetic", f"{config.engine.precision} on {machine.device}, parameters in fp32{shared}"),
        ("run", f"{out}, going on after step {saved[-1]:,}" if saved else str(out)),
    ]


def describe_images(source: "Source") -> str:
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


def no_memory(config: Run) -> str:
    """The sentence for a GPU that is full."""
    micro = config.optimization.micro_batch_size
    assert micro is not None
    smaller = next(size for size in range(max(1, micro // 2), 0, -1) if micro % size == 0)
    if micro > 1:
        way_out = f"--set optimization.micro_batch_size={smaller} gives the same result"
    elif isinstance(config.model, RevColV2Config):
        way_out = "a smaller model"
    else:
        network = "model.vision" if isinstance(config, ContrastiveConfig) else "model"
        way_out = f"--set {network}.activation_checkpointing=true, or a smaller model"
    return f"the GPU's memory does not hold {micro} images in one forward and backward pass; try {way_out}"
