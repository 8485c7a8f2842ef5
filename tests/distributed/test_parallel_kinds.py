"""ddp, zero1 and fsdp take the steps that one process takes, and each goes on from what another has saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.courses import STEPS, course, courses, half_way
from tests.distributed.processes import together
from tests.engine.toy import CPU
from unveil.engine import RunFolder

Rows = list[tuple[int, dict[str, float]]]

KINDS: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp"},
    "zero1": {"parallel": "zero1"},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, gathered once": {"parallel": "fsdp", "reshard_after_forward": False},
}
IN_GROUPS = {"parallel": "fsdp", "shard_group": 2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """The run of one process that takes the batch as a whole."""
    out = tmp_path_factory.mktemp("alone") / "run"
    return out, course(CPU, out, 24)


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Rows]]:
    """Runs of two processes, of each kind."""
    folder = tmp_path_factory.mktemp("two")
    rows, nothing = together(2, courses, 4, {folder / kind: settings for kind, settings in KINDS.items()})
    assert not any(nothing.values()), "only the main process logs"
    return {kind: (folder / kind, rows[folder / kind]) for kind in KINDS}


def assert_same_course(found: Rows, expected: Rows) -> None:
    assert [at for at, _ in found] == [at for at, _ in expected]
    for (at, ours), (_, theirs) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5), at


def assert_same_end(run: Path, other: Path) -> None:
    """The files that everybody reads, and the optimizer's state."""
    name = f"checkpoints/step_{STEPS:08d}"
    for file in ("model.safetensors", "model_ema.safetensors"):
        ours, theirs = load_file(run / name / file), load_file(other / name / file)
        assert list(ours) and ours.keys() == theirs.keys()
        for tensor, value in ours.items():
            torch.testing.assert_close(value, theirs[tensor], atol=1e-5, rtol=1e-4, msg=f"{file}: {tensor}")
    moments, others = (RunFolder(path).checkpoints.load(STEPS).optimizer for path in (run, other))
    assert moments is not None and others is not None and moments.keys() == others.keys()
    for place, value in moments.items():
        torch.testing.assert_close(value, others[place], atol=1e-5, rtol=1e-3, msg=place)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_equal_one(kind: str, alone: tuple[Path, Rows], by_two: dict[str, tuple[Path, Rows]]) -> None:
    (run, rows), (reference, expected) = by_two[kind], alone
    assert {"validation_loss", "validation_ema_loss", "validation_accuracy"} <= expected[-1][1].keys()
    assert_same_course(rows, expected)
    assert_same_end(run, reference)


def test_nobody_holds_the_state_of_all(by_two: dict[str, tuple[Path, Rows]]) -> None:
    """zero1 and fsdp save what each process has: about half of it."""
    sizes = {
        kind: [file.stat().st_size for file in sorted(run.glob(f"checkpoints/step_{STEPS:08d}/optimizer_*"))]
        for kind, (run, _) in by_two.items()
    }
    (whole,) = sizes["ddp"]
    for kind in ("zero1", "fsdp"):
        assert len(sizes[kind]) == 2
        assert all(0.4 * whole < size < 0.7 * whole for size in sizes[kind])


def test_one_process_goes_on_from_two(
    tmp_path: Path, alone: tuple[Path, Rows], by_two: dict[str, tuple[Path, Rows]]
) -> None:
    for kind, (run, rows) in by_two.items():
        out = half_way(run, tmp_path / kind)
        assert_same_course(rows[: STEPS // 2] + course(CPU, out, 8), alone[1])
        assert_same_end(out, alone[0])


def test_three_processes_go_on_from_two_in_other_ways(
    tmp_path: Path, alone: tuple[Path, Rows], by_two: dict[str, tuple[Path, Rows]]
) -> None:
    turns = {"ddp": "zero1", "zero1": "fsdp", "fsdp": "fsdp"}
    asked = {half_way(by_two[kind][0], tmp_path / kind): KINDS[turn] for kind, turn in turns.items()}
    rows = together(3, courses, 2, asked)[0]
    for kind in turns:
        assert_same_course(by_two[kind][1][: STEPS // 2] + rows[tmp_path / kind], alone[1])
        assert_same_end(tmp_path / kind, alone[0])


def test_four_processes_in_groups_equal_one_and_go_on_from_two(
    tmp_path: Path, alone: tuple[Path, Rows], by_two: dict[str, tuple[Path, Rows]]
) -> None:
    """Two groups of two: sharded within a group, the same in both."""
    turns = {"zero1": KINDS["zero1"], "fsdp": IN_GROUPS}
    asked = {half_way(by_two[kind][0], tmp_path / kind): settings for kind, settings in turns.items()}
    fresh = tmp_path / "in groups"
    rows = together(4, courses, 2, {**asked, fresh: IN_GROUPS})[0]
    for kind in turns:
        assert_same_course(by_two[kind][1][: STEPS // 2] + rows[tmp_path / kind], alone[1])
        assert_same_end(tmp_path / kind, alone[0])
    assert_same_course(rows[fresh], alone[1])
    assert_same_end(fresh, alone[0])
    written, whole = (
        sum(file.stat().st_size for file in run.glob(f"checkpoints/step_{STEPS:08d}/optimizer_*"))
        for run in (fresh, alone[0])
    )
    assert written < 1.5 * whole, "once, not by each group"


@pytest.mark.slow
def test_compiled_they_take_the_same_steps(tmp_path: Path, alone: tuple[Path, Rows]) -> None:
    asked = {tmp_path / kind: {**KINDS[kind], "compile": True} for kind in ("zero1", "fsdp")}
    rows = together(2, courses, 4, asked)[0]
    for out in asked:
        assert_same_course(rows[out], alone[1])
        assert_same_end(out, alone[0])
