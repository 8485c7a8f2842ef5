"""What a probe looks at: the middles of images, each once; and its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unveil.config import CenterCrop, ProbeConfig, UnveilError
from unveil.config.resolve import MAY_CHANGE_ON_RESUME
from unveil.data.loader import EvaluationLoader
from unveil.data.order import ORDER_NAME
from unveil.data.sources.base import Source
from unveil.data.sources.subset import SubsetSource
from unveil.engine import Parallel, RunFolder
from unveil.tasks.classification.feature_table import FeatureTable, FrozenFeatures, read_table
from unveil.tasks.classification.view import LabelledView, collate_labelled

OnFeatures = Callable[[str, int, int], None]
"""Called with whose features are computed, and images done and in all."""


def part_of(source: Source, places: np.ndarray) -> Source:
    """The images at these places, ascending; the source itself where they are all."""
    return source if len(places) == len(source) else SubsetSource(source, places.tolist())


@dataclass(frozen=True, kw_only=True)
class Looking:
    """At the middle of each of some images, once."""

    config: ProbeConfig
    parallel: Parallel
    on_features: OnFeatures
    """Told how far it is."""

    def __call__(
        self, frozen: FrozenFeatures, source: Source, what: str, share: float, *, mirrored: bool = False
    ) -> FeatureTable:
        """The features of all of them.

        Args:
            what: the images, in a person's words.
            share: of the short side that is seen.
            mirrored: features of the mirror images, too.

        Raises:
            UnveilError: too many cannot be read.
        """
        table = read_table(
            frozen,
            self.loader(source, share),
            mirrored=mirrored,
            sum_over_processes=self.parallel.sum_,
            on_progress=lambda done, total: self.on_features(what, done, total),
        )
        missing, most = len(table) - int(table.readable.sum()), self.config.data.max_unreadable_share
        if missing > max(1, most * len(table)):
            raise UnveilError(
                f"{missing:,} of {len(table):,} {what} ({missing / len(table):.1%}) could not be read, and at most "
                f"{most:.1%} may; copy such files again or take them out, or raise data.max_unreadable_share"
            )
        return table

    def loader(self, source: Source, share: float) -> EvaluationLoader:
        """This process's share of their batches, with "image" (UInt8 b 3 h w), "label" and "valid"."""
        config = self.config
        assert config.optimization.micro_batch_size is not None and config.data.workers is not None
        return EvaluationLoader(
            source,
            LabelledView(crop=CenterCrop(share=share), flip=False, image_size=config.model.image_size),
            collate_labelled,
            batch_size=config.optimization.micro_batch_size,
            rank=self.parallel.rank,
            world_size=self.parallel.world_size,
            workers=config.data.workers,
        )


def parts_of(source: Source, validation: Source) -> dict[str, Any]:
    """What is probed on: digests of the images."""
    return source.digest() | {f"validation: {name}": part for name, part in validation.digest().items()}


def open_probe(out: Path, config: dict[str, Any], parts: dict[str, Any], parallel: Parallel) -> RunFolder:
    """The folder of a probe, new or to go on with. Raises UnveilError where `RunFolder.open` does."""
    data = {"order": ORDER_NAME, "parts": parts}
    return RunFolder.open(out, config=config, data=data, parallel=parallel, allowed_changes=MAY_CHANGE_ON_RESUME)
