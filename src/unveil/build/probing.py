"""Probing: from a configuration, a frozen network and labelled images to what its features are worth."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unveil.build.probe_images import Looking, OnFeatures, open_probe, part_of, parts_of
from unveil.build.probe_methods import Bench, Measured, Method
from unveil.build.probe_outputs import write_probe
from unveil.build.starting_weights import network_in
from unveil.config import CenterCrop, ProbeConfig, RevColV2Config, UnveilError
from unveil.config.serialize import to_json
from unveil.data.normalization import Normalization
from unveil.data.sources.base import JoinedSource
from unveil.data.sources.base import Source as ImageSource
from unveil.data.sources.labelled import LabelledSource
from unveil.data.sources.subset import SubsetSource
from unveil.engine import Outcome, Parallel, Precision, Sink
from unveil.models.backbone import Backbone, probed_backbone
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.tasks.classification.feature_table import FrozenFeatures
from unveil.tasks.classification.frozen_features import few_labels
from unveil.tasks.classification.linear_probe import MOMENTUM
from unveil.tasks.classification.task import Classification
from unveil.weights.infer import columns_in
from unveil.weights.load import fill_backbone
from unveil.weights.names import BACKBONE
from unveil.weights.revcolv2 import load_columns

logger = logging.getLogger(__name__)

MOST_OF_THE_START = 0.05
"""Share of their first values in the final running statistics, from which on a person is warned."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """How a probe ended."""

    report: dict[str, Any]
    """As in report.json; {} where it stopped."""
    stopped: bool
    """A signal ended it; the same command goes on."""
    by_keyboard: bool = False
    """That signal was Ctrl-C."""


def probe(
    config: ProbeConfig,
    frozen: FrozenFeatures,
    source: ImageSource,
    validation: ImageSource,
    *,
    methods: tuple[Method, ...],
    out: Path | None = None,
    parallel: Parallel,
    watchers: tuple[Sink, ...] = (),
    on_features: OnFeatures = lambda what, done, total: None,
) -> Probed:
    """Measure the features of a resolved configuration with each method, on each draw of its labels.

    L-BFGS and kNN see the middle of each training image, as validation does. So does the linear probe where
    `config.data.crop` is a `CenterCrop`: its features, and those of the mirror images where `config.data.flip` is on,
    are then computed once; those of random crops are computed anew at each step (released code).

    Args:
        source: its labels, like those of `validation`, are places in `config.classes`.
        out: report.json, confusion.png and model.safetensors (the network with the first method's head) go there, and
            the linear probe's run to linear/ in it; None: nothing is written.
        watchers: sinks beside the linear probe's own, for whoever looks on.
        on_features: told how far features are.

    Raises:
        UnveilError: labels that will not do, images that cannot be read, whatever else a person can mend.
    """
    # Before the folder is made: what turns out to be impossible here must leave none behind.
    check_probe(config, source, methods)
    draws = draw_labels(config, source)
    chosen = np.unique(np.concatenate(draws))
    images = part_of(source, chosen)
    parts = parts_of(source, validation)
    with nullcontext() if out is None else open_probe(out, to_json(config), parts, parallel):
        look = Looking(config=config, parallel=parallel, on_features=on_features)
        tables = {
            share: look(frozen, images, "training images", share, mirrored=mirrored)
            for share, mirrored in views_needed(config, methods).items()
        }
        judged = look(frozen, validation, "validation images", config.test_crop)
        features, labels = judged.upright(torch.arange(len(judged)))
        bench = Bench(
            config=config,
            frozen=frozen,
            images=images,
            tables=tables,
            features=features,
            labels=labels,
            parallel=parallel,
            watchers=watchers,
            out=out,
            parts=parts,
        )
        found: dict[Method, list[Measured]] = {method: [] for method in methods}
        for draw, places in enumerate(draws):
            rows = torch.from_numpy(np.searchsorted(chosen, places))
            for method in methods:
                measured = bench.measure(method, rows, draw)
                if isinstance(measured, Outcome):
                    return Probed(report={}, stopped=True, by_keyboard=measured.by_keyboard)
                found[method].append(measured)
        report = parallel.on_main(
            lambda: write_probe(
                config,
                frozen,
                found,
                out=out,
                training_images=len(draws[0]),
                unreadable=len(judged) - len(labels),
            )
        )
    return Probed(report=report, stopped=False)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A RevColV2 that is to be probed, and what is known of its images."""

    backbone: RevColV2
    normalization: Normalization
    classifier: None = None
    crop: CenterCrop = CenterCrop()


def load_columns_to_probe(path: Path) -> Columns | None:
    """The bottom-up columns of a run or a file of RevColV2; None where `path` is something else.

    Raises:
        UnveilError: a run or a file that cannot be read.
    """
    is_run = (path / "config.json").is_file()
    if not is_run and (not path.is_file() or columns_in(path) is None):
        return None
    config, normalization = network_in(path)
    if not isinstance(config, RevColV2Config):
        return None
    if normalization is None:
        raise UnveilError(f"{path} does not say how its images are normalised; write it anew with unveil export")
    backbone = probed_backbone(replace(config, drop_path=0.0))
    assert isinstance(backbone, RevColV2)
    logger.info("%s", load_columns(backbone, path))
    return Columns(backbone=backbone, normalization=normalization)


def frozen_features(
    config: ProbeConfig, backbone: Backbone, classifier: Classification | None, parallel: Parallel
) -> FrozenFeatures:
    """The network as it is probed.

    Args:
        classifier: that it had before, if any: of one that was fine-tuned on the mean of its patches, the norm behind
            that mean belongs to the features.

    Raises:
        UnveilError: the network has no norm that belongs to the pooling.
    """
    normed = isinstance(backbone, ViT) and not isinstance(backbone.norm, nn.Identity)
    fine_tuned = not normed and classifier is not None and classifier.pooling == "mean"
    return FrozenFeatures(
        at_size(backbone, config.model.image_size),
        pooling=config.pooling,
        normalization=config.data.normalization,
        device=parallel.device,
        autocast=Precision.of(config.engine.precision, parallel.device).autocast,
        pooled_norm=classifier.fc_norm if classifier is not None and fine_tuned else None,
    )


def at_size(backbone: Backbone, image_size: int) -> Backbone:
    """The network for images of this size: where it is another one, with its positions resized.

    RevColV2 has none that are learned, and fits them to what it is given.
    """
    if image_size == backbone.config.image_size or isinstance(backbone, RevColV2):
        return backbone
    with torch.device("meta"):
        other = ViT(
            replace(backbone.config, image_size=image_size),
            mask_token=backbone.mask_token is not None,
            final_norm=not isinstance(backbone.norm, nn.Identity),
        )
    state = {BACKBONE + name: value for name, value in backbone.state_dict().items()}
    logger.info("%s", fill_backbone(other, state, source=f"the network for {image_size} px"))
    return other


def check_probe(config: ProbeConfig, source: ImageSource, methods: tuple[Method, ...]) -> None:
    """Raises UnveilError for what cannot be probed, and warns of what will not be worth much."""
    if not methods or len(set(methods)) < len(methods):
        raise UnveilError(f"--method {' '.join(methods)}: name at least one of linear, lbfgs, knn, and each once")
    if len(config.classes) < 2:
        found = f"only {config.classes[0]!r} is there" if config.classes else "none is named"
        raise UnveilError(f"a probe needs two classes or more, and {found}; check the data")
    if config.labels is not None and config.labels > len(source):
        raise UnveilError(f"--labels {config.labels:,}: there are only {len(source):,} training images; give fewer")
    if "linear" not in methods:
        return
    optimization = config.optimization
    if optimization.global_batch_size < 2:
        raise UnveilError("the linear probe takes means over a batch; give a --global-batch-size of 2 or more")
    assert optimization.steps is not None
    rest = (1.0 - MOMENTUM) ** optimization.steps
    if rest > MOST_OF_THE_START:
        logger.warning(
            "%d steps are few: the means and deviations that the linear probe ends with are to %.0f %% the values that "
            "they began with; give more --epochs or --steps",
            *(optimization.steps, 100 * rest),
        )


def views_needed(config: ProbeConfig, methods: tuple[Method, ...]) -> dict[float, bool]:
    """The middles of training images that are looked at once, by share of the short side; and whether mirrored, too."""
    shares: dict[float, bool] = {}
    if "lbfgs" in methods or "knn" in methods:
        shares[config.test_crop] = False
    if "linear" in methods and isinstance(config.data.crop, CenterCrop):
        shares[config.data.crop.share] = config.data.flip
    return shares


def draw_labels(config: ProbeConfig, source: ImageSource) -> list[np.ndarray]:
    """Places of the training images of each draw, ascending."""
    if config.labels is None:
        return [np.arange(len(source))]
    labels = labels_of(source)
    known = np.flatnonzero(labels >= 0)
    draws = [
        known[few_labels(labels[known].tolist(), config.labels, config.engine.seed + draw)]
        for draw in range(config.draws)
    ]
    seen = len(np.unique(labels[draws[0]]))
    if seen < len(config.classes):
        logger.warning(
            "%d labels are of %d of the %d classes: the others cannot be learnt",
            *(config.labels, seen, len(config.classes)),
        )
    return draws


def labels_of(source: ImageSource) -> np.ndarray:
    """Int64 label of every sample of labelled images, without decoding one; -1 where it is of no class."""
    match source:
        case JoinedSource(sources=sources):
            return np.concatenate([labels_of(part) for part in sources])
        case SubsetSource():
            return labels_of(source.source)[source.places]
        case LabelledSource():
            theirs: Any = source.source
            return np.array([source.numbers.get(label, -1) for label in theirs.labels().tolist()], dtype=np.int64)
    raise TypeError(f"{type(source).__name__} does not tell its labels")
