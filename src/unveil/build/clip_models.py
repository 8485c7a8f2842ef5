"""`unveil.load_clip`: any CLIP, from a run, a file of weights or a name, with its tokenizer and preprocessing."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unveil.build.devices import find_device
from unveil.build.image_batches import middle
from unveil.build.image_text_model import ClipModel
from unveil.build.open_clip_models import open_clip_folder, open_clip_named, open_clip_with_file
from unveil.build.released import TIMM
from unveil.config import UnveilError
from unveil.config.data import CenterCrop
from unveil.config.serialize import to_json
from unveil.config.teacher import FILE_SUFFIXES, require_open_clip
from unveil.data.normalization import MEAN_AND_STD, Normalization
from unveil.data.sources.missing import missing_path
from unveil.engine import Precision
from unveil.models.clip import Clip
from unveil.tasks.contrastive.tokens import Tokenizer
from unveil.weights.clip import ClipWeights, read_clip
from unveil.weights.infer import known_about
from unveil.weights.load import Weights

__all__ = ["ClipModel", "load_clip"]

logger = logging.getLogger(__name__)

WITHOUT_HUB = "the path of a run's folder or of a file of weights needs no network"


def load_clip(
    path_or_name: str | os.PathLike[str],
    *,
    weights: Weights = "ema",
    device: str | None = None,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32",
    normalization: Normalization | None = None,
    settings: Sequence[str] = (),
) -> ClipModel:
    """A CLIP to compare images and texts with.

    Args:
        path_or_name: the folder of a run of `unveil clip train`; a file of a whole CLIP in OpenAI's, open_clip's,
            EVA-CLIP's or our own layout; open_clip's MODEL/PRETRAINED (from the hub) or MODEL/FILE; a folder with an
            open_clip_config.json, as `unveil export --to open_clip` and the hub have them.
        weights: of a run that kept a running average of its weights: that one, or those of the last step.
        device: "cpu", "cuda", "cuda:1". None = a GPU where there is one.
        precision: of the arithmetic. fp32 gives the same answers everywhere; "auto" is the fastest safe one.
        normalization: of a run or a file: "clip", "imagenet" or "half". None = what it says, else CLIP's.
        settings: NAME=VALUE for what no shape in a file tells: model.vision.heads, model.text.activation, ...

    Raises:
        UnveilError: nothing there, no whole CLIP, a name that open_clip does not know, no hub, or no such device.
    """
    from timm import is_model

    name, path = os.fspath(path_or_name), Path(path_or_name).expanduser()
    place = Precision.of(precision, find_device(device))
    if (path / "open_clip_config.json").is_file():
        return _announced(open_clip_folder(path, place))
    if path.exists():
        return _ours(name, path, place, weights=weights, normalization=normalization, settings=settings)
    model, _, rest = name.partition("/")
    if rest and (file := Path(rest).expanduser()).is_file():
        return _announced(open_clip_with_file(model, file, place))
    if path.suffix in FILE_SUFFIXES or name.startswith(("/", ".", "~")):
        raise UnveilError(missing_path(str(path)))
    if is_model((timms := name.removeprefix(TIMM)).partition(".")[0]):
        raise UnveilError(
            f"timm's {timms} is an image tower, and there is no text tower with it; give open_clip's MODEL/PRETRAINED, "
            "such as ViT-B-16/openai"
        )
    require_open_clip(model, rest, what="the model", otherwise=f"and as a path: {missing_path(str(path))}")
    return _announced(open_clip_named(model, rest, place, otherwise=WITHOUT_HUB))


def _announced(model: ClipModel) -> ClipModel:
    count = sum(value.numel() for value in model.towers.state_dict().values())
    logger.info(f"{model.name}: open_clip's, {count / 1e6:,.1f} M numbers, images of {model.image_size} px")
    return model


def _ours(
    name: str,
    path: Path,
    place: Precision,
    *,
    weights: Weights,
    normalization: Normalization | None,
    settings: Sequence[str],
) -> ClipModel:
    found = read_clip(path, weights=weights, settings=settings)
    for note in found.report.notes:
        logger.warning("%s: %s", name, note)
    normalization = normalization or normalization_of(found)
    clip = build_clip(found)
    clip.to(place.device)
    vision, text = found.config.vision, found.config.text
    logger.info(
        f"{name} ({found.report.layout}): CLIP, {sum(value.numel() for value in clip.parameters()) / 1e6:,.1f} M "
        f"parameters; ViT {vision.width} wide, {vision.depth} deep, {vision.image_size} px in patches of "
        f"{vision.patch_size}; texts {text.width} wide, {text.depth} deep; {found.config.embedding_width} shared"
    )
    mean, std = MEAN_AND_STD[normalization]
    return ClipModel(
        name=name,
        towers=_Ours(clip),
        prepare=partial(middle, crop=CenterCrop(), size=vision.image_size),
        tokenize=Tokenizer(text.context_length),
        mean=mean,
        std=std,
        image_size=vision.image_size,
        width=found.config.embedding_width,
        context_length=text.context_length,
        logit_scale=clip.logit_scale.exp().item(),
        logit_bias=0.0,
        settings=to_json(found.config),
        precision=place,
    )


def build_clip(found: ClipWeights) -> Clip:
    """The network with its weights, in fp32 and eval mode, on the processor."""
    # On the meta device nothing is initialised, which for a large network takes longer than loading it.
    with torch.device("meta"):
        clip = Clip(found.config)
    clip.load_state_dict(found.state, assign=True)
    return clip.float().eval().requires_grad_(False)


def normalization_of(found: ClipWeights) -> Normalization:
    """What the run or the file says, else CLIP's."""
    said = known_about(found.file).get("normalization")
    if said is None:
        logger.info("%s does not say how its images are normalised: by CLIP's numbers, as usual", found.file)
    return said or "clip"


@dataclass(frozen=True)
class _Ours:
    """A `Clip` that is spared the padding."""

    clip: Clip

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return self.clip.encode_images(images)

    def encode_texts(self, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        longest = int(tokens.argmax(dim=1).max()) + 1
        return self.clip.encode_texts(tokens[:, :longest])

    def state_dict(self) -> dict[str, Any]:
        return self.clip.state_dict()
