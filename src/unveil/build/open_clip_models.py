"""CLIPs of open_clip's, whatever their towers are, as they are: with their own tokenizer and preprocessing."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor, nn

from unveil.build.image_text_model import ClipModel
from unveil.config import UnveilError
from unveil.config.teacher import require_open_clip_model
from unveil.engine import Precision
from unveil.pretext.targets.clip import fetch_open_clip
from unveil.weights.openai_clip import MARKS
from unveil.weights.read import read_weights

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)
"""What open_clip calls the file beside an open_clip_config.json, in this order."""


class OpenClipTowers(nn.Module):
    """A model of open_clip's under our names."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def encode_images(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return F.normalize(self.model.encode_image(images).float(), dim=1)

    def encode_texts(self, tokens: Int64[Tensor, "n t"]) -> Float[Tensor, "n d"]:
        return F.normalize(self.model.encode_text(tokens).float(), dim=1)


def open_clip_named(model: str, pretrained: str, place: Precision, *, otherwise: str) -> ClipModel:
    """MODEL/PRETRAINED, whose weights come from the hub or its cache.

    Args:
        otherwise: what can be done without a hub, for errors.

    Raises:
        UnveilError: no hub, or open_clip cannot build it here.
    """
    from open_clip.pretrained import get_pretrained_cfg

    name, released = f"{model}/{pretrained}", get_pretrained_cfg(model, pretrained)
    return _wrap(name, model, released, fetch_open_clip(f"the model {name}", released, otherwise=otherwise), place)


def open_clip_with_file(model: str, file: Path, place: Precision) -> ClipModel:
    """MODEL/FILE: one of open_clip's designs, with weights of one's own.

    Raises:
        UnveilError: open_clip has no such model, or the weights are of another one.
    """
    require_open_clip_model(model)
    return _wrap(f"{model}/{file}", model, {}, file, place)


def open_clip_folder(folder: Path, place: Precision) -> ClipModel:
    """A folder with an open_clip_config.json and weights beside it.

    Raises:
        UnveilError: one of the two is damaged or missing.
    """
    description = folder / "open_clip_config.json"
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UnveilError(f"{folder} has an open_clip_config.json and none of {', '.join(WEIGHTS)}; copy it again")
    try:
        images = json.loads(description.read_text(encoding="utf-8")).get("preprocess_cfg", {})
    except (ValueError, AttributeError) as error:
        raise UnveilError(f"{description} is not a description of open_clip's ({error}); restore it") from error
    return _wrap(str(folder), f"local-dir:{folder}", images, file, place)


def _wrap(name: str, model: str, released: dict[str, Any], file: Path, place: Precision) -> ClipModel:
    """`released`: what the publisher says of the activation and the images."""
    from open_clip import create_model, get_model_config, get_tokenizer
    from open_clip.transform import PreprocessCfg, image_transform_v2

    quick_gelu = bool(released.get("quick_gelu"))
    try:
        with _without_warnings():
            # Without weights: open_clip would read them its own way, and fetch first ones for some text encoders.
            network: Any = create_model(
                model,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=quick_gelu,
                force_preprocess_cfg=released,
            )
        tokenizer: Any = get_tokenizer(model)
        description: Any = get_model_config(model)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UnveilError(f"open_clip cannot build {name} here: {reason}; choose another model") from error
    _load(network, read_weights(file), name)
    network.eval().requires_grad_(False).to(place.device)
    images = network.visual.preprocess_cfg
    # The last two turn bytes into normalised floats, which is ours to do.
    *steps, _, _ = image_transform_v2(PreprocessCfg(**images), is_train=False).transforms
    size = images["size"]
    bias = getattr(network, "logit_bias", None)
    return ClipModel(
        name=name,
        towers=OpenClipTowers(network),
        prepare=partial(_bytes, steps=steps),
        tokenize=tokenizer,
        mean=tuple(images["mean"]),
        std=tuple(images["std"]),
        image_size=size if isinstance(size, int) else size[0],
        width=description["embed_dim"],
        context_length=tokenizer.context_length,
        logit_scale=network.logit_scale.exp().item(),
        logit_bias=0.0 if bias is None else bias.item(),
        settings={"open_clip": description, "quick_gelu": quick_gelu, "images": images},
        precision=place,
    )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Of weights that are random, which they are for a moment only; open_clip says it to the root logger."""
    root = logging.getLogger()
    root.addFilter(_refuse)
    try:
        yield
    finally:
        root.removeFilter(_refuse)


def _refuse(record: logging.LogRecord) -> bool:
    return False


def _bytes(image: Image.Image, steps: Sequence[Callable[[Image.Image], Image.Image]]) -> UInt8[Tensor, "3 h w"]:
    from torchvision.transforms.v2.functional import pil_to_tensor

    for step in steps:
        image = step(image)
    return pil_to_tensor(image)


def _load(network: Any, state: dict[str, Tensor], name: str) -> None:
    """Fill one of open_clip's models from weights as they have been published, OpenAI's archives too.

    Raises:
        UnveilError: they are of another model.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(network, {part: value for part, value in state.items() if part not in MARKS})
    if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in state and getattr(network, scalar, None) is not None:
            state[scalar] = state[scalar].reshape(getattr(network, scalar).shape)
    # Versions of transformers differ in whether they save these numbers 0, 1, 2, ...
    state.pop("text.transformer.embeddings.position_ids", None)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UnveilError(f"the weights of {name} are not those of such a model: {reason}; give its own") from error
