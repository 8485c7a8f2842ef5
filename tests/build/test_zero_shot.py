"""Zero-shot scores of labelled images, on one process and on two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from tests.distributed.processes import together
from tests.tasks.embedders import COLOURS, ColourEmbedder, save_colour
from unveil.build.evaluation import ReadingSettings
from unveil.build.zero_shot import zero_shot_average_precision, zero_shot_scores
from unveil.config import UnveilError
from unveil.data.sources.labelled import open_labelled
from unveil.data.sources.open import open_images
from unveil.engine import Parallel
from unveil.tasks.contrastive.zero_shot import zero_shot_classifier

NAMES = ("red", "green", "blue")
SETTINGS = ReadingSettings(batch_size=3)


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 red, 4 green and 2 blue ones; two that are called red are green, one blue one is broken."""
    folder = tmp_path_factory.mktemp("flags")
    for name, count in zip(NAMES, (8, 4, 2), strict=True):
        (folder / name).mkdir()
        for number in range(count):
            save_colour(folder / name / f"{number}.png", "green" if name == "red" and number < 2 else name, number)
    (folder / "blue" / "broken.png").write_bytes(b"no picture")
    return folder


def scored(flags: Path, batch_size: int) -> dict[str, Any]:
    with Parallel.start("cpu") as parallel:
        source, classes = open_labelled([str(flags)], classes=NAMES)
        classifier = zero_shot_classifier(ColourEmbedder(), classes)
        return zero_shot_scores(classifier, source, ReadingSettings(batch_size=batch_size), parallel)


def test_scores_of_a_labelled_folder(flags: Path) -> None:
    found = scored(flags, 3)
    assert found["images"] == 14 and found["top1"] == pytest.approx(12 / 14) and found["top5"] == 1.0
    assert found["mean_class_accuracy"] == pytest.approx((6 / 8 + 1 + 1) / 3)
    assert found["per_class"]["red"] == {"accuracy": 0.75, "images": 8}
    assert found["confusion"] == [[6, 2, 0], [0, 4, 0], [0, 0, 2]]
    assert list(found["unreadable"]) == [str(flags / "blue" / "broken.png")]


def precise(flags: Path) -> dict[str, Any]:
    with Parallel.start("cpu") as parallel:
        source = open_images([str(flags)])
        names = [source.stamp(place).name for place in range(len(source))]
        targets = torch.tensor([[name in path or "/0." in path for name in NAMES] for path in names])
        classifier = zero_shot_classifier(ColourEmbedder(), NAMES)
        return zero_shot_average_precision(classifier, source, targets, SETTINGS, parallel)


def test_average_precision_of_images_with_several_classes(flags: Path) -> None:
    found = precise(flags)
    classifier = zero_shot_classifier(ColourEmbedder(), NAMES)
    files = sorted(file for file in flags.rglob("*.png") if file.name != "broken.png")
    pictures = torch.stack([classifier.embedder.transform(Image.open(file)) for file in files])
    logits = classifier.logits(pictures)
    assert found["images"] == 14 and list(found["per_class"]) == list(NAMES)
    values = []
    for number, name in enumerate(NAMES):
        wanted = [name == file.parent.name or file.name == "0.png" for file in files]
        values.append(average_precision_score(wanted, logits[:, number].double().numpy()))
        assert found["per_class"][name] == {
            "average_precision": pytest.approx(values[-1]),
            "images": sum(wanted),
        }
    assert found["mean_average_precision"] == pytest.approx(sum(values) / 3)
    assert 0.3 < found["mean_average_precision"] < 1.0


def both(flags: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return scored(flags, 2), precise(flags)


def test_two_processes_find_what_one_finds(flags: Path) -> None:
    scores, precision = both(flags)
    for its_scores, its_precision in together(2, both, flags):
        for name in ("loss", "calibration_error"):
            assert its_scores.pop(name) == pytest.approx(scores[name], abs=1e-9)
        assert its_scores == {name: value for name, value in scores.items() if name in its_scores}
        assert its_precision == precision


def test_targets_of_another_shape(flags: Path) -> None:
    classifier = zero_shot_classifier(ColourEmbedder(), tuple(COLOURS))
    source = open_images([str(flags)])
    with Parallel.start("cpu") as parallel, pytest.raises(UnveilError, match=r"must be \(15, 4\), images by classes"):
        zero_shot_average_precision(classifier, source, torch.zeros(15, 3, dtype=torch.bool), SETTINGS, parallel)
