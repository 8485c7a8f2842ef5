"""Whole CLIPs through `unveil convert` and `unveil export`: what they write, say and refuse."""

import json
from pathlib import Path

import pytest
import torch
from open_clip import create_model, get_tokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import unveil as package
from tests.flows.commands import Unveil
from tests.parity import tiny_clips
from unveil.config import ClipModelConfig, TextConfig, ViTConfig
from unveil.config.serialize import to_json
from unveil.models.clip import Clip

MODEL = ClipModelConfig(
    vision=ViTConfig(image_size=28, patch_size=7, width=48, depth=2, heads=4, mlp_width=96),
    text=TextConfig(context_length=16, width=48, heads=4, depth=1, mlp_width=96),
    embedding_width=12,
    projection_bias=False,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What `unveil clip train` leaves behind, as far as it is of use here; its recipe's sizes are in no shape."""
    torch.manual_seed(0)
    folder = tmp_path / "runs" / "mine"
    checkpoint = folder / "checkpoints" / "step_3"
    checkpoint.mkdir(parents=True)
    state = Clip(MODEL).state_dict()
    save_file({f"clip.{name}": value for name, value in state.items()}, checkpoint / "model.safetensors")
    config = {
        "kind": "ContrastiveConfig",
        "recipe": "mine",
        "model": to_json(MODEL),
        "data": {"normalization": "imagenet"},
        "optimization": {"steps": 3, "global_batch_size": 8, "optimizer": {"kind": "LAMBConfig", "learning_rate": 1.0}},
        "engine": {"precision": "fp32", "seed": 0},
        "vision_init": "runs/pretrained",
        "text_init": "weights/openai.pt",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_for_open_clip(unveil: Unveil, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    answer = unveil("export", run, "--to", "open_clip", "--out", out)
    assert answer.status == 0, answer.err
    assert "its answers to random images differ" in answer.out and f"local-dir:{out}" in answer.out
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    ours = package.load_clip(run, device="cpu")
    theirs = create_model(f"local-dir:{out}").eval()
    tokens = get_tokenizer(f"local-dir:{out}")(["a boot", "two coats"])
    with torch.no_grad():
        found = theirs.encode_text(tokens, normalize=True)
    torch.testing.assert_close(ours.encode_texts(["a boot", "two coats"]), found, atol=1e-5, rtol=1e-5)
    card = (out / "README.md").read_text()
    assert "ViT 48 wide, 2 deep, 4 heads, 28 px, patches of 7 px; text tower 48 wide, 1 deep" in card
    assert "started from `weights/openai.pt`" in card and "`runs/pretrained` (image tower)" in card
    again = unveil("export", run, "--to", "open_clip", "--out", out)
    assert again.status and "is there already; give --overwrite" in again.complaint
    back = package.load_clip(out / "open_clip_model.safetensors", device="cpu")
    torch.testing.assert_close(back.encode_texts(["a boot"]), found[:1], atol=1e-5, rtol=1e-5)


def test_a_run_as_one_file(unveil: Unveil, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "clip.safetensors"
    answer = unveil("export", run, "--to", "safetensors", "--out", file)
    assert answer.status == 0 and f'unveil.load_clip("{file}")' in answer.out
    first, second = (package.load_clip(path, device="cpu") for path in (run, file))
    assert first.identity == second.identity
    vision = package.load(file, device="cpu")
    assert vision.normalization == "imagenet" and vision.backbone.config == MODEL.vision
    with safe_open(file, framework="pt") as opened:
        assert json.loads(opened.metadata()["unveil.model"]) == to_json(MODEL)


def test_the_image_tower_of_a_run_for_onnx_and_timm_stays_alone(unveil: Unveil, run: Path, tmp_path: Path) -> None:
    answer = unveil("export", run, "--to", "timm", "--out", tmp_path / "timm")
    assert answer.status == 0, answer.err
    assert not any(name.startswith("text") for name in load_file(tmp_path / "timm" / "model.safetensors"))


def test_one_network_is_no_clip(unveil: Unveil, tmp_path: Path) -> None:
    vision = Clip(MODEL).visual.state_dict()
    save_file({f"backbone.{name}": value for name, value in vision.items()}, tmp_path / "vit.safetensors")
    answer = unveil("export", tmp_path / "vit.safetensors", "--to", "open_clip", "--out", tmp_path / "out")
    assert answer.status and "is no whole CLIP: it holds our own run without a text tower" in answer.complaint
    assert not (tmp_path / "out").exists()


def test_eva_clip_through_every_layout(unveil: Unveil, tmp_path: Path) -> None:
    released = tiny_clips.eva_clip()
    torch.save(released, tmp_path / "eva_clip.pt")
    steps = (("native", "a.safetensors"), ("open_clip", "b.safetensors"), ("native", "c.pt"), ("eva", "d.safetensors"))
    source = tmp_path / "eva_clip.pt"
    for layout, name in steps:
        heads = () if source.suffix == ".safetensors" else ("--set", "model.heads=2")
        answer = unveil("convert", source, "--to", tmp_path / name, "--format", layout, *heads)
        assert answer.status == 0, answer.err
        source = tmp_path / name
    state = load_file(source)
    assert state.keys() == released.keys() and all(torch.equal(state[name], released[name]) for name in state)
    assert load_file(tmp_path / "b.safetensors").keys() == tiny_clips.with_trunk().state_dict().keys()
    with safe_open(tmp_path / "b.safetensors", framework="pt") as opened:
        said = json.loads(opened.metadata()["unveil.model"])
    assert said["kind"] == "ClipModelConfig" and said["text"]["heads"] == 2 and said["projection_bias"]


def test_openais_layout_has_no_place_for_a_bias(unveil: Unveil, tmp_path: Path) -> None:
    torch.save(tiny_clips.eva_clip(), tmp_path / "eva_clip.pt")
    answer = unveil("convert", tmp_path / "eva_clip.pt", "--to", tmp_path / "out.pt", "--format", "openai")
    assert answer.status and "has no place in OpenAI's CLIP layout" in answer.complaint


def test_a_text_tower_of_unknown_heads_is_said(unveil: Unveil, run: Path, tmp_path: Path) -> None:
    state = load_file(run / "checkpoints" / "step_3" / "model.safetensors")
    torch.save({name.removeprefix("clip."): value for name, value in state.items()}, tmp_path / "clip.pt")
    arguments = ("--to", tmp_path / "out.safetensors", "--set", "model.heads=4")
    answer = unveil("convert", tmp_path / "clip.pt", *arguments)
    assert answer.status == 0 and "check: the new file says its image tower's sizes only" in answer.out
    told = unveil("convert", tmp_path / "clip.pt", *arguments, "--set", "model.text.heads=4", "--overwrite")
    assert told.status == 0 and "check:" not in told.out
    first, second = (package.load_clip(path, device="cpu") for path in (run, tmp_path / "out.safetensors"))
    torch.testing.assert_close(first.encode_texts(["a boot"]), second.encode_texts(["a boot"]))
    wrong = unveil("convert", tmp_path / "clip.pt", *arguments, "--set", "model.text.width=4", "--overwrite")
    assert wrong.status and "only model.text.heads, model.text.activation can be set" in wrong.complaint
    unveil("convert", tmp_path / "clip.pt", *arguments, "--overwrite")
    whole = unveil("export", tmp_path / "out.safetensors", "--to", "safetensors", "--out", tmp_path / "again")
    assert whole.status and "no published text tower is 48 wide" in whole.complaint
