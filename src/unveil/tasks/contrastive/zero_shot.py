"""A CLIP as a classifier: the features of sentences about each class are the weights of its head."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unveil.config import UnveilError
from unveil.tasks.contrastive.embedder import Embedder
from unveil.tasks.contrastive.prompts import AS_IT_IS, fill, warn_of_long

logger = logging.getLogger(__name__)

TEXTS_AT_A_TIME = 256
"""About so many go through the text tower together. What takes a single pass is not worth a file in the cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ZeroShotClassifier:
    """What `unveil.build.evaluation.Classifier` asks for."""

    embedder: Embedder
    classes: tuple[str, ...]
    weights: Float[Tensor, "c d"]
    """Unit vectors: see `zero_shot_weights`."""

    @property
    def name(self) -> str:
        return self.embedder.name

    def logits(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """The model's own scale times the cosines, and its bias; fp32, where the images are."""
        cosines = self.embedder.encode_images(images) @ self.weights.T
        return (self.embedder.logit_scale * cosines + self.embedder.logit_bias).to(images.device)

    def predict(self, images: UInt8[Tensor, "b 3 h w"], top_k: int = 5) -> list[list[tuple[str, float]]]:
        """For each image the likeliest classes, best first, with their shares of a softmax over all classes."""
        best = self.logits(images).softmax(dim=1).topk(min(top_k, len(self.classes)), dim=1)
        return [
            [(self.classes[row], share) for row, share in zip(rows, shares, strict=True)]
            for rows, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def zero_shot_classifier(
    embedder: Embedder,
    classes: Sequence[str],
    templates: Sequence[str] = AS_IT_IS,
    *,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ZeroShotClassifier:
    """The classifier whose weights are `zero_shot_weights` of the same arguments."""
    weights = zero_shot_weights(embedder, classes, templates, cache=cache, on_progress=on_progress)
    return ZeroShotClassifier(embedder=embedder, classes=tuple(classes), weights=weights)


def zero_shot_weights(
    embedder: Embedder,
    classes: Sequence[str],
    templates: Sequence[str] = AS_IT_IS,
    *,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "c d"]:
    """Mean over the templates of each class's unit features, made a unit vector again (OpenAI, released code).

    Sentences that the model cuts off are counted in a warning.

    Args:
        templates: sentences with {} for the name of the class.
        cache: folder that keeps weights by (model, classes, templates), so that they are computed once. None: nowhere.
        on_progress: called with texts done and in all.

    Raises:
        UnveilError: no classes, no templates, or features that are not finite.
    """
    if not classes or not templates:
        raise UnveilError("a zero-shot classifier needs at least one class and one template; give --labels")
    warn_of_long([fill(template, name) for name in classes for template in templates], embedder.context_length)
    file = None if cache is None else _file(cache, embedder, classes, templates)
    if file is not None and (kept := _read(file, embedder, classes)) is not None:
        return kept
    weights = _compute(embedder, classes, templates, on_progress)
    if not weights.isfinite().all():
        row = int((~weights.isfinite().all(dim=1)).int().argmax())
        raise UnveilError(
            f"{embedder.name} answers texts about {classes[row]!r} with numbers that are not finite; try --precision "
            "fp32 or bf16, or other weights"
        )
    if file is not None and len(classes) * len(templates) > TEXTS_AT_A_TIME:
        _write(file, weights)
    return weights


def _compute(
    embedder: Embedder,
    classes: Sequence[str],
    templates: Sequence[str],
    on_progress: Callable[[int, int], None] | None,
) -> Float[Tensor, "c d"]:
    at_a_time = max(1, TEXTS_AT_A_TIME // len(templates))
    rows = []
    for start in range(0, len(classes), at_a_time):
        some = classes[start : start + at_a_time]
        texts = [fill(template, name) for name in some for template in templates]
        features = embedder.encode_texts(texts).view(len(some), len(templates), -1)
        rows.append(F.normalize(features.mean(dim=1), dim=1))
        if on_progress is not None:
            on_progress((start + len(some)) * len(templates), len(classes) * len(templates))
    return torch.cat(rows)


def _file(cache: Path, embedder: Embedder, classes: Sequence[str], templates: Sequence[str]) -> Path:
    key = json.dumps([embedder.identity, list(classes), list(templates)])
    return cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def _read(file: Path, embedder: Embedder, classes: Sequence[str]) -> Float[Tensor, "c d"] | None:
    """None where the file is not there, or is not what this module writes."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as content:
            weights = content.get_tensor("weights")
    except (OSError, SafetensorError) as error:
        logger.warning("%s is damaged (%s): the classifier is built again", file, error)
        return None
    if weights.shape != (len(classes), embedder.width) or weights.dtype != torch.float32:
        logger.warning("%s holds something else than this classifier: it is built again", file)
        return None
    logger.info("zero-shot classifier of %d classes from %s", len(classes), file)
    return weights


def _write(file: Path, weights: Float[Tensor, "c d"]) -> None:
    """Whole or not at all; a cache that cannot be written is a pity and no more."""
    # A name of its own: another process may be building the same classifier.
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save({"weights": weights}))
        os.replace(temporary, file)
    except OSError as error:
        logger.warning("the zero-shot classifier is not kept for the next time (%s)", error)
        with suppress(OSError):
            temporary.unlink()
