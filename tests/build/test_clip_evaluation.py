"""The benchmarks of a CLIP together: one process or two, batches of any size, numbers that are none."""

from pathlib import Path

import pytest
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from tests.build.benchmarks_in_processes import SETS, MeanColour, evaluated
from tests.distributed.processes import together
from tests.tasks.miniature_benchmarks import MINIATURES
from tests.tasks.miniature_suites import write_json
from tests.tasks.miniature_videos import write_ucf101
from tests.tasks.test_retrieval_suites import karpathy, save_images
from unveil.build.clip_evaluation import evaluate_clip
from unveil.build.evaluation import ReadingSettings
from unveil.config import UnveilError
from unveil.engine import Parallel
from unveil.tasks.contrastive.suites.layouts import open_zero_shot_suites


def write_sets(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of each kind, with an image that cannot be read in two of them."""
    MINIATURES["food101"].write(root, monkeypatch)
    MINIATURES["stl10"].write(root, monkeypatch)
    write_ucf101(root)
    save_images(root / "coco/val2014")
    write_json(root / "coco/dataset_coco.json", karpathy("val2014"))
    (root / "food-101/images/dish_2/2.jpg").write_bytes(b"torn")
    (root / "coco/val2014/2.jpg").write_bytes(b"torn")


def test_processes_and_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sets(tmp_path, monkeypatch)
    alone = evaluated(str(tmp_path), 3)
    assert [*alone["sets"], *alone["retrieval"]] == list(SETS)
    assert alone["sets"]["food101"]["images"] == 4 and len(alone["sets"]["food101"]["unreadable"]) == 1
    assert alone["retrieval"]["coco"]["images"] == 2 and alone["retrieval"]["coco"]["texts"] == 3
    assert evaluated(str(tmp_path), 1) == alone
    assert together(2, evaluated, str(tmp_path), 1) == [alone, alone]


class Broken(MeanColour):
    """As a tower in fp16 that overflows."""

    name = "broken"

    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        return super().encode_images(images) * torch.nan


@pytest.mark.parametrize("name", SETS)
def test_numbers_that_are_none_are_an_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sets(tmp_path, monkeypatch)
    sets, missing = open_zero_shot_suites([name], tmp_path)
    with pytest.raises(UnveilError, match=f"broken answers .* of {name} with numbers that are not finite"):
        evaluate_clip(Broken(), sets, missing, ReadingSettings(batch_size=2), Parallel(torch.device("cpu")))


def test_progress_names_the_set_and_its_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sets(tmp_path, monkeypatch)
    sets, missing = open_zero_shot_suites(["food101", "coco"], tmp_path)
    said: list[tuple[str, int, int]] = []
    evaluate_clip(
        MeanColour(),
        sets,
        missing,
        ReadingSettings(batch_size=2),
        Parallel(torch.device("cpu")),
        on_progress=lambda what, done, total: said.append((what, done, total)),
    )
    assert {what for what, _, _ in said} == {"food101", "food101, texts", "coco", "coco, texts"}
    assert all(0 < done <= total for _, done, total in said)
