"""A linear probe, L-BFGS and nearest neighbours on the features of a frozen network, each judged in the same way."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unveil.build.common import build_training_loader
from unveil.build.runs import train_run
from unveil.config import CenterCrop, ProbeConfig
from unveil.data.loader import TrainingLoader
from unveil.data.sources.base import Source as ImageSource
from unveil.data.sources.subset import SubsetSource
from unveil.engine import Outcome, Parallel, Precision, Sink, evaluate
from unveil.tasks.classification.feature_table import (
    FeatureTable,
    FrozenFeatures,
    TableSource,
    TableView,
    collate_table,
)
from unveil.tasks.classification.frozen_features import fit_logistic, knn_logits
from unveil.tasks.classification.linear_probe import FeatureSteps, Head, LinearProbe, feature_batches
from unveil.tasks.classification.metrics import accumulate
from unveil.tasks.classification.view import LabelledView, collate_labelled

logger = logging.getLogger(__name__)

Method = Literal["linear", "lbfgs", "knn"]

ROWS = 1024
"""Of features that are classified at a time."""


@dataclass(frozen=True)
class Measured:
    """What one method found from one draw of the labels."""

    state: dict[str, Tensor]
    """Sums over the validation images: see `Scores`."""
    head: Head | None = None
    """Linear layer on the features as they are; kNN has none."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything that the methods share."""

    config: ProbeConfig
    frozen: FrozenFeatures
    images: ImageSource
    """To learn from."""
    tables: dict[float, FeatureTable]
    """Their middles' features, by share of the short side: those that the methods need."""
    features: Float[Tensor, "n d"]
    """Of the validation images; fp32, on the processor."""
    labels: Int64[Tensor, "n"]
    """Of the validation images."""
    parallel: Parallel
    watchers: tuple[Sink, ...]
    out: Path | None
    """Folder of the probe."""
    parts: dict[str, Any]
    """What it is probed on: digests of the images."""

    def measure(self, method: Method, rows: Int64[Tensor, "n"], draw: int) -> Measured | Outcome:
        """Learn from `rows` of the images; where a signal ended it, its outcome. Every process must call it."""
        match method:
            case "linear":
                return self._linear(rows, draw)
            case "lbfgs":
                return self.parallel.on_main(lambda: self._lbfgs(rows))
            case "knn":
                return self.parallel.on_main(lambda: self._knn(rows))

    def _judge(self, logits: Iterable[Float[Tensor, "b c"]]) -> dict[str, Tensor]:
        """Sums over all validation images, whose logits come some at a time, in order; on this process alone."""
        state: dict[str, Tensor] = {}
        start = 0
        for some in logits:
            labels = self.labels[start : start + len(some)]
            start += len(some)
            sums = accumulate(some.cpu(), labels, torch.ones(len(labels), dtype=torch.bool))
            state = {name: state[name] + value for name, value in sums.items()} if state else sums
        return state

    def _judge_head(self, head: Head) -> Measured:
        weight, bias = head
        return Measured(self._judge(some @ weight.T + bias for some in self.features.split(ROWS)), head)

    def _lbfgs(self, rows: Int64[Tensor, "n"]) -> Measured:
        features, labels = self.tables[self.config.test_crop].upright(rows)
        logger.info("L-BFGS on %s features of width %d", f"{len(features):,}", features.shape[1])
        return self._judge_head(fit_logistic(features, labels).head(len(self.config.classes)))

    def _knn(self, rows: Int64[Tensor, "n"]) -> Measured:
        config, device = self.config, self.frozen.device
        features, labels = self.tables[config.test_crop].upright(rows)
        logits = knn_logits(
            features.to(device),
            labels.to(device),
            self.features.to(device),
            classes=len(config.classes),
            neighbours=config.neighbours,
            temperature=config.temperature,
        )
        return Measured(self._judge(logits))

    def _linear(self, rows: Int64[Tensor, "n"], draw: int) -> Measured | Outcome:
        config = replace(self.config, engine=replace(self.config.engine, seed=self.config.engine.seed + draw))
        torch.manual_seed(config.engine.seed)
        task = LinearProbe(self.frozen, config.classes, sum_over_processes=self.parallel.sum_)
        outcome = self._train(task, config, rows, "linear" if config.draws == 1 else f"linear_{draw + 1}")
        if outcome.stopped:
            return outcome
        weight, bias = task.folded()
        return self._judge_head((weight.cpu(), bias.cpu()))

    def _train(self, task: LinearProbe, config: ProbeConfig, rows: Int64[Tensor, "n"], name: str) -> Outcome:
        crop = config.data.crop
        steps = (
            self._looked_up(config, crop.share, rows) if isinstance(crop, CenterCrop) else self._computed(config, rows)
        )
        precision = Precision.of(config.engine.precision, self.parallel.device)
        return train_run(
            config,
            task,
            steps,
            parts=self.parts,
            out=None if self.out is None else self.out / name,
            parallel=self.parallel,
            watchers=self.watchers,
            evaluation=lambda: evaluate(task, self._batches(), self.parallel, precision),
        )

    def _batches(self) -> Iterator[dict[str, Any]]:
        """This process's share of the validation images."""
        rank, world_size = self.parallel.rank, self.parallel.world_size
        return feature_batches(self.features, self.labels, size=ROWS, rank=rank, world_size=world_size)

    def _looked_up(self, config: ProbeConfig, share: float, rows: Int64[Tensor, "n"]) -> FeatureSteps:
        """Steps of features that are in a table."""
        table, device = self.tables[share], self.frozen.device
        batch_size, world_size = config.optimization.global_batch_size, self.parallel.world_size
        loader = TrainingLoader(
            TableSource(table, rows),
            TableView(config.data.flip),
            collate_table,
            seed=config.engine.seed,
            global_batch_size=batch_size,
            micro_batch_size=batch_size // world_size,
            rank=self.parallel.rank,
            world_size=world_size,
            max_unreadable_share=config.data.max_unreadable_share,
            # They were named when the table was made.
            on_unreadable=lambda name, reason: None,
        )
        return FeatureSteps(
            loader.steps, lambda batch: table.lookup(rows[batch["indices"]], batch["mirrored"]).to(device)
        )

    def _computed(self, config: ProbeConfig, rows: Int64[Tensor, "n"]) -> FeatureSteps:
        """Steps of features that are computed from random crops."""
        source = self.images if len(rows) == len(self.images) else SubsetSource(self.images, rows.tolist())
        view = LabelledView(crop=config.data.crop, flip=config.data.flip, image_size=config.model.image_size)
        loader = build_training_loader(config, source, view, collate_labelled, self.parallel)
        return FeatureSteps(loader.steps, lambda batch: self.frozen(batch["image"]))
