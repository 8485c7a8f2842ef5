"""Whole CLIPs against open_clip, on tiny random networks: features, logits, loss, every gradient, and both ways."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip import ClipLoss, get_model_config
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.parity import tiny_clips
from tests.parity.tiny_clips import images, plain, tokens, with_trunk
from unveil.config import ClipModelConfig, TextConfig, UnveilError, ViTConfig, eva_clip_giant
from unveil.models.clip import Clip
from unveil.weights.clip import clip_config_of, read_clip
from unveil.weights.convert import convert
from unveil.weights.families import Family, recognize
from unveil.weights.infer import infer
from unveil.weights.open_clip_model import to_open_clip
from unveil.weights.own import clip_names

THEIRS: dict[str, Callable[[], nn.Module]] = {
    "openai": plain,
    "quick_gelu": lambda: plain(quick_gelu=True),
    "timm_trunk": with_trunk,
}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def ours_from(network: nn.Module, folder: Path, *, quick_gelu: bool = False) -> Clip:
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / "theirs.safetensors")
    quick = ("model.vision.activation=quick_gelu", "model.text.activation=quick_gelu")
    found = read_clip(folder / "theirs.safetensors", settings=quick if quick_gelu else ())
    assert not found.report.left_out and not found.report.unexpected
    clip = Clip(found.config)
    clip.load_state_dict(found.state)
    return clip


@pytest.mark.parametrize("kind", THEIRS)
def test_features_logits_loss_and_every_gradient(kind: str, tmp_path: Path) -> None:
    theirs: Any = THEIRS[kind]()
    ours = ours_from(theirs, tmp_path, quick_gelu=kind == "quick_gelu")
    their_images, their_texts, their_scale = theirs(images(), tokens())
    our_images, our_texts = ours.encode_images(images()), ours.encode_texts(tokens())
    torch.testing.assert_close(our_images, their_images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(our_texts, their_texts, atol=1e-5, rtol=1e-5)
    logits = ours.logit_scale.exp() * our_images @ our_texts.t()
    torch.testing.assert_close(logits, theirs.get_logits(images(), tokens())[0], atol=1e-5, rtol=1e-5)
    labels = torch.arange(4)
    loss = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
    expected = ClipLoss()(their_images, their_texts, their_scale)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    native = recognize(gradients, source="gradients").native
    names = clip_names(native)
    compared = dict(ours.named_parameters())
    assert set(names.values()) == compared.keys()
    for name, gradient in native.items():
        own = compared[names[name]].grad
        torch.testing.assert_close(own, gradient.view_as(own), atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("kind", THEIRS)
def test_to_ours_and_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    theirs = THEIRS[kind]()
    state = theirs.state_dict()
    ours = ours_from(theirs, tmp_path)
    layout: Family = "open_clip" if kind == "timm_trunk" else "openai"
    config = infer(state, source="theirs")
    through = convert(state, config, source="theirs", to="native")
    assert isinstance(through.model, ClipModelConfig) and through.model == ours.config
    again = convert(through.state, through.config, source="native", to=layout)
    assert equal(again.state, state)
    if kind != "timm_trunk":
        assert equal(to_open_clip(ours.state_dict(), ours.config).state, state)


def test_eva_clip_as_released_is_open_clips_and_back() -> None:
    released, theirs = tiny_clips.eva_clip(), with_trunk().state_dict()
    converted = convert(released, infer(released, source="eva_clip.pt"), source="eva_clip.pt", to="open_clip")
    assert equal(converted.state, theirs)
    back = convert(converted.state, converted.config, source="open_clip", to="eva")
    assert equal(back.state, released)


def test_openais_own_file_has_quick_gelu(tmp_path: Path) -> None:
    torch.save(tiny_clips.openais(), tmp_path / "openai.pt")
    found = read_clip(tmp_path / "openai.pt")
    assert found.config.vision.activation == found.config.text.activation == "quick_gelu"
    assert found.report.left_out == {"text tower": ["input_resolution", "context_length", "vocab_size"]}
    clip = Clip(found.config)
    clip.load_state_dict(found.state)
    theirs: Any = plain(quick_gelu=True).half().float()
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_images(images()), theirs.encode_image(images(), normalize=True))
        torch.testing.assert_close(clip.encode_texts(tokens()), theirs.encode_text(tokens(), normalize=True))


OWN = ViTConfig(image_size=28, patch_size=7, width=64, depth=2, heads=2, mlp_width=100)
SMALL_TEXT = TextConfig(context_length=12, vocabulary_size=60, width=64, heads=4, depth=1, mlp_width=130)
TIMMS = ViTConfig(image_size=224, patch_size=16, width=192, depth=12, heads=3, mlp_width=768)
DESIGNS = {
    "own": ClipModelConfig(vision=OWN, text=SMALL_TEXT, embedding_width=12, projection_bias=False),
    "own_quick": ClipModelConfig(
        vision=dataclasses.replace(OWN, activation="quick_gelu", qkv_bias="none", patch_bias=False),
        text=dataclasses.replace(SMALL_TEXT, activation="quick_gelu", norm_epsilon=1e-3),
        embedding_width=12,
        projection_bias=False,
    ),
    "timms": ClipModelConfig(vision=TIMMS, text=SMALL_TEXT, embedding_width=12),
    "timms_without_bias": ClipModelConfig(vision=TIMMS, text=SMALL_TEXT, embedding_width=12, projection_bias=False),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_our_designs_as_open_clips(design: str) -> None:
    torch.manual_seed(0)
    config = DESIGNS[design]
    ours: Any = tiny_clips.shaken(Clip(config))
    found = to_open_clip(ours.state_dict(), config)
    description = dict(found.description)
    assert ("timm_model_name" in description["vision_cfg"]) == design.startswith("timms")
    kind = CustomTextCLIP if description.pop("custom_text", False) else CLIP
    theirs: Any = kind(**description).eval()
    theirs.load_state_dict(found.state, strict=True)
    pixels = F.interpolate(images(1), config.vision.image_size)
    with torch.no_grad():
        their_images, their_texts, scale = theirs(pixels, tokens())
        torch.testing.assert_close(ours.encode_images(pixels), their_images, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.encode_texts(tokens()), their_texts, atol=1e-5, rtol=1e-5)
        assert scale == ours.logit_scale.exp()
    again = Clip(found.config)
    again.load_state_dict(as_clip(found.state))
    with torch.no_grad():
        torch.testing.assert_close(again.eval().encode_images(pixels), their_images, atol=1e-5, rtol=1e-5)


def as_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    native = recognize(state, source="open_clip").native
    names = clip_names(native)
    return {names[name]: value for name, value in native.items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"projection_bias": True}, "a bias on the images' projection"),
        ({"vision": dataclasses.replace(OWN, layer_scale=0.1)}, "layer scale"),
        ({"vision": dataclasses.replace(OWN, activation="quick_gelu")}, "another activation in the image tower"),
        ({"vision": dataclasses.replace(OWN, relative_positions="shared")}, "relative positions"),
    ],
)
def test_what_open_clip_has_no_model_for(changes: dict[str, Any], words: str) -> None:
    config = dataclasses.replace(DESIGNS["own"], **changes)
    with pytest.raises(UnveilError, match=words):
        to_open_clip(Clip(config).state_dict(), config)


def test_eva_clip_giant_is_open_clips_by_every_name_and_shape() -> None:
    description = get_model_config("EVA01-g-14")
    giant = eva_clip_giant()
    with torch.device("meta"):
        ours = to_open_clip(Clip(giant).state_dict(), giant)
        theirs = CustomTextCLIP(**{name: part for name, part in description.items() if name != "custom_text"})
    state = theirs.state_dict()
    assert {name: value.shape for name, value in ours.state.items()} == {n: v.shape for n, v in state.items()}
    assert sum(value.numel() for value in state.values()) == 1_136_435_841
    asked = ours.description["vision_cfg"]
    assert asked.items() <= description["vision_cfg"].items() and ours.description["custom_text"]
    assert description["text_cfg"].items() <= ours.description["text_cfg"].items()
    assert "quick_gelu" not in ours.description and ours.description["embed_dim"] == description["embed_dim"]
    found = clip_config_of(recognize(state, source="EVA01-g-14"), source="EVA01-g-14")
    # Of how training starts and what it drops, weights know nothing.
    vision = dataclasses.replace(found.vision, drop_path=giant.vision.drop_path, init_std=giant.vision.init_std)
    assert dataclasses.replace(found, vision=vision, projection_init_std=giant.projection_init_std) == giant
