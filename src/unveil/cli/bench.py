"""`unveil bench`: what a recipe's training step costs on this machine."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unveil.cli.options import Number, as_table, no_memory
from unveil.config import ClassificationConfig, PretrainConfig, UnveilError
from unveil.config.override import override, recipe_named
from unveil.config.resolve import AnyRun, Machine, batch_arithmetic, resolve
from unveil.planning.datasets import classes_of
from unveil.planning.hardware import GIB
from unveil.recipes import CLASSIFICATION, CONTRASTIVE, PRETRAINING, PROBES

Trained = PretrainConfig | ClassificationConfig

if TYPE_CHECKING:
    from unveil.data.sources.base import Source
    from unveil.planning.bench import Measured

STEPS_ON_CPU, STEPS_ON_GPU = 3, 20


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Images a second, MFU, peak memory of a recipe's training step on this machine, and where its time goes.

    Teachers that would have to be fetched get random weights of the same sizes. Under torchrun it measures all
    processes together.

    Example: unveil bench small_cpu --set optimization.global_batch_size=32 --vs timm
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE", help_behavior_hint="")]
    """Of pre-training or classification. See: unveil recipes."""
    images: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH ...", help_behavior_hint="")] = ()
    """Your own images. Left out: JPEGs of a photo's size, made here."""
    steps: Number = None
    """To measure. Left out: 20 on a GPU, 3 on a processor."""
    warm_up: Annotated[int, tyro.conf.arg(metavar="N")] = 2
    """Steps before, which are not counted."""
    global_batch_size: Number = None
    """Images per step. Left out: the recipe's, and not more than two micro-batches a process."""
    vs: Annotated[Literal["timm"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Measure the same step on timm's blocks beside it."""
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """Any other setting, as often as needed: --set optimization.micro_batch_size=32"""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write everything there, too."""

    def run(self) -> int:
        config = self.recipe_with_settings()

        import torch

        from unveil.build import find_machine
        from unveil.cli.terminal import log_on_terminal
        from unveil.engine import Parallel
        from unveil.planning.bench import bench

        with Parallel.start() as parallel, log_on_terminal(parallel.rank):
            machine = find_machine(parallel)
            resolved = self.resolved(config, machine)
            steps = self.steps or (STEPS_ON_GPU if machine.device == "cuda" else STEPS_ON_CPU)
            if parallel.is_main:
                print(as_table(_describe(resolved, machine, steps)), flush=True)
            measured: list[Measured] = []
            try:
                for on_timm in (False, True)[: 1 if self.vs is None else 2]:
                    source = self.source(resolved, (self.warm_up + 3 * steps) * resolved.optimization.global_batch_size)
                    measured.append(
                        bench(resolved, source, parallel=parallel, steps=steps, warm_up=self.warm_up, on_timm=on_timm)
                    )
            except torch.OutOfMemoryError as error:
                raise UnveilError(no_memory(resolved)) from error
            if parallel.is_main:
                print(as_table(table(measured)))
                if self.json is not None:
                    self.json.parent.mkdir(parents=True, exist_ok=True)
                    figures = [one.as_json() for one in measured]
                    self.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        return 0

    def recipe_with_settings(self) -> Trained:
        """Raises UnveilError for a recipe that there is not, or that trains no images alone, and for bad numbers."""
        for name, least in (("steps", 1), ("warm_up", 0), ("global_batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UnveilError(f"--{name.replace('_', '-')} is {value}; give at least {least}")
        recipes: tuple[Callable[[], AnyRun], ...] = (*PRETRAINING, *CLASSIFICATION, *PROBES, *CONTRASTIVE)
        config = override(recipe_named(self.recipe, recipes)(), self.set)
        if isinstance(config, PretrainConfig):
            # Targets that are computed ahead cost nothing in a step, and random crops of examples refuse them.
            return replace(config, cache_targets=False)
        if isinstance(config, ClassificationConfig):
            classes = config.classes or tuple(f"class {number}" for number in range(classes_of(config.recipe)))
            return replace(config, classes=classes)
        raise UnveilError(f"{self.recipe} is no recipe of pre-training or classification, which bench measures")

    def resolved(self, config: Trained, machine: Machine) -> Trained:
        """With a batch that a person can wait for: two micro-batches of each process, where the recipe's is larger."""
        complete = resolve(self._with_batch(config, self.global_batch_size), images=10**6, machine=machine)
        micro = complete.optimization.micro_batch_size
        assert micro is not None
        enough = 2 * micro * machine.world_size
        if self.global_batch_size is not None or complete.optimization.global_batch_size <= enough:
            return complete
        return self._with_batch(complete, enough)

    def source(self, config: Trained, samples: int) -> "Source":
        """Raises UnveilError where a path holds no images."""
        from unveil.config import ImageFiles
        from unveil.planning.example_images import ExampleImages

        if not self.images:
            return ExampleImages(samples, max(1, len(getattr(config, "classes", ()))))
        if isinstance(config, ClassificationConfig):
            raise UnveilError("--images is for recipes of pre-training; leave it out, and examples are made here")
        from unveil.build import build_source

        return build_source(ImageFiles(paths=self.images))

    @staticmethod
    def _with_batch(config: Trained, batch: int | None) -> Trained:
        if batch is None:
            return config
        return replace(config, optimization=replace(config.optimization, global_batch_size=batch))


def _describe(config: Trained, machine: Machine, steps: int) -> list[tuple[str, str]]:
    return [
        ("recipe", f"{config.recipe}, {steps} steps on {machine.device} in {config.engine.precision}"),
        ("batch", batch_arithmetic(config, machine)),
    ]


def table(measured: "list[Measured]") -> list[tuple[str, str]]:
    """A column for each contender."""
    first = measured[0]
    rows = [
        ("", [one.name for one in measured]),
        ("images/s", [f"{one.images_per_second:,.2f}" for one in measured]),
        ("step", [f"{one.step_seconds:,.4f} s" for one in measured]),
        ("arithmetic", [f"{one.flops_per_image / 1e9:,.2f} GFLOP an image" for one in measured]),
        ("model", [f"{one.model_rate / 1e12:,.3f} TFLOP/s" for one in measured]),
        ("matrices", [f"{one.matrix_rate / 1e12:,.3f} TFLOP/s" for one in measured]),
        ("MFU", [f"{one.mfu:.1%}" for one in measured]),
        ("peak memory", [f"{one.peak_bytes / GIB:,.2f} GiB" for one in measured]),
        *((f"  {phase}", [f"{one.seconds[phase]:,.4f} s" for one in measured]) for phase in first.seconds),
    ]
    if len(measured) > 1:
        rows.append(
            ("against timm", [f"{one.images_per_second / measured[-1].images_per_second:.2f} x" for one in measured])
        )
    width = max(len(text) for _, texts in rows for text in texts)
    return [(name, "  ".join(f"{text:>{width}}" for text in texts)) for name, texts in rows]
