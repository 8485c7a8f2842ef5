"""`unveil.load`: a trained model, from a run, a file of weights or a name, to work with in Python."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from unveil.build.clip_models import ClipModel, load_clip
from unveil.build.devices import find_device
from unveil.build.image_batches import middle
from unveil.build.released import read_released
from unveil.build.trained import build_trained, usual_normalization
from unveil.config import ClassificationConfig, ProbeConfig, RevColV2Config, UnveilError
from unveil.config.data import CenterCrop
from unveil.config.serialize import from_json
from unveil.data.decode import decode_image, upright_rgb
from unveil.data.normalization import Normalization, normalize
from unveil.data.sources.base import UnreadableSample
from unveil.data.sources.missing import missing_path
from unveil.engine import Precision
from unveil.engine.checkpoint import AVERAGED
from unveil.models.backbone import Backbone
from unveil.models.revcolv2 import RevColV2
from unveil.tasks.classification.task import Classification
from unveil.weights.infer import known_about
from unveil.weights.load import read_network

__all__ = ["ClipModel", "ImageFeatures", "Model", "load", "load_clip"]

logger = logging.getLogger(__name__)

Images = UInt8[Tensor, "b 3 h w"] | Sequence[Image.Image | str | os.PathLike[str]]
"""Bytes as `Model.transform` makes them, or pictures, or files of such."""

KINDS: dict[str, type] = {kind.__name__: kind for kind in (ClassificationConfig, ProbeConfig)}
"""Of runs that evaluate on a crop of their own."""


@dataclass(frozen=True)
class ImageFeatures:
    """What a model has to say about its images."""

    cls: Float[Tensor, "b d"]
    """The cls token; of a RevColV2, which has none, the mean."""
    patches: Float[Tensor, "b n d"]
    """The patch tokens, row by row; of a RevColV2 the cells of the last column's coarsest level."""
    mean: Float[Tensor, "b d"]
    """Of the patches."""
    grid: tuple[int, int]
    """Rows and columns of patches: n = rows * columns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A trained network, ready for images: `unveil.load` makes one. Nothing here needs gradients or changes it."""

    name: str
    """What it was loaded from."""
    backbone: Backbone
    """In eval mode, on the device."""
    classifier: Classification | None
    """The backbone with its head; None without one."""
    classes: tuple[str, ...]
    """Of the head's rows; numbers where nothing names them, () without a head."""
    normalization: Normalization
    crop: CenterCrop
    """The part of an image that `transform` keeps."""
    precision: Precision
    config: dict[str, Any] | None
    """The run's config.json; None where there was none."""

    @property
    def image_size(self) -> int:
        """Side of the input, pixels. Other multiples of `size_unit` work too: positions are resized."""
        return self.backbone.config.image_size

    @property
    def size_unit(self) -> int:
        """Sides of images are multiples of this, pixels: a ViT's patch, a RevColV2's mask unit."""
        return self.backbone.config.mask_unit

    @property
    def stride(self) -> int:
        """From one of the features' patches to the next, pixels."""
        config = self.backbone.config
        return config.strides[-1] if isinstance(config, RevColV2Config) else config.patch_size

    @property
    def device(self) -> torch.device:
        return self.precision.device

    def transform(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """The middle of a picture of any mode at the model's size, as bytes: `normalization` comes later."""
        return middle(upright_rgb(image), self.crop, self.image_size)

    def features(self, images: Images, *, batch_size: int = 32) -> ImageFeatures:
        """Tokens after the network's last layer, float32, on the processor.

        A network that was fine-tuned on the mean of its patches has its norm after that mean: its tokens come as the
        last block leaves them.

        Raises:
            UnveilError: a file that is not there or cannot be read.
        """
        batches = [self._features(batch) for batch in self._batches(images, batch_size)]
        # Joined outside of inference mode, the results may be trained on.
        cls, patches, mean = (torch.cat(parts) for parts in zip(*batches, strict=True))
        size = (images.shape[2], images.shape[3]) if isinstance(images, Tensor) else (self.image_size,) * 2
        return ImageFeatures(cls, patches, mean, (size[0] // self.stride, size[1] // self.stride))

    @torch.inference_mode()
    def feature_maps(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[int, Float[Tensor, "b _ _ _"]]:
        """Maps by stride in pixels, float32, on the processor: of a RevColV2 all levels of its last column, finest
        first; of a ViT its patch tokens."""
        with self.precision.autocast():
            pixels = normalize(images.to(self.device), self.normalization)
            levels = self.backbone(pixels, need=("levels",)).levels
        return {stride: level.float().cpu() for stride, level in levels.items()}

    @torch.inference_mode()
    def attention(self, images: UInt8[Tensor, "b 3 h w"], block: int) -> Float[Tensor, "b heads t t"]:
        """Attention in one block (from 0), float32, on the processor: rows are the tokens that look; cls comes first.

        Raises:
            UnveilError: there is no such block, or no cls token.
        """
        if isinstance(self.backbone, RevColV2):
            raise UnveilError(f"{self.name} is a RevColV2, which has no cls token whose attention could be shown")
        with self.precision.autocast():
            pixels = normalize(images.to(self.device), self.normalization)
            found = self.backbone(pixels, need=(f"blocks.{block}.attn",))
        return found.attention[block].float().cpu()

    @torch.inference_mode()
    def logits(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Scores of the classes, float32, on the device.

        Raises:
            UnveilError: the model has no head.
        """
        with self.precision.autocast():
            return self._require_classifier().logits(normalize(images.to(self.device), self.normalization)).float()

    def predict(self, images: Images, top_k: int = 5, *, batch_size: int = 32) -> list[list[tuple[str, float]]]:
        """For each image the likeliest classes with their probabilities, best first.

        Raises:
            UnveilError: the model has no head, or a file is not there or cannot be read.
        """
        self._require_classifier()
        if top_k < 1:
            raise UnveilError(f"top_k is {top_k}; give at least 1")
        answers = []
        for batch in self._batches(images, batch_size):
            best = self.logits(batch).softmax(dim=1).topk(min(top_k, len(self.classes)), dim=1)
            for probabilities, rows in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                answers.append([(self.classes[row], p) for row, p in zip(rows, probabilities, strict=True)])
        return answers

    def _require_classifier(self) -> Classification:
        if self.classifier is None:
            raise UnveilError(
                f"{self.name} has no classification head; give it one first: unveil finetune classification DATA "
                f"--init-from {self.name}, or unveil probe DATA --model {self.name}; a whole CLIP needs none with "
                "--labels"
            )
        return self.classifier

    def _batches(self, images: Images, batch_size: int) -> Iterator[UInt8[Tensor, "_ 3 _ _"]]:
        """At least one, so that no images give results of the right shape."""
        if isinstance(images, Tensor):
            yield from images.split(batch_size)
            return
        if not images:
            yield torch.zeros(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        for start in range(0, len(images), batch_size):
            yield torch.stack([self.transform(_picture(image)) for image in images[start : start + batch_size]])

    @torch.inference_mode()
    def _features(self, images: UInt8[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        with self.precision.autocast():
            found = self.backbone(normalize(images.to(self.device), self.normalization))
        patches = found.patches.float()
        return found.cls.float().cpu(), patches.cpu(), patches.mean(dim=1).cpu()


def load(
    path_or_name: str | os.PathLike[str],
    *,
    weights: Literal["ema", "raw"] = "ema",
    device: str | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32",
    normalization: Normalization | None = None,
    settings: Sequence[str] = (),
) -> Model:
    """A trained model.

    Args:
        path_or_name: a run's folder, a file of weights in any layout that `unveil convert` reads, "timm/NAME" or
            open_clip's MODEL/PRETRAINED; weights of names come from the hub.
        weights: of a run that kept a running average of its weights: that one, or those of the last step.
        device: "cpu", "cuda", "cuda:1". None = a GPU where there is one.
        precision: of the arithmetic. fp32 gives the same answers everywhere; "auto" is the fastest safe one.
        normalization: "clip", "imagenet" or "half" (0.5). None = what the run, the file or the publisher says; where
            a file is silent, what is usual for its kind, and the log says so.
        settings: NAME=VALUE for what no shape in a file tells: model.heads, model.activation, model.norm_epsilon.

    Raises:
        UnveilError: nothing there, a layout that is not known, or a device that is not there.
    """
    name, path = os.fspath(path_or_name), Path(path_or_name).expanduser()
    place = Precision.of(precision, find_device(device))
    run = None
    if path.exists():
        network = read_network(path, weights=weights, settings=settings)
        if network.file.name == AVERAGED:
            logger.info("%s: the averaged weights are taken; --weights raw (weights='raw') takes the last step's", name)
        known, run = known_about(network.file), _run_config(network.file)
        state, config, crop = network.state, network.config, _crop(run, known)
        classes, pooling = tuple(known.get("classes") or ()), known.get("pooling")
        normalization = normalization or known.get("normalization") or usual_normalization(name, state)
    else:
        released = read_released(name)
        state, config, crop = released.state, released.config, released.crop
        classes, pooling = released.classes, released.pooling
        normalization = normalization or released.normalization
    backbone, classifier = build_trained(
        name, state, config, classes=classes, normalization=normalization, pooling=pooling
    )
    (backbone if classifier is None else classifier).to(place.device)
    return Model(
        name=name,
        backbone=backbone,
        classifier=classifier,
        classes=() if classifier is None else classifier.classes,
        normalization=normalization,
        crop=crop,
        precision=place,
        config=run,
    )


def _crop(run: dict[str, Any] | None, known: dict[str, Any]) -> CenterCrop:
    """A classifier sees what it was evaluated on; everything else the largest square."""
    kind = None if run is None else KINDS.get(run.get("kind", ""))
    if kind is None:
        return CenterCrop(share=known.get("test_crop") or 1.0)
    config: Any = from_json(kind, run)
    return CenterCrop(share=config.test_crop)


def _run_config(file: Path) -> dict[str, Any] | None:
    """config.json of the run whose checkpoint `file` belongs to, or of the probe beside whose report it lies."""
    checkpoint = file.parent.parent.name == "checkpoints"
    folder = file.parent.parent.parent if checkpoint else file.parent
    if not (folder / "config.json").is_file() or not (checkpoint or (folder / "report.json").is_file()):
        return None
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _picture(image: Image.Image | str | os.PathLike[str]) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    path = os.fspath(image)
    if not os.path.exists(path):
        raise UnveilError(missing_path(path))
    try:
        return decode_image(path, path)
    except UnreadableSample as error:
        raise UnveilError(f"{error}; leave it out or copy it again") from error
