"""`unveil.load_clip`: our own files and runs, and whatever open_clip can build, each with its own preprocessing."""

import dataclasses
import json
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import unveil
from tests.data.conftest import make_photo
from unveil.build.clip_export import export_clip
from unveil.build.image_batches import PreparedView
from unveil.config import ClipModelConfig, TextConfig, UnveilError, ViTConfig
from unveil.config.serialize import to_json
from unveil.data.sources.base import Sample
from unveil.models.clip import Clip
from unveil.tasks.contrastive.embedder import Embedder
from unveil.weights.clip import read_clip
from unveil.weights.own import native_names
from unveil.weights.write import notes, write_weights

CONFIG = ClipModelConfig(
    vision=ViTConfig(image_size=32, patch_size=8, width=32, depth=1, heads=2, mlp_width=64),
    text=TextConfig(context_length=16, width=32, heads=2, depth=1, mlp_width=64),
    embedding_width=12,
    projection_bias=False,
)
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "unveil-test-vit": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
        "text_cfg": TEXT,
        "quick_gelu": True,
    },
    "unveil-test-resnet": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
    },
}
TEXTS = ["a photo of a cat", "", "a very long story " * 20]


@pytest.fixture(scope="module", autouse=True)
def known_to_open_clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Other tests go through all of open_clip's models: afterwards these are gone."""
    folder = tmp_path_factory.mktemp("descriptions")
    for name, description in DESCRIPTIONS.items():
        (folder / f"{name}.json").write_text(json.dumps(description))
    open_clip.add_model_config(folder)
    yield
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    for name in DESCRIPTIONS:
        del open_clip.factory._MODEL_CONFIGS[name]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    state = Clip(CONFIG).state_dict()
    names = native_names(state)
    file = tmp_path_factory.mktemp("ours") / "clip.safetensors"
    known = {"model": to_json(CONFIG), "normalization": "half"}
    native = {names[name]: value for name, value in state.items()}
    write_weights(file, native, notes(known, layout="native", source=file.parent))
    return file


def pictures() -> list[Image.Image]:
    return [make_photo(0, 50, 40), make_photo(1, 32, 70).convert("L"), make_photo(2, 33, 33).convert("RGBA")]


def test_a_file_of_ours_is_an_embedder(ours: Path) -> None:
    model = unveil.load_clip(ours, device="cpu")
    assert isinstance(model, Embedder)
    assert (model.name, model.image_size, model.width, model.context_length) == (str(ours), 32, 12, 16)
    assert model.logit_scale == pytest.approx(1 / 0.07) and model.logit_bias == 0.0
    images = torch.stack([model.transform(picture) for picture in pictures()])
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 32, 32)
    found = read_clip(ours)
    clip = Clip(found.config).eval()
    clip.load_state_dict(found.state)
    tokens = open_clip.SimpleTokenizer(context_length=16)(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_images(images), clip.encode_images((images / 255 - 0.5) / 0.5))
        torch.testing.assert_close(model.encode_texts(TEXTS), clip.encode_texts(tokens))
    assert model.encode_texts([]).shape == (0, 12)
    assert not model.encode_texts(TEXTS).requires_grad


def test_many_texts_are_taken_a_few_at_a_time(ours: Path) -> None:
    model = unveil.load_clip(ours, device="cpu")
    many = [f"picture number {number}" for number in range(300)]
    together = model.encode_texts(many)
    assert together.shape == (300, 12)
    torch.testing.assert_close(together[[0, 255, 256, 299]], model.encode_texts([many[i] for i in (0, 255, 256, 299)]))


def test_identity_is_that_of_weights_and_settings(ours: Path, tmp_path: Path) -> None:
    first = unveil.load_clip(ours, device="cpu").identity
    assert unveil.load_clip(ours, device="cpu").identity == first
    others = [
        unveil.load_clip(ours, device="cpu", precision="bf16").identity,
        unveil.load_clip(ours, device="cpu", normalization="clip").identity,
        unveil.load_clip(ours, device="cpu", settings=("model.text.heads=4",)).identity,
    ]
    moved = load_file(ours)
    moved["text.norm.bias"][0] += 1e-6
    known = {"model": to_json(CONFIG), "normalization": "half"}
    write_weights(tmp_path / "other.safetensors", moved, notes(known, layout="native", source=tmp_path))
    others.append(unveil.load_clip(tmp_path / "other.safetensors", device="cpu").identity)
    assert len({first, *others}) == 5 and len(first) == 64


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_model_of_open_clips_with_a_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, _, preprocess = open_clip.create_model_and_transforms(name)
    theirs.eval()
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"module.{part}": value for part, value in theirs.state_dict().items()}}, file)
    model = unveil.load_clip(f"{name}/{file}", device="cpu")
    assert isinstance(model, Embedder)
    images = torch.stack([model.transform(picture) for picture in pictures()])
    expected = torch.stack([preprocess(picture.convert("RGB")) for picture in pictures()[:1]])
    tokens = open_clip.get_tokenizer(name)(TEXTS)
    with torch.no_grad():
        found = theirs.encode_image(expected, normalize=True)
        torch.testing.assert_close(model.encode_images(images)[:1], found, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.encode_texts(TEXTS), theirs.encode_text(tokens, normalize=True))
    assert (model.width, model.context_length, model.image_size) == (12, 16, 32)
    with pytest.raises(UnveilError, match="the weights of .* are not those of such a model"):
        other = next(other for other in DESCRIPTIONS if other != name)
        unveil.load_clip(f"{other}/{file}", device="cpu")


def test_a_folder_as_open_clip_keeps_them(ours: Path, tmp_path: Path) -> None:
    exported = export_clip(read_clip(ours), to="open_clip", out=tmp_path / "exported", source=ours)
    assert exported.difference < 1e-5
    found, expected = unveil.load_clip(tmp_path / "exported", device="cpu"), unveil.load_clip(ours, device="cpu")
    images = torch.stack([expected.transform(picture) for picture in pictures()])
    torch.testing.assert_close(found.encode_images(images), expected.encode_images(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.encode_texts(TEXTS), expected.encode_texts(TEXTS), atol=1e-5, rtol=1e-5)
    assert found.mean == (0.5, 0.5, 0.5) and found.logit_scale == expected.logit_scale
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'exported'}")
    assert theirs.visual.preprocess_cfg["mean"] == [0.5, 0.5, 0.5]
    (tmp_path / "exported" / "open_clip_model.safetensors").unlink()
    with pytest.raises(UnveilError, match="has an open_clip_config.json and none of open_clip_model.safetensors"):
        unveil.load_clip(tmp_path / "exported")
    (tmp_path / "exported" / "model.safetensors").touch()
    (tmp_path / "exported" / "open_clip_config.json").write_text("{")
    with pytest.raises(UnveilError, match="is not a description of open_clip's"):
        unveil.load_clip(tmp_path / "exported")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_base_patch16_clip_224.openai", "timm's vit_base_patch16_clip_224.openai is an image tower"),
        ("timm/vit_base_patch16_clip_224.openai", "is an image tower, and there is no text tower with it"),
        ("ViT-B-32/opnai", "the model ViT-B-32/opnai is not known to timm or open_clip; did you mean"),
        ("ViT-B-99", "is not known"),
        ("weights/clip.pt", "weights/clip.pt does not exist"),
        (
            "runs/my_clip_run",
            "the model runs/my_clip_run is not known .*and as a path: runs/my_clip_run does not exist",
        ),
        ("no-such-model/{file}", "no-such-model is not known to timm or open_clip"),
    ],
)
def test_names_that_are_no_clip(name: str, words: str, ours: Path) -> None:
    with pytest.raises(UnveilError, match=words):
        unveil.load_clip(name.format(file=ours))


def test_without_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnveilError, match="the model ViT-B-32/openai is not in the hub's cache .* run's folder"):
        unveil.load_clip("ViT-B-32/openai")


def test_an_image_tower_alone(tmp_path: Path) -> None:
    vision = Clip(CONFIG).visual.state_dict()
    save_file({f"backbone.{name}": value for name, value in vision.items()}, tmp_path / "vit.safetensors")
    with pytest.raises(UnveilError, match="is no whole CLIP: it holds our own run without a text tower"):
        unveil.load_clip(tmp_path / "vit.safetensors")


def test_a_device_that_is_not_there(ours: Path) -> None:
    with pytest.raises(UnveilError, match="device 'nonsense' cannot be used here"):
        unveil.load_clip(ours, device="nonsense")


def test_half_precision_stays_close(ours: Path) -> None:
    exact, rounded = (unveil.load_clip(ours, device="cpu", precision=kind) for kind in ("fp32", "bf16"))
    images = torch.stack([exact.transform(picture) for picture in pictures()])
    for found, expected in (
        (rounded.encode_images(images), exact.encode_images(images)),
        (rounded.encode_texts(TEXTS), exact.encode_texts(TEXTS)),
    ):
        assert found.dtype == torch.float32
        assert (found * expected).sum(dim=1).min() > 0.99
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_other_text_sizes_are_kept(tmp_path: Path) -> None:
    longer = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, context_length=20))
    state = Clip(longer).state_dict()
    names = native_names(state)
    file = tmp_path / "clip.safetensors"
    native = {names[name]: value for name, value in state.items()}
    write_weights(file, native, notes({"model": to_json(longer)}, layout="native", source=tmp_path))
    model = unveil.load_clip(file, device="cpu")
    assert model.context_length == 20 and model.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


@pytest.mark.parametrize("named", [False, True])
def test_what_workers_are_sent_is_picklable_and_not_the_model(named: bool, ours: Path, tmp_path: Path) -> None:
    """Processes that are started anew, not forked, get it so. Our own preparation and open_clip's."""
    name: Any = ours
    if named:
        torch.save(open_clip.create_model("unveil-test-vit").state_dict(), tmp_path / "weights.pt")
        name = f"unveil-test-vit/{tmp_path / 'weights.pt'}"
    model = unveil.load_clip(name, device="cpu")
    sent = pickle.dumps(PreparedView(model.transform, model.image_size))
    assert len(sent) < 5_000
    sample = Sample(make_photo(1, 50, 40), "photo", None, 0)
    seen = pickle.loads(sent)(sample, random.Random(0))["image"]
    assert torch.equal(seen, model.transform(sample.image))
