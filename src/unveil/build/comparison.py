"""Comparing pretext tasks: pre-train with several recipes on the same images, then probe and fine-tune each."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unveil.build.classification import finetune
from unveil.build.common import find_machine
from unveil.build.comparison_parts import Parts
from unveil.build.comparison_report import Row, write_comparison
from unveil.build.comparison_teacher import (
    TeacherEncoder,
    TeacherProbe,
    TeacherTarget,
    TeacherViT,
    teacher_label,
    teacher_network,
)
from unveil.build.pretraining import pretrain
from unveil.build.probing import frozen_features, labels_of, probe
from unveil.build.starting_weights import fill_network
from unveil.config import (
    BackboneConfig,
    ClassificationConfig,
    MaskedTokenPrediction,
    PretrainConfig,
    UnveilError,
    ViTConfig,
)
from unveil.config.comparison import ComparisonConfig
from unveil.config.resolve import resolve
from unveil.config.revcolv2 import require_vit
from unveil.config.serialize import to_json
from unveil.data.sources.base import Source as ImageSource
from unveil.data.sources.subset import SubsetSource
from unveil.engine import Outcome, Parallel, Sink
from unveil.models.backbone import Backbone, probed_backbone
from unveil.tasks.classification.frozen_features import few_labels

BETWEEN_DRAWS = 1000
"""Of the numbers that draws of one seed have: more of either may be wanted later."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How a comparison ended."""

    rows: list[Row]
    """As in comparison.json; those that are finished."""
    stopped: bool
    """A signal ended it; the same command goes on."""
    by_keyboard: bool = False
    """That signal was Ctrl-C."""


class _Stopped(Exception):
    """A signal came in the middle of a part."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__()
        self.outcome = outcome


@dataclass(kw_only=True)
class Comparison:
    """What is compared, on what, and where it goes."""

    config: ComparisonConfig
    source: ImageSource
    validation: ImageSource
    out: Path
    parallel: Parallel
    watch: Callable[[str], tuple[Sink, ...]] = lambda name: ()
    """Sinks beside a run's own, for whoever looks on."""
    on_part: Callable[[str], None] = lambda name: None
    """Told each part that begins."""
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parts = Parts(
            folder=self.out,
            data={"images": self.source.digest(), "validation": self.validation.digest()},
            parallel=self.parallel,
            on_part=self.on_part,
        )
        labels = labels_of(self.source)
        self._known = np.flatnonzero(labels >= 0)
        self._labels = labels[self._known].tolist()
        if self.config.labels is not None and self.config.labels > len(self._labels):
            raise UnveilError(f"--labels {self.config.labels:,}: there are only {len(self._labels):,} labelled images")

    def run(self) -> Compared:
        """Everything that is not finished yet, row by row, the table and picture after each of them.

        Pre-training sees the training images without their labels, and never the validation images.

        Raises:
            UnveilError: a part in the folder has other settings, or whatever stops one of them.
        """
        try:
            for row in self._all_rows():
                self.rows.append(row)
                self.parallel.on_main(lambda: write_comparison(self.config, self.rows, self.out))
        except _Stopped as signalled:
            return Compared(rows=self.rows, stopped=True, by_keyboard=signalled.outcome.by_keyboard)
        return Compared(rows=self.rows, stopped=False)

    def _all_rows(self) -> Iterator[Row]:
        if self.config.scratch_row:
            models = {replace(config.model, drop_path=0.0): config for config in reversed(self.config.pretrain)}
            for first in reversed(models.values()):
                yield self._scratch(first, "scratch" if len(models) == 1 else f"scratch, network of {first.recipe}")
        if self.config.teacher_row:
            for target in {teacher_label(target): target for target in reversed(_teachers(self.config))}.values():
                yield self._teacher(target)
        for epochs in sorted(self.config.epochs):
            for config in self.config.pretrain:
                yield self._pretrained(config, epochs)

    def _pretrained(self, config: PretrainConfig, epochs: float) -> Row:
        row = Row(name=config.recipe, epochs=epochs)
        for seed in range(self.config.seeds):
            folder = self.out / config.recipe / f"epochs_{epochs:g}" / f"seed_{seed}"
            resolved = self._resolved(self._with_tokenizer(config, seed), seed, epochs)
            ended = self._parts.result(folder / "pretrain", resolved, lambda f=folder, c=resolved: self._pretrain(c, f))
            row.images_seen = ended["images_seen"]
            row.seconds += ended["seconds"]
            row.losses.append(ended["loss"])
            run = folder / "pretrain"
            row.probe.append(self._probe(resolved, folder, seed, run=run))
            row.finetune += self._finetune(
                self.config.finetune, resolved, folder, seed, init_from=run, learned=resolved
            )
        return row

    def _scratch(self, config: PretrainConfig, name: str) -> Row:
        row = Row(name=name, epochs=None)
        for seed in range(self.config.seeds):
            folder = self.out / name.replace(", ", "_").replace(" ", "_") / f"seed_{seed}"
            seeded = replace(config, engine=replace(config.engine, seed=config.engine.seed + seed))
            row.probe.append(self._probe(seeded, folder, seed, run=None))
            row.finetune += self._finetune(self.config.scratch, seeded, folder, seed, init_from=None)
        return row

    def _teacher(self, target: TeacherTarget) -> Row:
        """Probed, with all labels once: no seed changes that. And fine-tuned itself, for each seed."""
        row = Row(name=f"teacher {teacher_label(target)}", epochs=None)
        folder = self.out / f"teacher_{teacher_label(target).replace('/', '_')}"
        model = require_vit(self.config.pretrain[0].model, "probing a teacher")
        probed = TeacherProbe(
            target, model, self.config.probe, self.source, self.validation, device=self.parallel.device
        )
        image_size = 0
        for seed in range(1 if self.config.probe.labels is None else self.config.seeds):
            ended = self._parts.result(
                folder / f"seed_{seed}" / "probe",
                self.config.probe,
                lambda s=seed: self.parallel.on_main(lambda: probed.result(s)),
                beside={"target": to_json(target), "grid": list(model.grid)},
            )
            row.probe.append(ended["top1"])
            image_size = ended["image_size"]
        network = self.parallel.on_main(lambda: teacher_network(probed, image_size, folder))
        if network is None:
            row.note = "its network cannot be fine-tuned, as the log says; its features are probed"
            return row
        for seed in range(self.config.seeds):
            row.finetune += self._finetune_teacher(network, folder / f"seed_{seed}", seed)
        return row

    def _finetune_teacher(self, network: TeacherViT | TeacherEncoder, folder: Path, seed: int) -> list[float]:
        like = self.config.pretrain[0]
        if isinstance(network, TeacherEncoder):
            wanted = network.wanted(self.config.finetune, self.parallel)
            return self._finetune(wanted, like, folder, seed, init_from=None, encoder=network)
        data = replace(like.data, normalization=network.normalization)
        like = replace(like, model=network.model, data=data)
        return self._finetune(self.config.finetune, like, folder, seed, init_from=network.file)

    def _with_tokenizer(self, config: PretrainConfig, seed: int) -> PretrainConfig:
        """The recipe with the run of its tokeniser, which is trained now where it is not there."""
        tokenizer = self.config.tokenizer
        if not isinstance(config.objective, MaskedTokenPrediction) or tokenizer is None:
            return config
        folder = self.out / f"tokenizer_{tokenizer.recipe}" / f"seed_{seed}"
        resolved = self._resolved(tokenizer, seed, None)
        self._parts.result(folder / "pretrain", resolved, lambda: self._pretrain(resolved, folder))
        return replace(config, objective=replace(config.objective, tokenizer=str(folder / "pretrain")))

    def _resolved(self, config: PretrainConfig, seed: int, epochs: float | None) -> PretrainConfig:
        """With `epochs` passes over the images, of which the warm-up keeps its share."""
        optimization = config.optimization
        config = replace(config, engine=replace(config.engine, seed=config.engine.seed + seed, keep_last=1))
        if epochs is not None:
            share = _warmup_share(config, len(self.source))
            optimization = replace(
                optimization, steps=None, epochs=epochs, warmup_steps=None, warmup_epochs=share * epochs
            )
        config = replace(config, optimization=optimization)
        return resolve(config, images=len(self.source), machine=find_machine(self.parallel))

    def _pretrain(self, config: PretrainConfig, folder: Path) -> dict[str, Any]:
        began = time.monotonic()
        _, outcome = pretrain(
            config,
            self.source,
            out=folder / "pretrain",
            parallel=self.parallel,
            watchers=self.watch("pre-training"),
        )
        _check_stopped(outcome)
        return {
            "images_seen": outcome.step * config.optimization.global_batch_size,
            "loss": outcome.metrics.get("loss"),
            "seconds": round(time.monotonic() - began, 1),
        }

    def _probe(self, config: PretrainConfig, folder: Path, seed: int, *, run: Path | None) -> float:
        """Top-1 of L-BFGS on the mean of the patches; without a run, of those of the untrained network."""
        wanted = self.config.probe
        wanted = replace(
            wanted,
            model=replace(config.model, drop_path=0.0),
            data=replace(wanted.data, normalization=config.data.normalization),
            engine=replace(wanted.engine, seed=wanted.engine.seed + seed),
        )
        images = len(self.source) if wanted.labels is None else wanted.labels
        resolved = resolve(wanted, images=images, machine=find_machine(self.parallel))

        def work() -> dict[str, Any]:
            frozen = frozen_features(resolved, _backbone(config, run), None, self.parallel)
            probed = probe(resolved, frozen, self.source, self.validation, methods=("lbfgs",), parallel=self.parallel)
            return {"top1": probed.report["methods"]["lbfgs"]["top1"]}

        return self._parts.result(folder / "probe", resolved, work, learned=None if run is None else config)["top1"]

    def _finetune(
        self,
        wanted: ClassificationConfig,
        config: PretrainConfig,
        folder: Path,
        seed: int,
        *,
        init_from: Path | None,
        learned: PretrainConfig | None = None,
        encoder: TeacherEncoder | None = None,
    ) -> list[float]:
        """Accuracy of each draw: of the averaged weights, where they are averaged.

        Args:
            encoder: in place of the network of `config`.
        """
        accuracies = []
        for draw in range(self.config.draws):
            number = seed + BETWEEN_DRAWS * draw
            images = self.source
            if self.config.labels is not None:
                few = few_labels(self._labels, self.config.labels, number)
                images = SubsetSource(self.source, self._known[few].tolist())
            model: BackboneConfig = replace(config.model, drop_path=wanted.model.drop_path)
            if isinstance(model, ViTConfig) and isinstance(wanted.model, ViTConfig):
                model = replace(model, activation_checkpointing=wanted.model.activation_checkpointing)
            settings = replace(
                wanted,
                model=model,
                data=replace(wanted.data, normalization=config.data.normalization),
                engine=replace(wanted.engine, seed=wanted.engine.seed + number, evaluate_every=None),
                init_from=None if init_from is None else str(init_from),
            )
            resolved = resolve(settings, images=len(images), machine=find_machine(self.parallel))
            ended = self._parts.result(
                folder / f"finetune_{draw}",
                resolved,
                lambda c=resolved, i=images: self._finetune_once(c, i, encoder),
                beside=None if encoder is None else encoder.described,
                learned=learned,
            )
            accuracies.append(ended["accuracy"])
        return accuracies

    def _finetune_once(
        self, config: ClassificationConfig, images: ImageSource, encoder: TeacherEncoder | None
    ) -> dict[str, Any]:
        """Without a folder: a part that was cut short begins anew."""
        _, outcome = finetune(
            config,
            images,
            parallel=self.parallel,
            watchers=self.watch("fine-tuning"),
            validation=self.validation,
            backbone=None if encoder is None else encoder.backbone(config.data.normalization),
        )
        _check_stopped(outcome)
        found = outcome.metrics
        return {"accuracy": found.get("validation_ema_accuracy", found["validation_accuracy"])}


def _teachers(config: ComparisonConfig) -> list[TeacherTarget]:
    """Of those recipes that have one, the tokeniser's included."""
    recipes = [*config.pretrain, *([] if config.tokenizer is None else [config.tokenizer])]
    targets = [one.target for one in recipes if not isinstance(one.objective, MaskedTokenPrediction)]
    return [target for target in targets if isinstance(target, TeacherTarget)]


def _backbone(config: PretrainConfig, run: Path | None) -> Backbone:
    """Of a run; without one, as it begins."""
    torch.manual_seed(config.engine.seed)
    backbone = probed_backbone(config.model)
    if run is not None:
        fill_network(backbone, run)
    return backbone


def _warmup_share(config: PretrainConfig, images: int) -> float:
    """Of the recipe's own length."""
    optimization = config.optimization
    a_step = optimization.global_batch_size / images
    length = optimization.epochs if optimization.steps is None else optimization.steps * a_step
    warmup = optimization.warmup_epochs or (optimization.warmup_steps or 0) * a_step
    return warmup / length if length else 0.0


def _check_stopped(outcome: Outcome) -> None:
    if outcome.stopped:
        raise _Stopped(outcome)
