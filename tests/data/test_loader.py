import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unveil.config import RandomResizedCrop, UnveilError
from unveil.data.crops import crop_box, resize_crop
from unveil.data.loader import EvaluationLoader, TrainingLoader
from unveil.data.order import sample_index
from unveil.data.sources.base import Sample
from unveil.data.sources.folder import FolderSource
from unveil.data.sources.open import open_images

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

BATCH = 12


def view(sample: Sample, rng: random.Random) -> dict[str, Any]:
    box = crop_box(sample.image.size, RandomResizedCrop(), rng)
    return {"image": resize_crop(sample.image, box, 8, rng.random() < 0.5), "draw": rng.random(), "label": sample.label}


def collate(views: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "image": torch.stack([view["image"] for view in views]),
        "draw": torch.tensor([view["draw"] for view in views], dtype=torch.float64),
    }


def loader(source: Any, **settings: Any) -> TrainingLoader:
    settings = {"seed": 5, "global_batch_size": BATCH, "micro_batch_size": BATCH, **settings}
    return TrainingLoader(source, view, collate, **settings)


def joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        result[name] = torch.cat(values) if isinstance(values[0], torch.Tensor) else list(chain(*values))
    return result


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name], name


@pytest.fixture
def photos(tmp_path: Path, write_photos) -> FolderSource:
    write_photos(tmp_path, [f"{number % 4}/{number:02d}.png" for number in range(31)])
    return FolderSource(tmp_path)


def test_a_step_holds_its_sample_numbers_and_what_they_mean(numbered) -> None:
    source = numbered(31)
    for step, (batch,) in enumerate(loader(source).steps(0, 4)):
        numbers = range(step * BATCH, (step + 1) * BATCH)
        indices = [sample_index(number, 31, 5) for number in numbers]
        assert batch["sample_numbers"].tolist() == list(numbers)
        assert batch["sample_numbers"].dtype == torch.int64
        assert batch["indices"].tolist() == indices
        assert batch["names"] == [f"image {index}" for index in indices]
        assert batch["image"][:, 0, 0, 0].tolist() == indices and batch["image"].dtype == torch.uint8


def test_an_epoch_is_every_sample_once(numbered) -> None:
    steps = [batch for (batch,) in loader(numbered(36)).steps(0, 6)]
    for epoch in (0, 1):
        seen = torch.cat([batch["indices"] for batch in steps[3 * epoch : 3 * epoch + 3]])
        assert sorted(seen.tolist()) == list(range(36))


@pytest.mark.parametrize(
    ("world_size", "workers", "micro_batch_size"), [(1, 0, 4), (2, 3, 6), (2, 1, 2), (3, 2, 1), (4, 0, 3)]
)
def test_the_global_batch_does_not_depend_on_the_layout(
    photos, world_size: int, workers: int, micro_batch_size: int
) -> None:
    expected = [batch for (batch,) in loader(photos).steps(2, 5)]
    layout = {"micro_batch_size": micro_batch_size, "world_size": world_size, "workers": workers}
    ranks = [list(loader(photos, rank=rank, **layout).steps(2, 5)) for rank in range(world_size)]
    for number, step in enumerate(expected):
        micro_batches = [batch for rank in ranks for batch in rank[number]]
        assert all(len(batch["image"]) == micro_batch_size for batch in micro_batches)
        assert_same(joined(micro_batches), step)


def test_going_on_at_a_step_equals_the_unbroken_run(photos) -> None:
    whole = list(loader(photos).steps(0, 7))
    rest = list(loader(photos, workers=2).steps(4, 7))
    for (one,), (two,) in zip(whole[4:], rest, strict=True):
        assert_same(one, two)
    assert list(loader(photos).steps(7, 7)) == []


def test_the_same_image_looks_different_in_every_epoch(photos) -> None:
    batches = [batch for (batch,) in loader(photos, global_batch_size=31, micro_batch_size=31).steps(0, 2)]
    one, two = (batch["image"][batch["indices"].argsort()] for batch in batches)
    assert sum(torch.equal(a, b) for a, b in zip(one, two, strict=True)) < 3
    assert len(set(batches[0]["draw"].tolist())) == 31


def test_global_generators_are_neither_used_nor_moved(photos) -> None:
    def run(seed: int, workers: int) -> list[list[dict[str, Any]]]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        steps = list(loader(photos, workers=workers).steps(0, 2))
        steps.append(list(EvaluationLoader(photos, view, collate, batch_size=31, workers=workers)))
        # Not asked of the module `random`: the checker of type annotations draws from it while the tests run.
        assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
        return steps

    for one, two in zip(run(1, workers=0), run(2, workers=1), strict=True):
        assert_same(one[0], two[0])


def test_tars_are_read_by_several_workers(tmp_path: Path, write_tar, photo, encoded) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", {f"{i}.png": encoded(photo(10 * shard + i), "PNG") for i in range(7)})
    source = open_images([str(tmp_path)])
    source[0]
    alone = [batch for (batch,) in loader(source).steps(0, 4)]
    together = [batch for (batch,) in loader(source, workers=3).steps(0, 4)]
    for one, two in zip(alone, together, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize(
    "settings", [{"micro_batch_size": 5}, {"world_size": 5}, {"world_size": 2, "micro_batch_size": 12}]
)
def test_batches_that_do_not_divide_are_refused(numbered, settings: dict[str, int]) -> None:
    with pytest.raises(UnveilError, match="multiple of"):
        loader(numbered(5), **settings)


def test_empty_source_is_refused(numbered) -> None:
    with pytest.raises(UnveilError, match="no images"):
        loader(numbered(0))
    with pytest.raises(UnveilError, match="no images"):
        EvaluationLoader(numbered(0), view, collate, batch_size=1)


def test_unreadable_samples_are_replaced_the_same_way_on_every_layout(numbered) -> None:
    source = numbered(60, frozenset({3, 4, 40}))
    reports: list[tuple[str, str]] = []
    one = loader(source, max_unreadable_share=0.2, on_unreadable=lambda *report: reports.append(report))
    alone = [batch for (batch,) in one.steps(0, 15)]
    assert sorted(reports) == [(f"image {index}", "made so") for index in (3, 4, 40)]
    assert one.unreadable == dict(reports)
    seen = torch.cat([batch["indices"] for batch in alone]).tolist()
    assert not {3, 4, 40} & set(seen)
    for batch in alone:
        assert batch["image"][:, 0, 0, 0].tolist() == batch["indices"].tolist()
        assert batch["names"] == [f"image {index}" for index in batch["indices"].tolist()]
    settings = {"max_unreadable_share": 0.2, "world_size": 2, "micro_batch_size": 3, "workers": 2}
    ranks = [list(loader(source, rank=rank, **settings).steps(0, 15)) for rank in range(2)]
    for number, step in enumerate(alone):
        assert_same(joined([batch for rank in ranks for batch in rank[number]]), step)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_samples_stop_the_run(numbered, workers: int) -> None:
    source = numbered(200, frozenset(range(0, 200, 10)))
    steps = loader(source, max_unreadable_share=0.05, workers=workers).steps(0, 1000)
    done = 0
    with pytest.raises(UnveilError, match="could not be decoded, and at most 5.0% may") as raised:
        for _ in steps:
            done += 1
    # Twice the limit is three standard deviations above it after some 180 reads: fifteen steps of twelve.
    assert 3 <= done <= 60
    assert str(raised.value).count("made so") == 3 and "max_unreadable_share" in str(raised.value)


def test_few_reads_are_judged_with_leeway_for_chance(numbered) -> None:
    assert len(list(loader(numbered(24, frozenset({1}))).steps(0, 2))) == 2
    with pytest.raises(UnveilError, match="could not be decoded"):
        list(loader(numbered(24, frozenset({1, 5, 9, 13}))).steps(0, 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_readable_ends_at_once(tmp_path: Path, workers: int) -> None:
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(b"junk")
    source = FolderSource(tmp_path)
    with pytest.raises(UnveilError, match=r"100.0%\) could not be decoded: .*not an image.*copy such files again"):
        next(iter(loader(source, max_unreadable_share=1.0, workers=workers).steps(0, 100)))
    with pytest.raises(UnveilError, match="100.0%"):
        list(EvaluationLoader(source, view, collate, batch_size=4, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sentence_from_a_worker_arrives_as_it_was(numbered, workers: int) -> None:
    def refuse(sample: Sample, rng: random.Random) -> dict[str, Any]:
        raise UnveilError("the label file has no line for this image; add one")

    with pytest.raises(UnveilError) as raised:
        next(TrainingLoader(numbered(9), refuse, collate, seed=0, global_batch_size=2, micro_batch_size=2,
                            workers=workers).steps(0, 1))  # fmt: skip
    assert str(raised.value) == "the label file has no line for this image; add one"


def test_a_defect_in_a_worker_keeps_its_traceback(numbered) -> None:
    def fail(sample: Sample, rng: random.Random) -> dict[str, Any]:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect") as raised:
        list(EvaluationLoader(numbered(9), fail, collate, batch_size=2, workers=1))
    assert "Traceback" in str(raised.value)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes")
def test_signals_are_left_to_the_main_process(numbered) -> None:
    steps = loader(numbered(100), workers=2).steps(0, 40)
    # They take turns: after two steps both have started.
    next(steps), next(steps)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid or 0, number)
    assert len(list(steps)) == 38
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes")
def test_a_killed_worker_is_a_clear_sentence(numbered) -> None:
    steps = loader(numbered(100), workers=1).steps(0, 1000)
    next(steps)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(UnveilError, match="try fewer workers"):
        for _ in steps:
            pass


def test_leaving_early_ends_the_workers(numbered) -> None:
    for _ in loader(numbered(100), workers=2).steps(0, 1000):
        break
    assert not multiprocessing.active_children()


def test_a_program_that_dies_in_the_middle_of_loading_does_not_hang(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path, [f"{number}.jpg" for number in range(8)])
    code = f"""
from unveil.data import loader
from unveil.data.sources.folder import FolderSource
loader.GRACE_SECONDS = 10**6
view = lambda sample, rng: {{"name": sample.name}}
steps = loader.TrainingLoader(FolderSource({str(tmp_path)!r}), view, lambda views: {{}}, seed=0, global_batch_size=2,
                              micro_batch_size=2, workers=2).steps(0, 10**6)
next(steps)
raise SystemExit("the end")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 1 and result.stderr.strip() == "the end"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_wait_in_pinned_memory(photos, workers: int) -> None:
    steps = list(loader(photos, workers=workers).steps(0, 3))
    assert all(batch["image"].is_pinned() and batch["sample_numbers"].is_pinned() for (batch,) in steps)
    assert_same(steps[1][0], next(loader(photos).steps(1, 2))[0])
    (batch,) = EvaluationLoader(photos, view, collate, batch_size=31, workers=workers)
    assert batch["valid"].is_pinned()


def evaluated(source: Any, world_size: int, **settings: Any) -> Iterator[list[dict[str, Any]]]:
    for rank in range(world_size):
        yield list(EvaluationLoader(source, view, collate, rank=rank, world_size=world_size, **settings))


@pytest.mark.parametrize(
    ("count", "world_size", "batch_size", "workers"),
    [(31, 1, 8, 0), (31, 3, 4, 2), (2, 3, 4, 0), (24, 2, 4, 1), (1, 1, 5, 0)],
)
def test_evaluation_sees_every_sample_once(
    numbered, count: int, world_size: int, batch_size: int, workers: int
) -> None:
    source = numbered(count)
    ranks = list(evaluated(source, world_size, batch_size=batch_size, workers=workers))
    batches = -(-count // (world_size * batch_size))
    assert [len(rank) for rank in ranks] == [batches] * world_size
    assert len(EvaluationLoader(source, view, collate, batch_size=batch_size, world_size=world_size)) == batches
    everything = joined([batch for rank in ranks for batch in rank])
    assert len(everything["image"]) == batches * world_size * batch_size
    valid = everything["valid"]
    assert valid.dtype == torch.bool
    assert sorted(everything["indices"][valid].tolist()) == list(range(count))
    assert torch.equal(everything["indices"][valid], everything["sample_numbers"][valid])
    assert everything["image"][valid][:, 0, 0, 0].tolist() == everything["indices"][valid].tolist()


def test_evaluation_draws_the_same_for_a_sample_on_every_layout(photos) -> None:
    def draws(world_size: int, batch_size: int) -> list[float]:
        rows = joined([b for rank in evaluated(photos, world_size, batch_size=batch_size) for b in rank])
        valid = rows["valid"].nonzero().squeeze(1)
        return rows["draw"][valid[rows["indices"][valid].argsort()]].tolist()

    assert draws(1, 31) == draws(2, 5) == draws(3, 1)


def test_evaluation_leaves_unreadable_rows_out_and_says_so(numbered) -> None:
    source = numbered(10, frozenset({0, 1, 2, 3, 8}))
    reports: list[tuple[str, str]] = []
    batches = list(
        EvaluationLoader(source, view, collate, batch_size=4, on_unreadable=lambda *report: reports.append(report))
    )
    rows = joined(batches)
    assert rows["indices"][rows["valid"]].tolist() == [4, 5, 6, 7, 9]
    assert rows["image"].shape == (12, 3, 8, 8)
    assert sorted(reports) == [(f"image {index}", "made so") for index in (0, 1, 2, 3, 8)]
