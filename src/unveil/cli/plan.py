"""`unveil plan`: what a run will take, before the GPUs are rented."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unveil.cli.options import Number, as_table
from unveil.config import UnveilError
from unveil.config.override import override, recipe_named
from unveil.config.resolve import AnyRun
from unveil.planning.hardware import GIB, GPUS, gpu_named
from unveil.planning.memory import Layout, Memory, Parallel
from unveil.planning.plan import Arrangement, plan
from unveil.planning.plan import Plan as Planned
from unveil.planning.published import compared
from unveil.recipes import CLASSIFICATION, CONTRASTIVE, PRETRAINING, PROBES


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Memory, images a second and days of a recipe on GPUs that are not there yet, and the cheapest setting that fits.

    Example: unveil plan eva_giant --gpus 128 --gpu a100-40gb --parallel zero1
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE", help_behavior_hint="")]
    """See: unveil recipes."""
    gpus: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """How many."""
    gpu: Annotated[str, tyro.conf.arg(metavar="NAME", help=f"Which kind: {', '.join(GPUS)}.")] = "a100-40gb"
    parallel: Annotated[Parallel | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Left out: the recipe's own (--set engine.parallel), or else the cheapest that fits."""
    layout: Layout = "ours"
    """Ours: parameters and optimizer in fp32. As published: fp16 under ZeRO-1, attention written out."""
    mfu: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.4
    """Of the GPU's peak rate, at which the model's arithmetic is done."""
    images: Number = None
    """In your data set. Left out: the recipe's own."""
    classes: Number = None
    """Of a classifier. Left out: the recipe's own."""
    global_batch_size: Number = None
    """Images per step, over all GPUs and micro-batches."""
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """Any other setting, as often as needed: --set optimization.micro_batch_size=32"""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write everything there, too."""

    def run(self) -> int:
        for name in ("gpus", "images", "classes", "global_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UnveilError(f"--{name.replace('_', '-')} is {value}; give at least 1")
        if not 0.0 < self.mfu <= 1.0:
            raise UnveilError(f"--mfu {self.mfu:g} is a share of the GPU's peak rate; give more than 0 and at most 1")
        recipes: tuple[Callable[[], AnyRun], ...] = (*PRETRAINING, *CLASSIFICATION, *PROBES, *CONTRASTIVE)
        config = recipe_named(self.recipe, recipes)()
        batch = [] if self.global_batch_size is None else [f"optimization.global_batch_size={self.global_batch_size}"]
        kind = [] if self.parallel is None else [f"engine.parallel={self.parallel}"]
        planned = plan(
            override(config, [*batch, *kind, *self.set]),
            gpus=self.gpus,
            gpu=gpu_named(self.gpu),
            parallel=self.parallel,
            layout=self.layout,
            mfu=self.mfu,
            images=self.images,
            classes=self.classes,
        )
        print(as_table(describe(planned)))
        if self.json is not None:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            self.json.write_text(json.dumps(planned.as_json(), indent=2) + "\n", encoding="utf-8")
        return 0


def describe(planned: Planned) -> list[tuple[str, str]]:
    """The lines of the answer."""
    chosen, network, teacher = planned.chosen, planned.network, planned.teacher
    learned = "" if network.learned == network.parameters else f", {network.learned / 1e6:,.1f} M of them learn"
    room = "fits" if chosen.fits else "does not fit"
    gpu_days = planned.days * chosen.setting.gpus
    lines = [
        ("recipe", f"{planned.recipe}, {chosen.setting.layout.replace('-', ' ')}: {_arrangement(chosen)}"),
        (
            "student",
            f"{network.parameters / 1e6:,.1f} M parameters{learned}; "
            f"{_flops(network.forward)} forward, {_flops(network.backward)} backward an image",
        ),
    ]
    if teacher is not None:
        lines.append(
            (
                "teacher",
                f"{teacher.name}: {teacher.parameters / 1e6:,.1f} M parameters, {_flops(teacher.flops)} an image",
            )
        )
    lines += [
        ("batch", _batch(planned)),
        ("memory", f"{_gib(chosen.memory.total)} on each {planned.gpu.name} of {planned.gpu.memory_gib:g} GiB: {room}"),
        *_parts(chosen.memory),
        *_by_reversible(planned),
        (
            "speed",
            f"{planned.images_per_second:,.0f} images/s at an MFU of {planned.mfu:.0%} of "
            f"{planned.gpu.tera_flops:,.0f} TFLOP/s",
        ),
        ("length", f"{planned.steps:,} steps, {_time(planned.days)}, {gpu_days:,.1f} GPU-days"),
        ("cheapest", _cheapest(planned)),
    ]
    published = compared(planned)
    return lines if published is None else [*lines, ("paper", published)]


def _parts(memory: Memory) -> list[tuple[str, str]]:
    return [(f"  {name}", _gib(size)) for name, size in vars(memory).items() if size]


def _batch(planned: Planned) -> str:
    setting = planned.chosen.setting
    gpus = "GPU" if setting.gpus == 1 else "GPUs"
    return (
        f"global {planned.global_batch_size} = {setting.gpus} {gpus} x {setting.micro_batch} x "
        f"{setting.accumulation} accumulation"
    )


def _by_reversible(planned: Planned) -> list[tuple[str, str]]:
    """What a RevColV2's other ways to keep its columns would take."""
    found = [f"{mode} {_gib(size)}" for mode, size in planned.by_reversible.items()]
    return [("reversible", f"{', '.join(found)} (chain computes in fp32)")] if found else []


def _arrangement(found: Arrangement) -> str:
    setting = found.setting
    parallel: str = "one process" if setting.gpus == 1 else setting.parallel
    if setting.parallel == "fsdp" and setting.shard_group < setting.gpus:
        parallel += f" in groups of {setting.shard_group}"
    match found.checkpointing:
        case False:
            kept = "without activation checkpointing"
        case True | 1:
            kept = "with activation checkpointing"
        case "selective":
            kept = "with selective activation checkpointing"
        case every:
            kept = f"with activation checkpointing of one block in {every}"
    if found.reversible is not None:
        kept = f"reversible={found.reversible}"
    return f"{parallel}, micro-batches of {setting.micro_batch}, {kept}"


def _cheapest(planned: Planned) -> str:
    found = planned.cheapest
    if found is None:
        return "nothing fits; take more GPUs (under fsdp they share the weights), or GPUs with more memory"
    return f"{_arrangement(found)}: {_gib(found.memory.total)}"


def _flops(count: int) -> str:
    return f"{count / 1e12:,.3f} TFLOP" if count >= 1e11 else f"{count / 1e9:,.2f} GFLOP"


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f} GiB"


def _time(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else f"{days * 24:,.1f} hours"
