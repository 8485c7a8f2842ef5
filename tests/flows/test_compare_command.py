"""`unveil compare` from the command line: rows, table, picture; going on; adding to it; what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.flows.commands import Unveil, save_photo
from tests.recipes.test_recipe_steps import write_clip

QUICK = (
    *("--workers", 0, "--set", "pretrain.engine.trackers=", "--set", "finetune.engine.trackers="),
    *("--set", "pretrain.engine.precision=fp32", "--set", "finetune.engine.precision=fp32"),
    *("--set", "probe.engine.precision=fp32", "--set", "finetune.model.drop_path=0"),
    *("--finetune", "finetune_tiny_cpu", "--set", "finetune.optimization.steps=2"),
)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flowers")
    for number in range(24):
        save_photo(folder / "train" / ("rose", "tulip")[number % 2] / f"{number}.png", number)
    for number in range(24, 32):
        save_photo(folder / "val" / ("rose", "tulip")[number % 2] / f"{number}.png", number)
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "comparison.json").read_text())["rows"]


def test_rows_table_and_picture_and_nothing_twice(flowers: Path, tmp_path: Path, unveil: Unveil) -> None:
    out = tmp_path / "compared"
    command = ("compare", "tiny_cpu", "--data", flowers, "--out", out, "--teacher", "hog", "--labels", 8, *QUICK)
    first = unveil(*command, "--epochs", 1)
    assert first.status == 0, first.err
    rows = rows_of(out)
    # HOG is no network: it has no row.
    assert [(row["name"], row["epochs"]) for row in rows] == [("scratch", None), ("tiny_cpu", 1.0)]
    assert rows[1]["images_seen"] == 24
    for row in rows:
        assert len(row["probe"]) == len(row["finetune"]) == 1
        assert all(0.0 <= value <= 1.0 for value in row["probe"] + row["finetune"])
    table = (out / "comparison.md").read_text()
    assert table in first.out and "| tiny_cpu | 1 | 24 |" in table
    assert "linear probe, all labels" in table and "fine-tuning, 8 labels" in table
    assert Image.open(out / "comparison.png").size[0] > 500
    assert "tiny_cpu/epochs_1/seed_0/pretrain\n" in first.out and "tiny_cpu/epochs_1/seed_0/finetune_0\n" in first.out

    longer = unveil(*command, "--epochs", 1, 2)
    assert longer.status == 0, longer.err
    assert "epochs_1/" not in longer.out and "tiny_cpu/epochs_2/seed_0/pretrain\n" in longer.out
    assert rows_of(out)[:2] == rows and rows_of(out)[2]["images_seen"] == 48

    more = unveil(*command, "--epochs", 1, "--seeds", 2)
    assert more.status == 0, more.err
    assert "seed_0" not in more.out and "tiny_cpu/epochs_1/seed_1/pretrain\n" in more.out
    later = rows_of(out)
    assert [(row["name"], len(row["probe"]), len(row["finetune"])) for row in later] == [
        ("scratch", 2, 2),
        ("tiny_cpu", 2, 2),
    ]
    assert later[1]["probe"][0] == rows[1]["probe"][0]

    shutil.rmtree(out / "tiny_cpu" / "epochs_1" / "seed_0" / "probe")
    mended = unveil(*command, "--epochs", 1, "--seeds", 2)
    assert mended.out.count("seed_0") == 1 and rows_of(out) == later

    other = unveil(*command, "--epochs", 1, "--set", "pretrain.masking.ratio=0.5")
    assert other.status == 1
    assert "masking.ratio = 0.4" in other.complaint and "--out another folder" in other.complaint


def test_a_teacher_that_is_a_vit_is_fine_tuned(flowers: Path, tmp_path: Path, unveil: Unveil) -> None:
    """And recipes of different pretext tasks stand in one table."""
    write_clip(tmp_path / "clip.pt", 14)
    out = tmp_path / "compared"
    answer = unveil(
        *("compare", "tiny_cpu", "distillation_small_cpu", "--data", flowers, "--out", out, "--epochs", 1),
        *("--teacher", tmp_path / "clip.pt", *QUICK, "--without", "scratch"),
        *("--set", "pretrain.model.width=32", "--set", "pretrain.model.heads=2", "--set", "pretrain.model.depth=2"),
        *("--set", "pretrain.optimization.global_batch_size=8", "--set", "pretrain.model.patch_size=8"),
    )
    assert answer.status == 0, answer.err
    teacher, regression, distillation = rows_of(out)
    assert teacher["name"] == "teacher clip.pt" and len(teacher["finetune"]) == 1
    assert (regression["name"], distillation["name"]) == ("tiny_cpu", "distillation_small_cpu")
    assert distillation["losses"][0] > 0 > regression["losses"][0] or torch.isfinite(torch.tensor(regression["losses"]))


def test_a_teacher_that_is_no_vit_is_fine_tuned_too(flowers: Path, tmp_path: Path, unveil: Unveil) -> None:
    """The embedded one: with all labels, with few, and in a folder whose other rows are finished."""
    out = tmp_path / "compared"
    command = ("compare", "tiny_cpu", "--data", flowers, "--out", out, "--epochs", 1, *QUICK, "--without", "scratch")
    assert unveil(*command, "teacher").status == 0
    answer = unveil(*command, "--seeds", 2)
    assert answer.status == 0, answer.err
    teacher, tiny = rows_of(out)
    assert teacher["name"] == "teacher embedded" and len(teacher["probe"]) == 1 and len(teacher["finetune"]) == 2
    assert len(tiny["finetune"]) == 2 and teacher["note"] == ""
    assert "teacher_embedded/seed_1/finetune_0\n" in answer.out
    assert "tiny_cpu/epochs_1/seed_0" not in answer.out
    settings = json.loads((out / "teacher_embedded/seed_0/finetune_0/result.json").read_text())["settings"]
    assert settings["model.target.kind"] == "EmbeddedTarget" and settings["model.image_size"] == 128
    assert settings["optimization.steps"] == 2 and "model.width" not in settings

    again = unveil(*command, "--seeds", 2)
    assert again.status == 0 and "seed_" not in again.out
    other = unveil(*command, "--set", "finetune.optimization.steps=3")
    assert other.status == 1 and "optimization.steps = 2" in other.complaint


def test_dry_run_writes_nothing(flowers: Path, tmp_path: Path, unveil: Unveil) -> None:
    out = tmp_path / "compared"
    longer = ("--set", "tokenizer.optimization.epochs=3", "--set", "small_cpu.cache_targets=true")
    answer = unveil("compare", "small_cpu", "tokens_small_cpu", "--data", flowers, "--out", out, "--dry-run", *longer)
    assert answer.status == 0, answer.err
    assert "vqkd_small_cpu, trained first" in answer.out and "25, 100 epochs" in answer.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("smal_cpu",), "perhaps you meant small_cpu"),
        ((), "which recipes"),
        (("tiny_cpu", "tiny_cpu"), "once"),
        (("tiny_cpu", "--epochs", 0), "more than 0"),
        (("tiny_cpu", "--labels", 1), "2 labelled images"),
        (("tiny_cpu", "--labels", 99), "only 24"),
        (("tiny_cpu", "--draws", 2), "give --labels"),
        (("tiny_cpu", "--set", "model.depth=3"), "begin the name with pretrain"),
        (("tiny_cpu", "--set", "small_cpu.model.depth=3"), "probe or tiny_cpu"),
        (("small_cpu", "tokens_small_cpu", "--set", "pretrain.cache_targets=true"), "tokens_small_cpu predicts codes"),
    ],
)
def test_mistakes_are_named(
    arguments: tuple[object, ...], complaint: str, flowers: Path, tmp_path: Path, unveil: Unveil
) -> None:
    answer = unveil("compare", *arguments, "--data", flowers, "--out", tmp_path / "compared")
    assert answer.status == 1
    assert complaint in answer.complaint


def test_images_must_be_given(unveil: Unveil) -> None:
    assert "give --data DATA" in unveil("compare", "tiny_cpu").complaint


def test_names_are_looked_at_before_the_images(tmp_path: Path, unveil: Unveil) -> None:
    """Which may take long to be found."""
    for names in (("smal_cpu",), ("small_cpu", "--finetune", "finetune_smal")):
        assert "perhaps you meant" in unveil("compare", *names, "--data", tmp_path / "nowhere").complaint
