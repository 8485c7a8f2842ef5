"""Probing RevColV2 level by level: how much of the classes each holds, and how much of the pixels."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int64, UInt8
from torch import Tensor

from unveil.build.level_outputs import MeasuredLevels, level_report, write_picture
from unveil.build.probe_images import Looking, OnFeatures, open_probe, part_of, parts_of
from unveil.build.probe_methods import Bench, Method
from unveil.build.probe_outputs import REPORT, describe_method, merged
from unveil.build.probing import check_probe, draw_labels
from unveil.config import ProbeConfig, RevColV2Config, UnveilError
from unveil.config.serialize import to_json
from unveil.data.sources.base import Source
from unveil.engine import Outcome, Parallel, Precision
from unveil.engine.disk import write_json
from unveil.models.backbone import Backbone
from unveil.models.revcolv2 import RevColV2
from unveil.tasks.classification.feature_table import FeatureTable
from unveil.tasks.classification.levels import LevelFeatures
from unveil.tasks.classification.pixel_readout import CellSums, PixelReadout, PixelScore, pixel_score, pixel_sums

PIXEL_IMAGES = 1000
"""At most so many, evenly spread over all, are the pixel regressions fitted to, and at most so many others judge them.
Even the coarsest level has more than ten thousand cells in them, of hundreds of channels each."""

SHOWN = 4
"""Held-out images in the picture."""

OF_SINGLE_CLASSES = ("per_class", "confusion", "most_confused")
"""What the report does not say of every level."""


def level_features(config: ProbeConfig, backbone: Backbone, parallel: Parallel) -> LevelFeatures:
    """All levels of the network's last columns.

    Raises:
        UnveilError: it has none.
    """
    if not isinstance(backbone, RevColV2):
        raise UnveilError(
            f"--levels compares the levels of a RevColV2, and {config.init_from or 'the network'} is a ViT, whose "
            "patches are all of one size; leave --levels out"
        )
    return LevelFeatures(
        backbone,
        normalization=config.data.normalization,
        device=parallel.device,
        autocast=Precision.of(config.engine.precision, parallel.device).autocast,
    )


def check_levels(config: ProbeConfig, source: Source, methods: tuple[Method, ...]) -> None:
    """Raises UnveilError for what cannot be measured of levels."""
    if "linear" in methods:
        raise UnveilError("--levels is measured with lbfgs and knn; give --method lbfgs knn, or leave --levels out")
    check_probe(config, source, methods)


def probe_levels(
    config: ProbeConfig,
    frozen: LevelFeatures,
    source: Source,
    validation: Source,
    *,
    methods: tuple[Method, ...],
    out: Path | None = None,
    parallel: Parallel,
    on_features: OnFeatures = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure each level of both halves' last columns, and of the same network untrained; gives the report.

    Each method tells the classes from the mean over a level's cells, a ridge regression the pixels from each cell alone
    (`unveil.tasks.classification.pixel_readout`). The network sees the middle of each image, and nothing is hidden.

    Args:
        methods: L-BFGS and nearest neighbours, or one of them.
        out: report.json and levels.png go there; None: nothing is written.
        on_features: told how far features are.

    Raises:
        UnveilError: labels that will not do, images that cannot be read, whatever else a person can mend.
    """
    assert isinstance(config.model, RevColV2Config)
    check_levels(config, source, methods)
    draws = draw_labels(config, source)
    parts = parts_of(source, validation)
    asked = to_json(config) | {"levels": True}
    with nullcontext() if out is None else open_probe(out, asked, parts, parallel):
        study = _Study(
            config=config,
            source=source,
            validation=validation,
            draws=draws,
            methods=methods,
            parallel=parallel,
            parts=parts,
            look=Looking(config=config, parallel=parallel, on_features=on_features),
            colour_side=config.model.strides[0],
        )
        trained = study.measure(frozen, "", raw=True)
        torch.manual_seed(config.engine.seed)
        fresh = level_features(config, RevColV2(config.model), parallel)
        untrained = study.measure(fresh, ", untrained network", raw=False)
        report = level_report(
            config,
            frozen.levels,
            trained,
            untrained,
            training_images=len(draws[0]),
            pixel_images={"fitted": len(study.to_fit), "judged": len(study.to_judge)},
            colour_side=study.colour_side,
        )
        if out is not None:
            parallel.on_main(lambda: study.write(out, frozen, trained.readouts, report))
    return report


@dataclass(frozen=True, kw_only=True)
class _Study:
    """Everything that is the same for both networks."""

    config: ProbeConfig
    source: Source
    validation: Source
    draws: list[np.ndarray]
    """Places in the source whose labels are learnt from, ascending."""
    methods: tuple[Method, ...]
    parallel: Parallel
    parts: dict[str, Any]
    """Digests of the images."""
    look: Looking
    colour_side: int
    """Of the squares whose mean colours make the small images, pixels."""

    def measure(self, frozen: LevelFeatures, whose: str, *, raw: bool) -> MeasuredLevels:
        """Every process must call it.

        Args:
            whose: images, for the log.
            raw: tell the classes from the image's own pixels, too.
        """
        chosen = np.unique(np.concatenate(self.draws))
        share = self.config.test_crop
        table = self.look(frozen, part_of(self.source, chosen), f"training images{whose}", share)
        judged = self.look(frozen, self.validation, f"validation images{whose}", share)
        rows = [torch.from_numpy(np.searchsorted(chosen, places)) for places in self.draws]
        sums = self._fit(frozen, whose)
        readouts = [of_level.fit() for of_level in sums]
        pixels, colours = self._judge(frozen, readouts, whose)
        return MeasuredLevels(
            methods=self.parallel.on_main(lambda: self._classes(frozen, table, judged, rows, raw)),
            readouts=readouts,
            cells=[of_level.count for of_level in sums],
            pixels=pixels,
            colours=colours,
            unreadable=len(judged) - int(judged.readable.sum()),
        )

    @property
    def to_fit(self) -> Source:
        """Whose pixels the regressions are fitted to."""
        return _spread(self.source, PIXEL_IMAGES)

    @property
    def to_judge(self) -> Source:
        return _spread(self.validation, PIXEL_IMAGES)

    def write(self, out: Path, frozen: LevelFeatures, readouts: list[PixelReadout], report: dict[str, Any]) -> None:
        """The picture and the report; on the main process alone."""
        alone = replace(self.look, parallel=Parallel(self.parallel.device))
        shown = alone.loader(_spread(self.validation, SHOWN), self.config.test_crop)
        images = torch.cat([batch["image"][batch["valid"]] for batch in shown])
        write_picture(out, frozen, readouts, images, report)
        # Last, because its presence says that the picture is there.
        write_json(out / REPORT, report)

    def _classes(
        self,
        frozen: LevelFeatures,
        table: FeatureTable,
        judged: FeatureTable,
        rows: list[Int64[Tensor, "n"]],
        raw: bool,
    ) -> list[dict[str, Any]]:
        """On the main process alone."""
        features, labels = judged.upright(torch.arange(len(judged)))
        both = (table.features.split(frozen.widths, dim=-1), features.split(frozen.widths, dim=-1))
        parts = list(zip(*both, strict=True))[: None if raw else len(frozen.levels)]
        return [
            self._scores(
                Bench(
                    config=self.config,
                    frozen=frozen,
                    images=self.source,
                    tables={self.config.test_crop: replace(table, features=to_learn)},
                    features=to_judge,
                    labels=labels,
                    parallel=Parallel(self.parallel.device),
                    watchers=(),
                    out=None,
                    parts=self.parts,
                ),
                rows,
            )
            for to_learn, to_judge in parts
        ]

    def _scores(self, bench: Bench, rows: list[Int64[Tensor, "n"]]) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        for method in self.methods:
            found = [bench.measure(method, some, draw) for draw, some in enumerate(rows)]
            # Only the linear probe can be stopped.
            draws = [one for one in found if not isinstance(one, Outcome)]
            described = describe_method(self.config, method, draws, merged(draws))
            scores[method] = {name: value for name, value in described.items() if name not in OF_SINGLE_CLASSES}
        return scores

    def _fit(self, frozen: LevelFeatures, whose: str) -> list[CellSums]:
        sums = [CellSums(width=level.width, stride=level.stride, device=frozen.device) for level in frozen.levels]
        for images in self._images(self.to_fit, f"training images{whose}, cell by cell"):
            original = images.to(frozen.device) / 255
            for of_level, cells in zip(sums, frozen.maps(images), strict=True):
                of_level.add(cells, original)
        for of_level in sums:
            self.parallel.sum_(of_level.sums)
        return sums

    def _judge(
        self, frozen: LevelFeatures, readouts: list[PixelReadout], whose: str
    ) -> tuple[list[PixelScore], list[PixelScore]]:
        """Pixel by pixel, and as small images."""
        sums = torch.zeros(2, len(readouts), 3, 4, dtype=torch.float64, device=frozen.device)
        for images in self._images(self.to_judge, f"validation images{whose}, cell by cell"):
            original = images.to(frozen.device) / 255
            small = F.avg_pool2d(original, self.colour_side)
            for place, (readout, cells) in enumerate(zip(readouts, frozen.maps(images), strict=True)):
                said = readout(cells)
                sums[0, place] += pixel_sums(said, original)
                sums[1, place] += pixel_sums(F.avg_pool2d(said, self.colour_side), small)
        self.parallel.sum_(sums)
        return [pixel_score(one) for one in sums[0]], [pixel_score(one) for one in sums[1]]

    def _images(self, source: Source, what: str) -> Iterator[UInt8[Tensor, "b 3 h w"]]:
        """This process's share of those that can be read, some at a time."""
        loader = self.look.loader(source, self.config.test_crop)
        done = 0
        for batch in loader:
            images = batch["image"][batch["valid"]]
            if len(images):
                yield images
            done = min(done + loader.batch_size * loader.world_size, len(source))
            self.look.on_features(what, done, len(source))


def _spread(source: Source, count: int) -> Source:
    """At most `count` of the images, evenly spread."""
    places = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(np.int64)
    return part_of(source, places)
