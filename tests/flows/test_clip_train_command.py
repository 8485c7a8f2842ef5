"""`unveil clip train` as a person uses it: a look before, towers from elsewhere, a kill in the middle."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.flows.commands import QUICK, Unveil, course, metrics, save_photo
from tests.flows.test_kill_and_resume import kill_at
from unveil.config import ViTConfig
from unveil.engine import RunFolder
from unveil.models.vit import ViT

TINY = ("--recipe", "clip_tiny_cpu", "--workers", 0, "--set", "engine.trackers=", "--set", "engine.precision=fp32")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 30 photos, with a caption each."""
    folder = tmp_path_factory.mktemp("pairs")
    for number in range(30):
        save_photo(folder / "photos" / f"{number:03d}.jpg", number)
    rows = [f"photos/{number:03d}.jpg,a photo of noise number {number}" for number in range(30)]
    (folder / "captions.csv").write_text("\n".join(["path,caption", *rows]) + "\n")
    return folder


def test_a_look_before(pairs: Path, tmp_path: Path, unveil: Unveil) -> None:
    out = tmp_path / "run"
    answer = unveil("clip", "train", pairs, "--out", out, *TINY, "--dry-run", "--set", "visual.locked=1")
    assert answer.status == 0 and not out.exists()
    lines = dict(line.split("  ", 1) for line in answer.out.splitlines())
    lines = {name.strip(): text.strip() for name, text in lines.items()}
    assert lines["recipe"] == "clip_tiny_cpu"
    assert lines["images"].startswith("24, about 48 x 40 px")
    assert lines["captions"].startswith("30 of 30 images") and "noise number" in lines["captions"]
    assert lines["validation"] == "6 pairs held out"
    assert lines["text tower"] == "transformer 64 wide, 2 deep, texts of 77 tokens"
    assert lines["batch"] == "global 8 = 1 CPU process x 8 x 1 accumulation"
    assert lines["images'"] == "locked up to layer 1"


def test_training_from_a_pretrained_tower(pairs: Path, photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    vision, run = tmp_path / "vision", tmp_path / "run"
    assert unveil("pretrain", photos, "--out", vision, *QUICK, "--steps", 2).status == 0
    command = ("clip", "train", pairs, "--out", run, *TINY, "--vision-init", vision, "--steps", 4)
    answer = unveil(*command)
    assert answer.status == 0, answer.err
    assert f"weights from {vision}" in answer.out and "loaded " in answer.err
    # What was printed of the captions is in the log, and was not printed again.
    assert "captions: 30 of 30 images" in (run / "log.txt").read_text()
    assert "30 of 30 images" not in answer.err
    assert f"done: {run}/checkpoints/step_00000004, validation loss " in answer.out
    rows = metrics(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1].keys() >= {"logit_scale", "validation_image_to_text_r1", "validation_text_to_image_r1"}
    # The same command has nothing left to do; another length is another run.
    assert unveil(*command).status == 0 and metrics(run) == rows
    assert "optimization.steps" in unveil(*command, "--steps", 5).complaint


def test_heads_that_nothing_tells_are_asked_for_as_the_tower_s(pairs: Path, tmp_path: Path, unveil: Unveil) -> None:
    """They are no setting of a CLIP's as a whole."""
    model = ViTConfig(image_size=32, patch_size=8, width=40, depth=1, heads=2, mlp_width=64)
    torch.save(ViT(model).state_dict(), tmp_path / "vision.pt")
    given = ("clip", "train", pairs, "--out", tmp_path / "run", "--vision-init", tmp_path / "vision.pt", "--dry-run")
    answer = unveil(*given)
    assert answer.status == 1 and "--set model.vision.heads=N" in answer.complaint
    answer = unveil(*given, "--set", "model.vision.heads=2")
    assert answer.status == 0 and "ViT 40 wide, 1 deep" in answer.out


def test_options_that_do_not_go_together(pairs: Path, tmp_path: Path, unveil: Unveil) -> None:
    given = ("clip", "train", pairs, "--out", tmp_path / "run", *TINY)
    for options, sentence in (
        (("--validation", pairs, "--no-validation"), "both --validation and --no-validation"),
        (("--init-from", "a", "--vision-init", "b"), "either the one or the others"),
        (("--vision-init", tmp_path / "nothing"), "nothing"),
        (("--set", "visual.locked=7"), "the image tower has 4 layers"),
        (("--recipe", "clip_tiny"), "perhaps you meant clip_tiny_cpu"),
    ):
        answer = unveil(*given, *options)
        assert answer.status == 1 and sentence in answer.complaint
    assert not (tmp_path / "run").exists()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the processes that tests start have it: sums are the same to the last bit in the same order only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_run_that_was_killed_takes_the_course_of_an_unbroken_one(
    pairs: Path, tmp_path: Path, unveil: Unveil, one_thread: None
) -> None:
    """With features of micro-batches kept, and pairs read by a process of its own."""
    options = (
        *TINY,
        "--workers",
        1,
        "--steps",
        30,
        "--checkpoint-every",
        3,
        "--set",
        "optimization.micro_batch_size=4",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert unveil("clip", "train", pairs, "--out", whole, *options).status == 0
    command = ("clip", "train", pairs, "--out", broken, *options)
    kill_at(8, broken, *command)
    answer = unveil(*command)
    assert answer.status == 0 and "going on after step " in answer.err
    assert course(broken) == course(whole)
    assert metrics(broken)[-1]["validation_loss"] == metrics(whole)[-1]["validation_loss"]
    ours, theirs = (RunFolder(run).checkpoints.load_latest() for run in (broken, whole))
    assert ours is not None and theirs is not None
    assert all(torch.equal(value, theirs.weights[name]) for name, value in ours.weights.items())
