"""`unveil.load` with RevColV2: runs and exported files, what they answer, and how they are exported."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import unveil
from tests.api.runs import CLASSES, COLUMNS, save_columns, save_columns_classifier
from unveil.build.deployable import Deployable
from unveil.build.export import Kind, export
from unveil.config import UnveilError
from unveil.data.normalization import normalize
from unveil.models.revcolv2 import RevColV2
from unveil.weights.infer import known_about
from unveil.weights.load import read_backbone


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_columns(tmp_path_factory.mktemp("columns") / "run", Path("photos"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_columns_classifier(tmp_path_factory.mktemp("columns") / "classifier")


def pictures(count: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def columns_of(run: Path) -> tuple[RevColV2, dict[str, Tensor]]:
    """The network with all its levels, filled by hand."""
    state = read_backbone(run)[1]
    network = RevColV2(COLUMNS, mask_token=any("mask_tokens" in name for name in state))
    network.load_state_dict({name: state[f"backbone.{name}"] for name in network.state_dict()})
    return network.eval(), state


def test_features_are_the_coarsest_level_of_the_last_column(run: Path) -> None:
    model = unveil.load(run, device="cpu")
    assert (model.image_size, model.size_unit, model.stride, model.classifier) == (32, 16, 8, None)
    images = pictures(3, (48, 32))
    found = model.features(images, batch_size=2)
    network, _ = columns_of(run)
    with torch.no_grad():
        levels = network.feature_maps(normalize(images, "imagenet"))
    assert found.grid == (6, 4)
    torch.testing.assert_close(found.patches, levels[8].flatten(2).transpose(1, 2))
    torch.testing.assert_close(found.mean, levels[8].mean(dim=(2, 3)))
    assert torch.equal(found.cls, found.mean)
    maps = model.feature_maps(images)
    assert [(stride, tuple(one.shape)) for stride, one in maps.items()] == [
        (2, (3, 8, 24, 16)),
        (4, (3, 12, 12, 8)),
        (8, (3, 16, 6, 4)),
    ]
    torch.testing.assert_close(maps[2], levels[2])


def test_a_classifier_answers_with_the_head_on_their_mean(classifier: Path) -> None:
    model = unveil.load(classifier, device="cpu")
    assert model.classes == CLASSES and model.crop.share == 0.8
    images = pictures(2)
    network, state = columns_of(classifier)
    with torch.no_grad():
        mean = network.feature_maps(normalize(images, "imagenet"))[8].mean(dim=(2, 3))
    normed = torch.nn.functional.layer_norm(mean, (16,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
    expected = (normed @ state["head.weight"].T + state["head.bias"]).softmax(dim=1)
    for answers, row in zip(model.predict(images, top_k=4), expected, strict=True):
        assert [p for _, p in answers] == pytest.approx(row.sort(descending=True).values.tolist(), abs=1e-5)
        assert answers[0][0] == CLASSES[row.argmax()]


def test_what_a_revcolv2_cannot_answer_is_said(run: Path) -> None:
    model = unveil.load(run, device="cpu")
    with pytest.raises(UnveilError, match="no cls token"):
        model.attention(pictures(1), block=0)
    with pytest.raises(UnveilError, match="no classification head"):
        model.predict(pictures(1))
    with pytest.raises(UnveilError, match="does not divide into units of 16"):
        model.features(pictures(1, (40, 32)))
    with pytest.raises(UnveilError, match="says all sizes"):
        unveil.load(run, device="cpu", settings=["model.heads=4"])


def deployable(run: Path) -> Deployable:
    model = unveil.load(run, device="cpu")
    return Deployable(model.backbone, model.classifier, model.normalization)


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
@pytest.mark.parametrize("which", ["run", "classifier"])
def test_exports_give_the_same_answers(kind: Kind, which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`export` opens what it wrote and compares; here its card and its names are read."""
    source = request.getfixturevalue(which)
    batch_size = None if which == "classifier" else 2
    exported = export(deployable(source), to=kind, out=tmp_path, source=source, batch_size=batch_size)
    assert exported.difference < 1e-5
    card = exported.card.read_text()
    assert "RevColV2 (reconstruction), 2 + 2 columns of 8 12 16, 0.0 M parameters, 32 px" in card
    assert ("logits" if which == "classifier" else "mean, patches") in card
    assert "units of 16 px are hidden as a whole" in card


def test_a_file_of_ours_is_read_back(run: Path, classifier: Path, tmp_path: Path) -> None:
    images = pictures(2)
    for source in (run, classifier):
        model = unveil.load(source, device="cpu")
        file = tmp_path / f"{source.name}.safetensors"
        written = export(
            deployable(source), to="safetensors", out=file, source=source, classes=model.classes, crop_share=0.8
        )
        assert written.file == file and known_about(file)["model"]["kind"] == "RevColV2Config"
        again = unveil.load(file, device="cpu")
        assert (again.classes, again.normalization, again.crop.share) == (model.classes, "imagenet", 0.8)
        assert again.backbone.config == COLUMNS
        assert torch.equal(again.features(images).patches, model.features(images).patches)


def test_timm_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="timm has no RevColV2"):
        export(deployable(run), to="timm", out=tmp_path / "timm", source=run)
    assert not (tmp_path / "timm").exists()
