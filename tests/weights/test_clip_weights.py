"""Whole CLIPs and text towers from files: what is recognised, what is refused and in which words."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unveil.config import ClipModelConfig, TextConfig, UnveilError, ViTConfig
from unveil.config.serialize import to_json
from unveil.models.clip import Clip
from unveil.models.text import TextTower
from unveil.models.vit import ViT
from unveil.weights.clip import holds_clip, read_clip
from unveil.weights.clip_text import load_text
from unveil.weights.families import recognize
from unveil.weights.infer import config_in
from unveil.weights.load import load_backbone, read_network
from unveil.weights.names import BACKBONE
from unveil.weights.open_clip_model import to_open_clip
from unveil.weights.write import notes, write_weights

VISION = ViTConfig(
    image_size=28,
    patch_size=7,
    width=64,
    depth=2,
    heads=1,
    mlp_width=96,
    qkv_bias="all",
    norm_epsilon=1e-5,
    patch_bias=False,
    norm_before_blocks=True,
)
TEXT = TextConfig(context_length=10, vocabulary_size=30, width=64, heads=1, depth=2, mlp_width=80)
CONFIG = ClipModelConfig(vision=VISION, text=TEXT, embedding_width=12, projection_bias=False)


@pytest.fixture(scope="module")
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(CONFIG)


def in_openais_layout(clip: Clip) -> dict[str, Tensor]:
    return to_open_clip(clip.state_dict(), clip.config).state


def saved(state: dict[str, Tensor], file: Path) -> Path:
    torch.save(state, file)
    return file


def run_of(clip: Clip, folder: Path) -> Path:
    """What a training run of a task that holds a `Clip` leaves behind."""
    checkpoint = folder / "checkpoints" / "step_3"
    checkpoint.mkdir(parents=True)
    save_file({f"clip.{name}": value for name, value in clip.state_dict().items()}, checkpoint / "model.safetensors")
    said = {"kind": "ContrastiveConfig", "model": to_json(clip.config), "data": {"normalization": "half"}}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run(tmp_path: Path) -> None:
    two_heads = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, heads=4), projection_bias=True)
    clip = Clip(two_heads)
    run = run_of(clip, tmp_path / "run")
    assert holds_clip(run)
    found = read_clip(run)
    assert equal(found.state, clip.state_dict())
    assert found.config == two_heads and found.report.layout == "our own run"
    assert str(found.report).startswith(f"loaded {len(clip.state_dict())} tensors from")


def test_the_image_tower_of_a_run_is_one_like_all_others(clip: Clip, tmp_path: Path) -> None:
    run = run_of(clip, tmp_path / "run")
    network = read_network(run)
    assert network.config == VISION
    vit = ViT(VISION)
    report = load_backbone(vit, run)
    assert equal(vit.state_dict(), clip.visual.state_dict())
    assert not report.missing and not report.unexpected
    assert {part: len(names) for part, names in report.left_out.items()} == {
        "projection into the space shared with text": 1,
        "text tower": len(clip.text.state_dict()) + 1,
    }


def test_a_file_that_knows_its_sizes(clip: Clip, tmp_path: Path) -> None:
    native = recognize(clip.state_dict(), source="clip").native
    assert f"{BACKBONE}cls_token" in native and "text.blocks.0.norm1.weight" in native
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, heads=4))
    known = {"model": to_json(config), "normalization": "half"}
    file = tmp_path / "clip.safetensors"
    write_weights(file, native, notes(known, layout="native", source=tmp_path))
    assert read_clip(file).config == config and config_in(file) == config.vision
    assert equal(read_clip(file).state, clip.state_dict())


def test_what_no_shape_tells_can_be_set(clip: Clip, tmp_path: Path) -> None:
    file = saved(in_openais_layout(clip), tmp_path / "clip.pt")
    settings = ("model.vision.heads=2", "model.text.heads=4", "model.text.activation=quick_gelu")
    found = read_clip(file, settings=settings).config
    assert (found.vision.heads, found.text.heads) == (2, 4)
    assert (found.vision.activation, found.text.activation) == ("gelu", "quick_gelu")
    assert not read_clip(file, settings=settings).report.notes
    assert read_clip(file).report.notes[0].startswith("nothing in the file tells its activation, GELU is taken")
    with pytest.raises(UnveilError, match=r"--set model.text.width=3: the file tells its sizes; only model.vision"):
        read_clip(file, settings=("model.text.width=3",))
    with pytest.raises(UnveilError, match=r"--set model.text.heads=four: give a whole number"):
        read_clip(file, settings=("model.text.heads=four",))


def without(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not any(part in name for part in parts)}


def test_what_is_no_whole_clip(clip: Clip, tmp_path: Path) -> None:
    state = in_openais_layout(clip)
    file = tmp_path / "clip.pt"
    hugging_face = without(state, "transformer.resblocks.0.") | {
        "visual.transformer.resblocks.0." + name.removeprefix("visual.transformer.resblocks.0."): value
        for name, value in state.items()
        if name.startswith("visual.transformer.resblocks.0.")
    }
    images_only = {name: value for name, value in state.items() if name.startswith("visual.")}
    other_text = images_only | {"text.transformer.encoder.layer.0.weight": torch.ones(1), "logit_scale": torch.ones(())}
    wrong_shape = state | {"ln_final.weight": torch.ones(3)}
    for content, words in (
        (images_only, r"is no whole CLIP: it holds CLIP in OpenAI's layout without a text tower; give"),
        (other_text, r"is no whole CLIP: .* with a text tower of another design than OpenAI's"),
        (without(state, "visual.proj"), "is no whole CLIP: its projection of the images is missing"),
        (without(state, "logit_scale"), "is no whole CLIP: its logit_scale is missing"),
        (state | {"logit_bias": torch.ones(())}, "trained with SigLIP's loss"),
        (hugging_face, "its text tower lacks 'text.blocks.0.mlp.fc1.weight'"),
        (without(state, "transformer.resblocks.1.ln_2.bias"), r"lacks (visual.blocks.1|text.blocks.1).norm2.bias"),
        (wrong_shape, r"text.norm.weight is \(3,\) there and \(64,\) in the model"),
        (
            state | {"transformer.resblocks.0.ls_1.gamma": torch.ones(2)},
            r"has 1 tensors .* \(transformer.resblocks.0.ls_1",
        ),
        (
            state | {"visual.ln_extra.weight": torch.ones(2)},
            r"has 1 tensors that the model has no place for \(visual.ln",
        ),
    ):
        saved(content, file)
        with pytest.raises(UnveilError, match=words):
            read_clip(file)
    assert not holds_clip(saved(images_only, file)) and not holds_clip(tmp_path / "ViT-B-32" / "openai")


def test_widths_of_no_published_text_tower(tmp_path: Path) -> None:
    narrow = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, width=48, heads=4))
    file = saved(in_openais_layout(Clip(narrow)), tmp_path / "clip.pt")
    with pytest.raises(UnveilError, match=r"no published text tower is 48 wide; give it with --set model.text.heads=N"):
        read_clip(file)
    assert read_clip(file, settings=("model.text.heads=4",)).config == narrow


def test_a_text_tower_alone(clip: Clip, tmp_path: Path) -> None:
    file = saved(in_openais_layout(clip), tmp_path / "clip.pt")
    tower = TextTower(TEXT, 12)
    report = load_text(tower, file)
    assert equal(tower.state_dict(), clip.text.state_dict())
    assert len(report.loaded) == len(tower.state_dict()) and not report.missing and not report.notes
    assert sum(len(names) for names in report.left_out.values()) == len(clip.state_dict()) - len(report.loaded)


def test_a_text_tower_for_another_space(clip: Clip, tmp_path: Path) -> None:
    run = run_of(clip, tmp_path / "run")
    tower = TextTower(dataclasses.replace(TEXT, activation="quick_gelu"), 20)
    fresh = tower.projection.weight.clone()
    with pytest.raises(UnveilError, match=r"projection.weight is \(12, 64\) there and \(20, 64\) in the model"):
        load_text(tower, run)
    report = load_text(tower, run, projection=False)
    assert torch.equal(tower.projection.weight, fresh) and report.missing == ["text.projection.weight"]
    assert torch.equal(tower.blocks[1].mlp.fc2.weight, clip.text.blocks[1].mlp.fc2.weight)
    assert report.notes[0].startswith("this text tower was trained with gelu and the model has quick_gelu; --set model")


def test_text_towers_that_do_not_fit(clip: Clip, tmp_path: Path) -> None:
    run = run_of(clip, tmp_path / "run")
    before = TextTower(dataclasses.replace(TEXT, depth=1), 12)
    state = {name: value.clone() for name, value in before.state_dict().items()}
    with pytest.raises(UnveilError, match="has 12 tensors that the model has no place for"):
        load_text(before, run)
    assert equal(before.state_dict(), state)
    with pytest.raises(UnveilError, match="1 attention heads and the model has 2"):
        load_text(TextTower(dataclasses.replace(TEXT, heads=2), 12), run)
    alone = saved({f"backbone.{name}": value for name, value in clip.visual.state_dict().items()}, tmp_path / "vit.pt")
    with pytest.raises(UnveilError, match="is no text tower to start from: it holds our own run without a text tower"):
        load_text(TextTower(TEXT, 12), alone)
