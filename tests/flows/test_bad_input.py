"""What goes wrong at the keyboard, in the data and on the disk gets one clear sentence, and nothing is lost by it."""

import logging
import os
import resource
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.flows.commands import QUICK, Unveil, course, metrics, save_photo
from unveil.cli.pretrain import Pretrain
from unveil.cli.terminal import log_on_terminal
from unveil.config import UnveilError
from unveil.config.resolve import Machine


def test_nothing_to_train_on(tmp_path: Path, unveil: Unveil) -> None:
    empty, texts = tmp_path / "empty", tmp_path / "texts"
    empty.mkdir()
    texts.mkdir()
    for name in ("a.txt", "b.txt", "c.csv"):
        (texts / name).write_text("no image")
    run = tmp_path / "run"
    for folder, reason in (
        (empty, f"{empty} holds no image (no files)"),
        (texts, f"{texts} holds no image (3 files, none of them an image: 2 .txt, 1 .csv)"),
        (tmp_path / "textz", f"{tmp_path / 'textz'} does not exist; did you mean {texts}?"),
        (texts / "a.txt", f"{texts / 'a.txt'} is neither a folder nor a tar nor an image by its name"),
    ):
        answer = unveil("pretrain", folder, "--out", run, *QUICK)
        assert answer.status == 1
        assert answer.complaint.startswith(f"unveil: {reason}")
    assert unveil("pretrain", "--out", run, *QUICK).complaint.startswith("unveil: no images are given; name a folder")
    assert not run.exists()


def test_everything_corrupt(tmp_path: Path, unveil: Unveil) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.jpg").write_bytes(b"\xff\xd8\xff" + bytes(50))
    for workers in (0, 1):
        answer = unveil("pretrain", folder, "--out", tmp_path / "run", *QUICK, "--workers", workers)
        assert answer.status == 1
        assert "none of 12 tried could be read" in answer.out
        assert "(100.0%) could not be decoded" in answer.complaint and str(folder) in answer.complaint
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_one_truncated_photo_is_named_and_replaced(photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    torn = next(folder.rglob("004.jpg"))
    torn.write_bytes(torn.read_bytes()[:300])
    run = tmp_path / "run"
    tolerant = ("--set", "data.max_unreadable_share=0.2")
    answer = unveil("pretrain", folder, "--out", run, *QUICK, "--steps", 8, *tolerant)
    assert answer.status == 0, answer.err
    assert answer.err.count(f"warning: cannot read {torn}: ") == 1
    assert f"cannot read {torn}: " in (run / "log.txt").read_text()
    assert len(metrics(run)) == 8


def test_photos_of_every_kind_and_crooked_links(tmp_path: Path, unveil: Unveil) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("L").save(folder / "grey.png")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("RGBA").save(folder / "alpha.webp")
    photo.save(folder / "animated.gif", save_all=True, append_images=[photo.rotate(90)], duration=100)
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 250).save(folder / "sixteen_bits.png")
    Image.new("RGB", (1, 1), "red").save(folder / "one_pixel.png")
    Image.new("RGB", (30_000, 20), "blue").save(folder / "panorama.jpg")
    Image.new("L", (20, 30_000)).save(folder / "tower.png")
    (folder / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "loop").symlink_to(folder)
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    answer = unveil("pretrain", folder, "--out", tmp_path / "run", *QUICK, "--steps", 3, "--global-batch-size", 9)
    assert answer.status == 0, answer.err
    assert "images      9, " in answer.out
    assert "cannot read" not in answer.err
    assert "left out 2 broken symbolic links" in answer.err
    assert "left out 1 links back to a folder that they lie in" in answer.err


def test_a_tar_cut_in_half(photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    tar = tmp_path / "photos.tar"
    with tarfile.open(tar, "w") as archive:
        for file in sorted(photos.rglob("*.jpg")):
            archive.add(file, file.name)
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    answer = unveil("pretrain", tar, "--out", tmp_path / "run", *QUICK, "--steps", 2)
    assert answer.status == 0, answer.err
    assert f"warning: {tar} is cut off or damaged" in answer.err
    tar.write_bytes(tar.read_bytes()[:1700])
    answer = unveil("pretrain", tar, "--out", tmp_path / "other", *QUICK, "--steps", 2)
    assert answer.status == 1
    assert f"unveil: {tar} holds no whole image (it ends inside " in answer.complaint


def test_folders_that_hold_something_else(photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    run, strange, file = tmp_path / "run", tmp_path / "strange", tmp_path / "file"
    command = ("pretrain", photos, "--out", run, *QUICK, "--steps", 2)
    assert unveil(*command).status == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "lock"}

    answer = unveil(*command, "--seed", 3, "--set", "model.depth=1")
    assert answer.status == 1
    assert "engine.seed: 0 in the run, 3 asked" in answer.complaint
    assert "model.depth: 2 in the run, 1 asked" in answer.complaint
    assert "Give --out another folder" in answer.complaint
    assert {path: path.read_bytes() for path in before} == before

    strange.mkdir()
    (strange / "thesis.txt").write_text("years of work")
    file.write_text("")
    answer = unveil("pretrain", photos, "--out", strange, *QUICK)
    assert answer.status == 1
    assert f"{strange} is not empty and holds no run of unveil (thesis.txt, ...)" in answer.complaint
    assert [path.name for path in strange.iterdir()] == ["thesis.txt"]
    assert f"{file} is a file, not a folder" in unveil("pretrain", photos, "--out", file, *QUICK).complaint


def test_data_that_changed_since_the_run_began(photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    folder, run = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, folder)
    command = ("pretrain", folder, "--out", run, *QUICK, "--steps", 2)
    assert unveil(*command).status == 0
    save_photo(folder / "year 2021/trip/new.jpg", 100)
    answer = unveil(*command)
    assert answer.status == 1
    assert "year 2021/trip had 10 samples and has 11: 1 more" in answer.complaint
    (folder / "year 2021/trip/new.jpg").unlink()
    folder.rename(tmp_path / "moved")
    assert unveil("pretrain", tmp_path / "moved", *command[2:]).status == 0


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside the block the disk takes no larger file: what a full disk is to a program, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_torn_checkpoint_and_full_disk(photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    run = tmp_path / "run"
    newest = run / "checkpoints/step_00000006"
    command = ("pretrain", photos, "--out", run, *QUICK, "--steps", 6, "--checkpoint-every", 2)
    assert unveil(*command).status == 0
    whole = course(run)
    assert [folder.name for folder in sorted((run / "checkpoints").iterdir())] == ["step_00000004", "step_00000006"]

    weights = newest / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with largest_file(100_000):
        full = unveil(*command)
    assert full.status == 1
    assert f"warning: checkpoint {newest} is not whole (model.safetensors has " in full.err
    assert "going on after step 4" in full.err
    assert "no space left while writing step_00000006/" in full.complaint
    assert "The checkpoint of step 4 is intact; free some space and run the same command again" in full.complaint
    assert not list((run / "checkpoints").glob(".*"))

    assert unveil(*command).status == 0
    assert course(run) == whole
    for file in run.glob("checkpoints/*/optimizer_00000.safetensors"):
        os.truncate(file, 100)
    assert f"no checkpoint in {run / 'checkpoints'} is whole" in unveil(*command).complaint


def test_options_that_do_not_exist(photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    answer = unveil("pretrain", photos, "--out", tmp_path / "run", "--stepz", 3)
    assert answer.status == 2
    assert "--stepz" in answer.err and "--steps" in answer.err
    assert unveil("pretrian", photos).status == 2


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--steps", 0), ("--steps is 0; give more than 0",)),
        (("--steps", -3), ("--steps is -3",)),
        (("--epochs", 0), ("--epochs is 0",)),
        (("--checkpoint-every", 0), ("--checkpoint-every is 0",)),
        (("--workers", -1), ("--workers is -1; give 0",)),
        (("--steps", 3, "--epochs", 1), ("both --steps and --epochs are given",)),
        (("--steps", 3, "--set", "optimization.epochs=2"), ("both steps and epochs are given",)),
        (("--set", "masking.count=16"), ("hides 16 patches, but the grid of 4 x 4 has 16", "lower masking.count")),
        (("--set", "masking.ratio=1.5"), ("masking.ratio 1.5 must lie between 0 and 1",)),
        (("--set", "optimization.micro_batch_size=3"), ("micro-batches of 3", "--global-batch-size 9")),
        (("--set", "model.dept=3"), ("--set model.dept: ViTConfig has no 'dept'; perhaps you meant model.depth",)),
        (("--set", "model.depth=deep"), ("--set model.depth=deep: expected int",)),
        (("--set", "model.depth"), ("--set model.depth: write NAME=VALUE",)),
        (("--set", "engine.precision=fp8"), ("--set engine.precision=fp8: expected one of auto, fp32, bf16, fp16",)),
        (("--set", "model.patch_size=5"), ("model.image_size 32 is not a multiple of model.patch_size 5",)),
        (("--set", "cache_targets=true"), ("random crops cannot be cached",)),
        (("--set", "engine.trackers=trackio"), ('pip install "unveil[trackio]"',)),
        (("--recipe", "tinycpu"), ("no recipe is called 'tinycpu'; perhaps you meant tiny_cpu",)),
        (("--teacher", "pixel"), ("the teacher pixel is not known", "did you mean pixels")),
        (("--teacher", "weights/clip.pt"), ("the teacher weights/clip.pt is not a file",)),
        (("--init-from", "nowhere"), ("nowhere is not there",)),
    ],
)
def test_settings_that_cannot_be(
    options: tuple[object, ...], parts: tuple[str, ...], photos: Path, tmp_path: Path, unveil: Unveil
) -> None:
    run = tmp_path / "run"
    answer = unveil("pretrain", photos, "--out", run, *QUICK, *options)
    assert answer.status == 1
    for part in parts:
        assert part in answer.complaint
    assert not run.exists()


def test_batch_that_does_not_divide_among_processes() -> None:
    pair = Machine(device="cpu", world_size=2, cores=1, memory_gib=8.0, precision="fp32")
    command = Pretrain(images=("photos",), recipe="tiny_cpu", global_batch_size=9)
    with pytest.raises(UnveilError, match="batch of 9 does not divide among 2 processes; try --global-batch-size 8"):
        command.configure(images=30, machine=pair)


def test_hub_out_of_reach(photos: Path, tmp_path: Path, unveil: Unveil, monkeypatch: pytest.MonkeyPatch) -> None:
    # A port that nobody listens on, and a cache without anything in it.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    answer = unveil("pretrain", photos, "--out", run, "--recipe", "tiny_cpu", "--teacher", "clip")
    assert answer.status == 1
    assert "cannot be reached" in answer.complaint
    assert "a local file of weights or `--teacher embedded` needs no network" in answer.complaint
    assert not run.exists()


def test_gpu_memory_too_small(photos: Path, tmp_path: Path, unveil: Unveil, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("unveil.build.runs.train", exhausted)
    for batch, advice in ((12, "micro_batch_size=6 gives the same result"), (1, "model.activation_checkpointing=true")):
        size = ("--global-batch-size", batch)
        answer = unveil("pretrain", photos, "--out", tmp_path / str(batch), *QUICK, *size)
        assert answer.status == 1
        assert advice in answer.complaint


def test_of_several_processes_one_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    with log_on_terminal(rank=1):
        logging.getLogger("unveil.data.sources.scan").warning("the same on every process")
        logging.getLogger("unveil.data.loader").warning("cannot read %s", "mine.jpg")
    assert capsys.readouterr().err == "warning: cannot read mine.jpg\n"
    assert not logging.getLogger("unveil").handlers
