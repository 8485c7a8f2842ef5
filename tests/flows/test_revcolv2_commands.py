"""RevColV2 from the command line: trained, probed, asked, drawn, exported, planned; refused where a ViT is needed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.api.runs import CLASSES, save_columns, save_columns_classifier
from tests.flows.commands import Unveil, course, save_photo


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    for number in range(20):
        save_photo(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.mark.slow
def test_the_way_of_a_run(labelled: Path, tmp_path: Path, unveil: Unveil) -> None:
    run = tmp_path / "run"
    quick = ("--global-batch-size", 4, "--workers", 0, "--set", "engine.trackers=", "--set", "engine.precision=fp32")
    recipe = ("pretrain", labelled, "--recipe", "revcolv2_tiny_cpu", "--out", run, *quick, "--checkpoint-every", 1)
    shown = unveil(*recipe, "--dry-run")
    assert "student     RevColV2 (reconstruction), 2 + 2 columns of 16 32 32, 0." in shown.out
    assert "random, at most 12 of 16 patches hidden" in shown.out
    assert unveil(*recipe, "--steps", 2).status == 0
    again = unveil(*recipe, "--steps", 2, "--set", "model.reversible=off")
    assert again.status == 0, again.err
    assert len(course(run)) == 2
    tuned = unveil(
        *("finetune", "classification", labelled, "--init-from", run, "--out", tmp_path / "tuned"), *quick, "--steps", 1
    )
    assert tuned.status == 0 and "RevColV2 (reconstruction)" in tuned.out, tuned.err
    probed = unveil("probe", labelled, "--model", run, "--out", tmp_path / "probed")
    assert probed.status == 0 and "mean of the patches, 32 numbers an image" in probed.out, probed.err


def test_the_commands_that_use_a_run(labelled: Path, tmp_path: Path, unveil: Unveil) -> None:
    run = save_columns(tmp_path / "run", labelled)
    embedded = unveil("embed", run, labelled, "--out", tmp_path / "photos.npz", "--workers", 0)
    assert embedded.status == 0 and "mean, 20 x 16 float32" in embedded.out, embedded.err
    patches = unveil("embed", run, labelled, "--out", tmp_path / "cells.npz", "--what", "patches", "--workers", 0)
    assert patches.status == 0 and "patches, 20 x 16 x 16 float32" in patches.out, patches.err
    with np.load(tmp_path / "photos.npz") as mean, np.load(tmp_path / "cells.npz") as cells:
        np.testing.assert_allclose(mean["features"], cells["features"].mean(axis=1), atol=1e-5)
    refused = unveil("embed", run, labelled, "--out", tmp_path / "x.npz", "--what", "cls")
    assert refused.status == 1 and "which has no cls token; give --what mean, or patches" in refused.complaint


def test_pictures_of_a_run(labelled: Path, tmp_path: Path, unveil: Unveil) -> None:
    run, photos = save_columns(tmp_path / "run", labelled), sorted(labelled.rglob("*.png"))[:2]
    drawn: dict[str, set[tuple[int, int]]] = {}
    for what in (None, "reconstruction", "similarity", "masks"):
        out = tmp_path / f"pictures of {what}"
        shown = unveil("visualize", run, *photos, "--out", out, *(() if what is None else ("--what", what)))
        assert shown.status == 0, shown.err
        drawn |= {file.name: Image.open(file).size for file in out.iterdir()}
    kinds = ("reconstruction", "similarity", "masks")
    assert drawn.keys() == {"pca_of_2.png"} | {f"{kind}_{photo.stem}.png" for kind in kinds for photo in photos}
    assert min(min(size) for size in drawn.values()) > 300
    one = unveil("visualize", run, photos[0], "--what", "similarity", "--patch", "3,3", "--out", tmp_path / "patch")
    assert one.status == 0, one.err
    attention = unveil("visualize", run, photos[0], "--what", "attention", "--out", tmp_path / "attention")
    assert attention.status == 1 and "no cls token that attends; give --what pca" in attention.complaint
    odd = unveil("visualize", run, photos[0], "--image-size", 40, "--out", tmp_path / "odd")
    assert odd.status == 1 and "patches of 16 pixels; try 32" in odd.complaint
    classifier = save_columns_classifier(tmp_path / "classifier")
    hidden = unveil("visualize", classifier, photos[0], "--what", "reconstruction", "--out", tmp_path / "none")
    assert hidden.status == 1 and "needs the folder of a pre-training run" in hidden.complaint


def test_a_classifier_predicts_is_judged_exported_and_converted(labelled: Path, tmp_path: Path, unveil: Unveil) -> None:
    run = save_columns_classifier(tmp_path / "classifier")
    for number, name in enumerate(CLASSES):
        save_photo(tmp_path / "labelled" / name / f"{number}.png", number)
    judged = unveil("eval", run, tmp_path / "labelled", "--workers", 0)
    assert judged.status == 0 and "images               4" in judged.out, judged.out
    predict = ("--format", "csv", "--workers", 0)
    before = unveil("predict", run, labelled, *predict)
    assert before.status == 0 and len(before.out.splitlines()) == 1 + 20 * len(CLASSES), before.err
    exported = unveil("export", run, "--to", "safetensors", "--out", tmp_path / "exported.safetensors")
    assert exported.status == 0 and (tmp_path / "exported.md").is_file(), exported.err
    assert unveil("predict", tmp_path / "exported.safetensors", labelled, *predict).out == before.out
    file, half = tmp_path / "exported.safetensors", tmp_path / "half.safetensors"
    converted = unveil("convert", file, "--to", half, "--half", "--image-size", 64)
    assert converted.status == 0, converted.err
    assert "columns of 8 12 16, 64 px in 4 x 4 units of 16 px" in converted.out, converted.out
    assert unveil("predict", half, labelled, *predict).status == 0
    for wrong, complaint in (
        (("--format", "timm"), "the layout timm has no place for a RevColV2"),
        (("--patch-size", 4), "leave --patch-size out"),
        (("--image-size", 40), "not a multiple of model.mask_unit 16"),
    ):
        refused = unveil("convert", file, "--to", tmp_path / "other.safetensors", *wrong)
        assert refused.status == 1 and complaint in refused.complaint, refused.err


def test_costs_are_counted_and_steps_measured(unveil: Unveil) -> None:
    planned = unveil("plan", "revcolv2_base_mim", "--gpus", 8)
    assert planned.status == 0 and "reversible     off " in planned.out, planned.err
    settings = [f"--set={name}" for name in ("data.workers=0", "engine.precision=fp32")]
    quick = ("--steps", 1, "--warm-up", 0, "--global-batch-size", 4)
    measured = unveil("bench", "revcolv2_tiny_cpu", *settings, *quick)
    assert measured.status == 0 and "GFLOP an image" in measured.out, measured.err
    refused = unveil("bench", "revcolv2_tiny_cpu", *settings, *quick, "--vs", "timm")
    assert refused.status == 1 and "timm has no blocks of RevColV2's" in refused.complaint


def test_what_stays_for_vits_alone(labelled: Path, tmp_path: Path, unveil: Unveil) -> None:
    run = save_columns(tmp_path / "run", labelled)
    lines = [f"{photo},photo {photo.stem}" for photo in sorted(labelled.rglob("*.png"))]
    (tmp_path / "pairs.csv").write_text("\n".join(["path,caption", *lines]) + "\n")
    tower = unveil("clip", "train", tmp_path / "pairs.csv", "--vision-init", run, "--out", tmp_path / "clip")
    assert tower.status == 1 and "knows ViTs only, and the model is a RevColV2" in tower.complaint, tower.err
    captions = unveil("quickstart", "--model", "revcolv2", "--chapters", "all", "--out", tmp_path / "quick")
    assert captions.status == 1 and "whose image tower is a ViT" in captions.complaint
