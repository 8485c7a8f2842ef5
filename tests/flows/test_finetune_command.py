"""`unveil finetune classification` from the command line: what it needs, says and leaves behind."""

import filecmp
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.flows.commands import QUICK, Unveil, metrics, start
from tests.flows.test_kill_and_resume import finish, kill_at
from unveil.config import FashionScenes
from unveil.data.samples.writers import write_samples

TINY = ("--recipe", "finetune_tiny_cpu", "--workers", 0, "--set", "engine.trackers=")
FINETUNE = ("finetune", "classification")
EVERYTHING = (
    *(
        "--set",
        "augmentation.mixup=0.8",
        "--set",
        "augmentation.cutmix=1.0",
        "--set",
        "augmentation.random_erasing=0.5",
    ),
    *("--set", "augmentation.rand_augment=rand-m9-mstd0.5-inc1", "--set", "model.drop_path=0.2"),
    *("--set", "ema_decay=0.9", "--set", "engine.evaluate_every=20"),
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders: 30 scenes of 10 garments in train/, 10 in test/. Tests must not change it."""
    folder = tmp_path_factory.mktemp("labelled") / "scenes"
    write_samples(folder, "folders", FashionScenes(count=30, size=32), test_count=10)
    return folder


def classes_of(scenes: Path) -> list[str]:
    return sorted(folder.name for folder in (scenes / "train").iterdir())


def config_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())


def test_train_and_test_folders_are_all_it_needs(scenes: Path, tmp_path: Path, unveil: Unveil) -> None:
    run = tmp_path / "run"
    trained = unveil(*FINETUNE, scenes, "--out", run, *TINY, "--steps", 3, "--set", "ema_decay=0.5")
    assert trained.status == 0, trained.err
    for part in (
        "recipe      finetune_tiny_cpu\n",
        "images      30, about 32 x 32 px, such as ",
        "validation  10, about 32 x 32 px, such as ",
        "classes     10: ankle_boot, bag, coat, dress, pullover, ...\n",
        "head        mean of the patches, new\n",
        "average     of the weights, decay 0.5\n",
        "3 steps = 0.80 passes over the images\n",
    ):
        assert part in trained.out
    last = trained.out.splitlines()[-1]
    assert last.startswith(f"done: {run}/checkpoints/step_00000003, validation accuracy ")
    assert ", of the averaged weights " in last
    config = config_of(run)
    assert config["kind"] == "ClassificationConfig" and config["classes"] == classes_of(scenes)
    assert config["data"]["source"]["paths"] == [str(scenes / "train")]
    assert config["data"]["validation"]["paths"] == [str(scenes / "test")]
    final = metrics(run)[-1]
    names = ("accuracy", "top5", "loss", "calibration_error")
    assert final.keys() >= {f"validation_{kind}{name}" for kind in ("", "ema_") for name in names} | {"accuracy"}
    weights = {
        file: load_file(run / "checkpoints/step_00000003" / file)
        for file in ("model.safetensors", "model_ema.safetensors")
    }
    assert all(state["head.weight"].shape == (10, 64) for state in weights.values())
    # The same command again leaves it as it is.
    again = unveil(*FINETUNE, scenes, "--out", run, *TINY, "--steps", 3, "--set", "ema_decay=0.5")
    assert again.status == 0 and again.out.splitlines()[-1] == last


def test_tables_tars_and_validation_elsewhere(scenes: Path, tmp_path: Path, unveil: Unveil) -> None:
    train = sorted((scenes / "train").rglob("*.png"))
    table = tmp_path / "train.csv"
    table.write_text("path,label\n" + "".join(f"{file},{file.parent.name}\n" for file in train))
    (tmp_path / "shards").mkdir()
    names = classes_of(scenes)
    (tmp_path / "classes.txt").write_text("\n".join(names))
    with tarfile.open(tmp_path / "shards/0.tar", "w") as tar:
        for number, file in enumerate(train):
            (tmp_path / "label.cls").write_text(str(names.index(file.parent.name)))
            tar.add(file, f"{number:03d}.png")
            tar.add(tmp_path / "label.cls", f"{number:03d}.cls")
    courses = []
    for number, data in enumerate((scenes / "train", table, tmp_path / "shards")):
        run = tmp_path / str(number)
        trained = unveil(*FINETUNE, data, "--validation", scenes / "test", "--out", run, *TINY, "--steps", 2)
        assert trained.status == 0, trained.err
        assert "classes     10: ankle_boot, bag, coat, dress, pullover, ...\n" in trained.out
        courses.append([(line["loss"], line.get("validation_loss")) for line in metrics(run)])
    # The same images in the same order, however they are packed.
    assert courses[0] == courses[1] == courses[2]


def test_without_validation_a_fifth_is_held_out(scenes: Path, tmp_path: Path, unveil: Unveil) -> None:
    command = (*FINETUNE, scenes / "train", "--out", tmp_path / "run", *TINY, "--steps", 2)
    held = unveil(*command)
    assert "images      24, " in held.out and "validation  6, a fifth of the images held out\n" in held.out
    assert "validation accuracy" in held.out
    refused = unveil(*command, "--no-validation")
    assert refused.status == 1 and "the data of" in refused.complaint
    everything = unveil(*FINETUNE, scenes / "train", "--out", tmp_path / "all", *TINY, "--steps", 2, "--no-validation")
    assert "images      30, " in everything.out and "validation  none\n" in everything.out
    assert everything.out.splitlines()[-1].startswith(f"done: {tmp_path}/all/checkpoints/step_00000002, loss 2.")


def test_the_network_is_taken_from_the_run_that_it_starts_from(
    scenes: Path, photos: Path, tmp_path: Path, unveil: Unveil
) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    sizes = ("--set", "model.depth=1", "--set", "model.width=32", "--set", "data.normalization=imagenet")
    unveil("pretrain", photos, "--out", first, *QUICK, "--steps", 2, *sizes)
    quick = ("--workers", 0, "--set", "engine.trackers=", "--global-batch-size", 8, "--steps", 2)
    begun = unveil(*FINETUNE, scenes, "--init-from", first, "--out", run, *quick)
    assert begun.status == 0, begun.err
    assert "recipe      finetune_small (chosen for 30 images on cpu" in begun.out
    assert "ViT 32 wide, 1 deep" in begun.out and f"weights from {first}" in begun.out
    assert "loaded 17 tensors from" in begun.err and "predictor of masked pre-training" in begun.err
    config = config_of(run)
    assert config["model"]["patch_size"] == 8 and config["data"]["normalization"] == "imagenet"
    # The recipe's own, which are not of the network's making.
    assert config["model"]["drop_path"] == 0.1 and config["augmentation"]["mixup"] == 0.8
    # It goes on without what it began with.
    shutil.rmtree(first)
    assert unveil(*FINETUNE, scenes, "--init-from", first, "--out", run, *quick).status == 0

    conflict = unveil(*FINETUNE, scenes, "--init-from", run, "--out", tmp_path / "other", *TINY)
    assert conflict.status == 1
    assert f"the network in {run} has width 32, depth 1" in conflict.complaint
    assert "that of --recipe finetune_tiny_cpu width 64, depth 2" in conflict.complaint
    assert not (tmp_path / "other").exists()


def test_a_larger_resolution_and_a_smaller_set_of_classes(scenes: Path, tmp_path: Path, unveil: Unveil) -> None:
    first, few = tmp_path / "first", tmp_path / "few"
    assert unveil(*FINETUNE, scenes, "--out", first, *TINY, "--steps", 2).status == 0
    for name in ("coat", "bag"):
        for split in ("train", "test"):
            shutil.copytree(scenes / split / name, few / split / name)
    options = ("--set", "model.image_size=48", "--set", "head_from=remap")
    still = ("--set", "optimization.optimizer.learning_rate=0", "--set", "optimization.min_learning_rate=0")
    second = tmp_path / "second"
    moved = unveil(*FINETUNE, few, "--init-from", first, "--out", second, *TINY, *options, *still, "--steps", 1)
    assert moved.status == 0, moved.err
    assert "head        mean of the patches, rows picked from the weights by class name\n" in moved.out
    assert "resized: pos_embed (1, 17, 64) -> (1, 37, 64)" in moved.err
    before = load_file(first / "checkpoints/step_00000002/model.safetensors")
    after = load_file(second / "checkpoints/step_00000001/model.safetensors")
    rows = [classes_of(scenes).index(name) for name in ("bag", "coat")]
    assert after["head.weight"].equal(before["head.weight"][rows])
    assert after["fc_norm.weight"].equal(before["fc_norm.weight"])
    assert "loaded" in (second / "log.txt").read_text()


def test_dry_run_of_the_giant(scenes: Path, unveil: Unveil) -> None:
    shown = unveil(*FINETUNE, scenes, "--recipe", "eva_giant_in1k_336", "--dry-run", "--steps", 9)
    assert shown.status == 0
    assert "1,011.6 M parameters, 336 px in 24 x 24 patches" in shown.out
    assert "changed by rand-m9-mstd0.5-inc1" in shown.out and "layer decay 0.95" in shown.out


@pytest.mark.slow
def test_killed_and_resumed_with_everything_that_draws_gives_the_same_weights(scenes: Path, tmp_path: Path) -> None:
    options = (*TINY, *EVERYTHING, "--steps", 60, "--checkpoint-every", 3, "--workers", 1)
    options = (*options, "--set", "engine.precision=fp32")
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(start(*FINETUNE, scenes, "--out", whole, *options))
    command = (*FINETUNE, scenes, "--out", run, *options)
    for step in (7, 23):
        kill_at(step, run, *command)
    assert "going on after step" in finish(start(*command))
    for file in ("model.safetensors", "model_ema.safetensors"):
        one, other = (folder / "checkpoints/step_00000060" / file for folder in (whole, run))
        assert filecmp.cmp(one, other, shallow=False), file
    timeless = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in metrics(f)] for f in (whole, run)
    ]
    assert timeless[0] == timeless[1]
