"""The teacher's own row in a comparison: what its features are worth, and its network where it is a plain ViT."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unveil.build.probing import draw_labels
from unveil.build.released import Released, read_released
from unveil.build.starting_weights import network_in
from unveil.config import CenterCrop, ClipTarget, EmbeddedTarget, ProbeConfig, TimmTarget, UnveilError, ViTConfig
from unveil.config.serialize import to_json
from unveil.data.loader import EvaluationLoader
from unveil.data.normalization import Normalization
from unveil.data.sources.base import Source as ImageSource
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.build import build_target
from unveil.tasks.classification.frozen_features import linear_probe
from unveil.tasks.classification.view import LabelledView, collate_labelled

logger = logging.getLogger(__name__)

TeacherTarget = ClipTarget | TimmTarget | EmbeddedTarget
"""Teachers that are networks of their own."""

Table = tuple[Float[Tensor, "_ d"], Int64[Tensor, "_"]]
"""Features and labels of all images."""

BATCH = 32
"""Images at a time: a processor's caches hold no more of a teacher's maps."""


@dataclass(frozen=True, kw_only=True)
class TeacherNetwork:
    """A teacher that can be fine-tuned itself."""

    file: Path
    model: ViTConfig
    """At the size at which it taught."""
    normalization: Normalization


def teacher_label(target: TeacherTarget) -> str:
    """What a table calls it."""
    if isinstance(target, EmbeddedTarget):
        return "embedded"
    return Path(target.name).name if Path(target.name).expanduser().is_file() else target.name


class TeacherProbe:
    """What the teacher's own features are worth: L-BFGS on the mean over the patches. They are computed when asked for.

    Args:
        model: the student, on whose patches they fall.
    """

    def __init__(
        self,
        target: TeacherTarget,
        model: ViTConfig,
        config: ProbeConfig,
        source: ImageSource,
        validation: ImageSource,
        *,
        device: torch.device,
    ) -> None:
        self._target, self._model, self._config = target, model, config
        self._source, self._validation, self._device = source, validation, device

    def result(self, seed: int) -> dict[str, Any]:
        """Top-1 on the validation images, and the side of the images that the teacher sees.

        Args:
            seed: added to that of the labels' draw.

        Raises:
            UnveilError: a teacher that cannot be had, or images that cannot be read.
        """
        engine = replace(self._config.engine, seed=self._config.engine.seed + seed)
        rows = torch.from_numpy(draw_labels(replace(self._config, engine=engine), self._source)[0])
        (train, labels), (test, test_labels) = self._tables
        return {
            "top1": linear_probe(train[rows], labels[rows], test, test_labels),
            "image_size": self._teacher.image_size,
        }

    @cached_property
    def _teacher(self) -> Target:
        teacher = build_target(self._target, grid=self._model.grid, patch_size=self._model.patch_size)
        return teacher.to(self._device)

    @cached_property
    def _tables(self) -> tuple[Table, Table]:
        return self._features(self._source), self._features(self._validation)

    def _features(self, source: ImageSource) -> Table:
        """Raises UnveilError where an image cannot be read: places of labels would not be theirs any more."""
        loader = EvaluationLoader(
            source,
            LabelledView(
                crop=CenterCrop(share=self._config.test_crop), flip=False, image_size=self._teacher.image_size
            ),
            collate_labelled,
            batch_size=BATCH,
            rank=0,
            world_size=1,
            workers=self._config.data.workers or 0,
        )
        features, labels = [], []
        for batch in loader:
            valid = batch["valid"]
            found = self._teacher(batch["image"].to(self._device)).mean(dim=1).float().cpu()
            features.append(found[valid])
            labels.append(batch["label"][valid])
        missing = len(source) - sum(map(len, labels))
        if missing:
            raise UnveilError(
                f"{missing:,} images cannot be read, which the log names; copy them again or take them out, or leave "
                "the teacher's row out with --without teacher"
            )
        return torch.cat(features), torch.cat(labels)


def teacher_network(target: TeacherTarget, image_size: int, folder: Path) -> TeacherNetwork | None:
    """The teacher as a network that can be fine-tuned; None where it is no plain ViT, and the log says why.

    Args:
        folder: weights from the hub are written there.
    """
    if isinstance(target, EmbeddedTarget):
        return None
    try:
        file = _file_of(target)
        if file is None:
            file = _write(read_released(target.name), folder)
        model, normalization = network_in(file)
    except UnveilError as error:
        logger.warning("the teacher %s cannot be fine-tuned: %s", target.name, error)
        return None
    usual: Normalization = "clip" if isinstance(target, ClipTarget) else "imagenet"
    fitting = image_size - image_size % model.patch_size
    return TeacherNetwork(file=file, model=replace(model, image_size=fitting), normalization=normalization or usual)


def _file_of(target: ClipTarget | TimmTarget) -> Path | None:
    """The local file that it is in."""
    if isinstance(target, TimmTarget):
        return None if target.file is None else Path(target.file).expanduser()
    parts = (target.name, target.name.partition("/")[2])
    return next((path for part in parts if part and (path := Path(part).expanduser()).is_file()), None)


def _write(released: Released, folder: Path) -> Path:
    """Once: a file that says what its network is."""
    from unveil.weights.write import notes, write_weights

    file = folder / "teacher.safetensors"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        known = {"model": to_json(released.config), "normalization": released.normalization}
        write_weights(file, released.state, notes(known, layout="as released", source=Path("the hub")))
    return file
