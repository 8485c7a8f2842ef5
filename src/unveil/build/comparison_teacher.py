"""The teacher's own row in a comparison: what its features are worth, and its network, to be fine-tuned itself."""

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unveil.build.probing import draw_labels
from unveil.build.released import read_released
from unveil.build.starting_weights import network_in
from unveil.config import (
    CenterCrop,
    ClassificationConfig,
    ClipTarget,
    EmbeddedTarget,
    ProbeConfig,
    TimmTarget,
    UnveilError,
    ViTConfig,
)
from unveil.config.revcolv2 import require_vit
from unveil.config.serialize import to_json
from unveil.data.loader import EvaluationLoader
from unveil.data.normalization import MEAN_AND_STD, Normalization
from unveil.data.sources.base import Source as ImageSource
from unveil.engine import Parallel
from unveil.models.timm_backbone import TimmBackbone
from unveil.pretext.targets.base import Target
from unveil.pretext.targets.build import build_target
from unveil.pretext.targets.embedded import PIXEL_MEAN, PIXEL_STD, load_network
from unveil.pretext.targets.timm import TimmTeacher
from unveil.tasks.classification.frozen_features import linear_probe
from unveil.tasks.classification.view import LabelledView, collate_labelled

logger = logging.getLogger(__name__)

TeacherTarget = ClipTarget | TimmTarget | EmbeddedTarget
"""Teachers that are networks of their own."""

Table = tuple[Float[Tensor, "_ d"], Int64[Tensor, "_"]]
"""Features and labels of all images."""

BATCH = 32
"""Images at a time: a processor's caches hold no more of a teacher's maps."""

TRAINED_AT_ONCE = {"cpu": 8, "cuda": 64}
"""Images in a micro-batch: EfficientNet-Lite0 keeps some 100 MB of maps for each of 256 px, larger ones more."""


@dataclass(frozen=True, kw_only=True)
class TeacherViT:
    """A teacher that is a plain ViT, and is fine-tuned as any other."""

    file: Path
    model: ViTConfig
    """At the size at which it taught."""
    normalization: Normalization


@dataclass(frozen=True, kw_only=True)
class TeacherEncoder:
    """A teacher of another kind, mostly a convolutional one, fine-tuned as one of timm's networks."""

    target: TeacherTarget
    student: ViTConfig
    """On whose patches its features fell."""
    image_size: int
    """At which it taught, pixels."""

    def wanted(self, config: ClassificationConfig, parallel: Parallel) -> ClassificationConfig:
        """The settings that fit it: all of it learns, and few images at a time, which changes no result."""
        optimization = config.optimization
        share = max(1, optimization.global_batch_size // parallel.world_size)
        at_once = range(1, TRAINED_AT_ONCE[parallel.device.type] + 1)
        # Mixup mixes pairs: an even number wherever there is one.
        fitting = [size for size in at_once if share % size == 0 and (share % 2 or size % 2 == 0)]
        micro = optimization.micro_batch_size or max(fitting)
        return replace(config, optimization=replace(optimization, micro_batch_size=micro), freeze_patch_embedding=False)

    @property
    def described(self) -> dict[str, Any]:
        """What stands in its settings in the place of the student's network."""
        return {"model": {"target": to_json(self.target), "image_size": self.image_size}}

    def backbone(self, normalization: Normalization) -> TimmBackbone:
        """Its network with its own weights, for images that are normalised as the student's.

        Raises:
            UnveilError: a teacher that cannot be had.
        """
        teacher = build_target(self.target, grid=self.student.grid, patch_size=self.student.patch_size)
        if isinstance(teacher, TimmTeacher):
            network, mean, std = teacher.network, teacher.mean.flatten(), teacher.std.flatten()
        else:
            network, mean, std = load_network(), torch.full((3,), PIXEL_MEAN), torch.full((3,), PIXEL_STD)
        given_mean, given_std = (255 * torch.tensor(values) for values in MEAN_AND_STD[normalization])
        return TimmBackbone(
            network,
            name=teacher.name,
            image_size=self.image_size,
            scale=given_std / std,
            shift=(given_mean - mean) / std,
        )


def teacher_label(target: TeacherTarget) -> str:
    """What a table calls it."""
    if isinstance(target, EmbeddedTarget):
        return "embedded"
    return Path(target.name).name if Path(target.name).expanduser().is_file() else target.name


class TeacherProbe:
    """What the teacher's own features are worth: L-BFGS on the mean over the patches. They are computed when asked for.

    Args:
        student: on whose patches they fall.
    """

    def __init__(
        self,
        target: TeacherTarget,
        student: ViTConfig,
        config: ProbeConfig,
        source: ImageSource,
        validation: ImageSource,
        *,
        device: torch.device,
    ) -> None:
        self.target, self.student, self._config = target, student, config
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
            "image_size": self.teacher.image_size,
        }

    @cached_property
    def teacher(self) -> Target:
        """Built when it is first asked for."""
        teacher = build_target(self.target, grid=self.student.grid, patch_size=self.student.patch_size)
        return teacher.to(self._device)

    @cached_property
    def _tables(self) -> tuple[Table, Table]:
        return self._features(self._source), self._features(self._validation)

    def _features(self, source: ImageSource) -> Table:
        """Raises UnveilError where an image cannot be read: places of labels would not be theirs any more."""
        loader = EvaluationLoader(
            source,
            LabelledView(crop=CenterCrop(share=self._config.test_crop), flip=False, image_size=self.teacher.image_size),
            collate_labelled,
            batch_size=BATCH,
            rank=0,
            world_size=1,
            workers=self._config.data.workers or 0,
        )
        features, labels = [], []
        for batch in loader:
            valid = batch["valid"]
            found = self.teacher(batch["image"].to(self._device)).mean(dim=1).float().cpu()
            features.append(found[valid])
            labels.append(batch["label"][valid])
        missing = len(source) - sum(map(len, labels))
        if missing:
            raise UnveilError(
                f"{missing:,} images cannot be read, which the log names; copy them again or take them out, or leave "
                "the teacher's row out with --without teacher"
            )
        return torch.cat(features), torch.cat(labels)


def teacher_network(probed: TeacherProbe, image_size: int, folder: Path) -> TeacherViT | TeacherEncoder | None:
    """The teacher as a network that can be fine-tuned; None where it cannot, and the log says why.

    Args:
        image_size: side of the images at which it taught.
        folder: weights of a ViT from the hub are written there.
    """
    target = probed.target
    encoder = TeacherEncoder(target=target, student=probed.student, image_size=image_size)
    if isinstance(target, EmbeddedTarget):
        return encoder
    try:
        file = _file_of(target) or _written(target.name, folder)
        found, normalization = network_in(file)
        model = require_vit(found, "fine-tuning a teacher")
    except UnveilError as error:
        if isinstance(probed.teacher, TimmTeacher):
            return encoder
        logger.warning("the teacher %s cannot be fine-tuned: %s", target.name, error)
        return None
    usual: Normalization = "clip" if isinstance(target, ClipTarget) else "imagenet"
    fitting = image_size - image_size % model.patch_size
    return TeacherViT(file=file, model=replace(model, image_size=fitting), normalization=normalization or usual)


def _file_of(target: ClipTarget | TimmTarget) -> Path | None:
    """The local file that it is in."""
    if isinstance(target, TimmTarget):
        return None if target.file is None else Path(target.file).expanduser()
    parts = (target.name, target.name.partition("/")[2])
    return next((path for part in parts if part and (path := Path(part).expanduser()).is_file()), None)


def _written(name: str, folder: Path) -> Path:
    """What is released under a name, written once as a file that says what its network is."""
    from unveil.weights.write import notes, write_weights

    file = folder / "teacher.safetensors"
    if not file.is_file():
        released = read_released(name)
        folder.mkdir(parents=True, exist_ok=True)
        known = {"model": to_json(released.config), "normalization": released.normalization}
        write_weights(file, released.state, notes(known, layout="as released", source=Path("the hub")))
    return file
