"""What `unveil.load` gives of runs and files, against the networks called by hand."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import unveil
from tests.api.runs import CLASSES, TINY, classifier, save_classifier, save_pretraining
from unveil.config import UnveilError
from unveil.tasks.classification.task import Pooling

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
"""ImageNet's, as everybody has them."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("run"), averaged=True)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def normalized(images: Tensor) -> Tensor:
    return (images / 255 - MEAN[:, None, None]) / STD[:, None, None]


def test_features_are_the_networks_own(run: Path, images: Tensor) -> None:
    model = unveil.load(run, weights="raw", device="cpu")
    features = model.features(images, batch_size=2)
    with torch.no_grad():
        wanted = classifier("mean", 0).backbone(normalized(images))
    torch.testing.assert_close(features.cls, wanted.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.patches, wanted.patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.mean, wanted.patches.mean(dim=1), atol=1e-5, rtol=1e-5)
    assert features.grid == (4, 4)
    # A probe may be trained on them.
    (features.mean @ torch.ones(48, 1, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_predictions_are_the_softmax_of_the_head(pooling: Pooling, tmp_path: Path, images: Tensor) -> None:
    model = unveil.load(save_classifier(tmp_path / "run", pooling=pooling), device="cpu")
    task = classifier(pooling, 0)
    with torch.no_grad():
        tokens = task.backbone(normalized(images))
        pooled = tokens.cls if pooling == "cls" else task.fc_norm(tokens.patches.mean(dim=1))
        scores = (pooled @ task.head.weight.T + task.head.bias).exp()
    shares = (scores / scores.sum(dim=1, keepdim=True)).tolist()
    found = model.predict(images, top_k=3, batch_size=2)
    for answers, row in zip(found, shares, strict=True):
        wanted = sorted(zip(CLASSES, row, strict=True), key=lambda pair: -pair[1])[:3]
        assert [label for label, _ in answers] == [label for label, _ in wanted]
        assert [p for _, p in answers] == pytest.approx([p for _, p in wanted], abs=1e-5)
    everything = model.predict(images[:1], top_k=99)[0]
    assert len(everything) == 4 and sum(p for _, p in everything) == pytest.approx(1.0)


def test_a_run_gives_its_average_and_says_so(run: Path, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="unveil"):
        model = unveil.load(run, device="cpu")
    assert "the averaged weights are taken; --weights raw" in caplog.text
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(images), classifier("mean", 1).logits(normalized(images)), atol=1e-4, rtol=1e-4
        )
    assert model.classes == CLASSES
    assert model.config is not None and model.config["recipe"] == "tiny"
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_the_crop_is_the_one_of_evaluation(tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 56, 3), dtype=np.uint8))
    whole = unveil.load(save_classifier(tmp_path / "a"), device="cpu")
    assert torch.equal(whole.transform(picture), as_tensor(picture.resize((28, 28), 3, box=(0, 12, 56, 68))))
    half = unveil.load(save_classifier(tmp_path / "b", test_crop=0.5), device="cpu")
    assert torch.equal(half.transform(picture), as_tensor(picture.resize((28, 28), 3, box=(14, 26, 42, 54))))


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())


def test_unusual_pictures_are_seen_as_their_colours(run: Path, tmp_path: Path) -> None:
    model = unveil.load(run, device="cpu")
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    cut_out = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    sixteen = Image.fromarray(np.repeat(np.uint16([[32768], [65535]]), 20, axis=0).repeat(40, axis=1))
    blue = Image.new("RGB", (40, 40), (0, 0, 255))
    red.convert("CMYK").save(tmp_path / "cmyk.tif")
    red.convert("P").save(tmp_path / "palette.png")
    red.save(tmp_path / "animated.gif", save_all=True, append_images=[blue])
    cut_out.save(tmp_path / "transparent.png")
    sixteen.save(tmp_path / "sixteen.png")
    for name in ("cmyk.tif", "palette.png", "animated.gif"):
        seen = model.transform(Image.open(tmp_path / name))
        assert (seen.float().mean(dim=(1, 2)) - torch.tensor([255.0, 0, 0])).abs().max() < 3, name
    assert model.transform(Image.open(tmp_path / "transparent.png")).min() == 255
    bright = model.transform(Image.open(tmp_path / "sixteen.png"))
    assert abs(int(bright[0, 3, 5]) - 128) <= 1 and int(bright[0, 24, 5]) == 255
    files = sorted(tmp_path.iterdir())
    assert model.predict(files) == model.predict([Image.open(file) for file in files])
    assert torch.equal(model.features(files).mean, model.features([str(file) for file in files]).mean)


def test_a_photo_on_its_side_is_turned(run: Path) -> None:
    model = unveil.load(run, device="cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    sideways = picture.rotate(90)
    sideways.getexif()[0x0112] = 6
    assert torch.equal(model.transform(sideways), model.transform(picture))


def test_nothing_gives_nothing(run: Path) -> None:
    model = unveil.load(run, device="cpu")
    assert model.predict([]) == []
    features = model.features([])
    assert features.cls.shape == features.mean.shape == (0, 48) and features.patches.shape == (0, 16, 48)


def test_files_that_are_not_there_or_not_images(run: Path, tmp_path: Path) -> None:
    model = unveil.load(run, device="cpu")
    (tmp_path / "cat.jpg").write_text("not an image")
    with pytest.raises(UnveilError, match=r"dat\.jpg does not exist; did you mean .*cat\.jpg\?"):
        model.predict([tmp_path / "dat.jpg"])
    with pytest.raises(UnveilError, match=r"cat\.jpg: not an image"):
        model.features([tmp_path / "cat.jpg"])
    with pytest.raises(UnveilError, match="top_k is 0"):
        model.predict([], top_k=0)


def test_without_a_head_it_says_how_to_get_one(tmp_path: Path, images: Tensor) -> None:
    model = unveil.load(save_pretraining(tmp_path / "run", tmp_path), device="cpu")
    assert model.classes == () and model.classifier is None
    assert model.features(images).patches.shape == (5, 16, 48)
    for ask in (model.predict, model.logits):
        with pytest.raises(UnveilError, match=r"has no classification head.*unveil finetune classification DATA"):
            ask(images)


def test_a_file_alone_lacks_what_no_shape_tells(tmp_path: Path, images: Tensor) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(classifier("mean", 0).state_dict(), file)
    with pytest.raises(UnveilError, match=r"model\.heads"):
        unveil.load(file)
    model = unveil.load(file, settings=["model.heads=3"], normalization="imagenet", device="cpu")
    assert model.classes == ("0", "1", "2", "3")
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(images), classifier("mean", 0).logits(normalized(images)), atol=1e-4, rtol=1e-4
        )


def test_other_sizes_and_attention(run: Path) -> None:
    model = unveil.load(run, device="cpu")
    large = torch.zeros(2, 3, 42, 28, dtype=torch.uint8)
    assert model.features(large).grid == (6, 4) and model.features(large).patches.shape == (2, 24, 48)
    attention = model.attention(large, block=1)
    assert attention.shape == (2, 3, 25, 25)
    torch.testing.assert_close(attention.sum(dim=3), torch.ones(2, 3, 25))
    with pytest.raises(UnveilError, match=r"no 'blocks\.2\.attn'"):
        model.attention(large, block=2)


def test_half_precision_is_close(run: Path, images: Tensor) -> None:
    exact, rounded = (unveil.load(run, device="cpu", precision=name) for name in ("fp32", "bf16"))
    assert exact.precision.format == "fp32"
    difference = (exact.features(images).mean - rounded.features(images).mean).abs().max()
    assert 0 < difference < 0.1 * exact.features(images).mean.abs().max()
    assert rounded.logits(images).dtype == torch.float32


def test_devices_that_are_not_there(run: Path) -> None:
    for name in ("gpu", "cuda:77"):
        with pytest.raises(UnveilError, match=f"device '{name}' cannot be used here"):
            unveil.load(run, device=name)


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, unveil; print({'torch', 'numpy', 'PIL', 'tyro'} & set(sys.modules), 'load' in dir(unveil))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "set() True"
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        unveil.lode  # noqa: B018
    assert TINY.grid == (4, 4)
