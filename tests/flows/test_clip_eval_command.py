"""`unveil clip eval`: from a CLIP and sets on disk to the tables and the report."""

import json
from pathlib import Path

import open_clip
import pytest
import torch

from tests.flows.commands import Unveil
from tests.tasks.embedders import ColourEmbedder, save_colour
from tests.tasks.miniature_benchmarks import MINIATURES
from tests.tasks.miniature_suites import write_json
from tests.tasks.miniature_videos import write_ucf101
from tests.tasks.test_retrieval_suites import karpathy, save_images

QUICK = ("--workers", 0, "--batch-size", 4, "--device", "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unveil"


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> ColourEmbedder:
    """Every CLIP that is asked for is the one that knows colours."""
    embedder = ColourEmbedder()
    monkeypatch.setattr("unveil.build.clip_models.load_clip", lambda name, **options: embedder)
    return embedder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of weights as open_clip has them, at random."""
    torch.manual_seed(0)
    tower = {"width": 64, "layers": 1}
    network = open_clip.model.CLIP(
        16,
        {"image_size": 16, "patch_size": 8, "head_width": 64, **tower},
        {"context_length": 77, "vocab_size": 49408, "heads": 1, **tower},
    )
    torch.save(network.state_dict(), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def write_eurosat(root: Path) -> None:
    """Classes of two words, one of them a colour: three pictures of four are answered rightly."""
    for name, colour, count in (("RedRoof", "red", 2), ("GreenField", "green", 1), ("BlueSea", "blue", 0)):
        (root / "eurosat/2750" / name).mkdir(parents=True)
        for number in range(count):
            save_colour(str(root / "eurosat/2750" / name / f"{number}.png"), colour, number)
    save_colour(str(root / "eurosat/2750/BlueSea/0.png"), "red")


def test_several_benchmarks_and_what_is_missing(colours: ColourEmbedder, tmp_path: Path, unveil: Unveil) -> None:
    sets, out = tmp_path / "sets", tmp_path / "reports/one"
    write_eurosat(sets)
    save_images(sets / "coco/val2014")
    write_json(sets / "coco/dataset_coco.json", karpathy("val2014"))
    answer = unveil("clip", "eval", "any", sets, "--suite", "all", "--out", out, *QUICK)
    assert answer.status == 0, answer.err
    lines = {line.split("  ")[0]: line.split() for line in answer.out.splitlines()}
    # Score, measure, top-1, within five of three classes, mean of 1, 1 and 0, classes, sentences, images.
    assert lines["EuroSAT"][1:] == ["75.00", "top-1", "75.00", "100.00", "66.67", "3", "2", "4"]
    assert lines["COCO"][-2:] == ["3", "6"] and lines["Flickr30k"][-1] == "-"
    for sentence in (
        f"food101 is left out: {sets} holds none of food-101",
        "eurosat: over all its images, since it has no official split",
        "eurosat: not the whole set: 4 images of 27,000",
        "the average over the paper's list of image sets is over 1 of its 27 sets",
    ):
        assert sentence in answer.out, sentence
    content = json.loads((out / "report.json").read_text())
    assert content["sets"]["eurosat"]["top1"] == 0.75 and content["model"] == "any" and content["frames"] == 1
    assert set(content["missing"]) >= {"food101", "ucf101", "flickr30k"}
    assert "| EuroSAT | 75.00 |" in (out / "table.md").read_text()


def test_a_real_network_and_its_classifier_from_the_cache(
    model: Path, cache: Path, tmp_path: Path, unveil: Unveil, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = tmp_path / "sets"
    MINIATURES["objectnet"].write(sets, monkeypatch)
    write_ucf101(sets)
    command = ("clip", "eval", model, sets, "--suite", "objectnet", "ucf101", "--frames", 2, *QUICK)
    first = unveil(*command)
    assert first.status == 0, first.err
    # 9 names in 80 sentences are worth keeping, 9 in 2 are not.
    assert len(list((cache / "zero_shot").iterdir())) == 1
    second = unveil(*command)
    assert second.out == first.out and "zero-shot classifier of 9 classes from" in second.err
    assert "features averaged over 2 frames" in first.out


def test_labelled_images_of_ones_own(colours: ColourEmbedder, tmp_path: Path, unveil: Unveil) -> None:
    write_eurosat(tmp_path)
    folder = tmp_path / "eurosat/2750"
    names, sentences = tmp_path / "names.txt", tmp_path / "sentences.txt"
    names.write_text("blue\ngreen\nred\n")
    sentences.write_text("something {}\nthe colour {}\n")
    lists = ("--class-names", names, "--templates", sentences)
    answer = unveil("clip", "eval", "any", folder, *lists, *QUICK)
    assert answer.status == 0, answer.err
    assert "75.00 %" in answer.out and "zero-shot, 2 sentences for each of 3 classes" in answer.out
    # The folders' own names hold no word that this CLIP knows: all is answered alike.
    assert "25.00 %" in unveil("clip", "eval", "any", folder, *QUICK).out
    names.write_text("blue\ngreen\n")
    answer = unveil("clip", "eval", "any", folder, *lists, *QUICK)
    assert answer.status == 1 and "has 2 names and" in answer.complaint and "3 classes" in answer.complaint


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--suite", "food"), "there is no suite 'food'"),
        (("--suite", "food101"), "food101 is left out"),
        (("--suite", "food101", "--frames", 0), "--frames is 0; give at least 1"),
        (("--suite", "food101", "--limit", 0), "--limit is 0; give at least 1"),
        (("--suite", "food101", "--class-names", "nowhere.json"), "nowhere.json does not exist"),
        (("--device", "tpu"), "--device tpu is not known"),
        ((), "holds no image"),
    ],
)
def test_what_cannot_be(
    arguments: tuple[object, ...], said: str, colours: ColourEmbedder, tmp_path: Path, unveil: Unveil
) -> None:
    (tmp_path / "sets").mkdir()
    answer = unveil("clip", "eval", "any", tmp_path / "sets", *(arguments or QUICK))
    assert answer.status == 1 and said in answer.complaint, answer.err
