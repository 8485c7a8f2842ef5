"""Any placement is written by some processes and read by others: uneven rows, fewer rows than processes, groups."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from tests.distributed.processes import together
from unveil.engine import CheckpointFolder, Parallel
from unveil.engine.pieces import own_copies

ROWS = {"even": (8, 3), "uneven": (7, 3), "two rows": (2, 5), "one": (1,), "half": (6, 2), "whole numbers": (5, 2)}


def whole() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in ROWS.items()}
    state["half"] = state["half"].bfloat16()
    state["whole numbers"] = (100 * state["whole numbers"]).long()
    return state | {"scalar": torch.tensor(0.25), "count": torch.tensor(3), "everywhere": torch.randn(4, 4)}


def dealt_out(state: dict[str, Tensor], groups: int, parallel: Parallel) -> dict[str, Any]:
    """What has rows of its own as fsdp would deal them out: in every group of neighbours again."""
    from torch.distributed.tensor import Replicate, Shard

    each = parallel.world_size // groups
    if groups == 1:
        mesh, placements = init_device_mesh("cpu", (each,)), [Shard(0)]
    else:
        mesh, placements = init_device_mesh("cpu", (groups, each)), [Replicate(), Shard(0)]
    return {
        name: distribute_tensor(value, mesh, placements, src_data_rank=None) if name in ROWS else value
        for name, value in state.items()
    }


def save(out: Path, groups: int) -> None:
    """Each process has a moment of its own besides, as under zero1."""
    with Parallel.start("cpu") as parallel:
        state = dealt_out(whole(), groups, parallel)
        moments = own_copies(state, whole=parallel.is_main) | {f"own {parallel.rank}": torch.full((2,), parallel.rank)}
        weights = own_copies(state, whole=parallel.is_main)
        CheckpointFolder(out).save(1, weights, {}, optimizer=moments, parallel=parallel.aside())


def read(out: Path, groups: int) -> list[dict[str, Tensor]]:
    """Weights and moments as this process finds them, put together by all again."""
    with Parallel.start("cpu") as parallel:
        checkpoint = CheckpointFolder(out).load(1)
        found = []
        for pieces in (checkpoint.weights, checkpoint.optimizer):
            state = dealt_out({name: torch.zeros_like(value) for name, value in whole().items()}, groups, parallel)
            pieces.fill(state)
            found.append({name: value.full_tensor() if name in ROWS else value for name, value in state.items()})
        return found


def assert_whole(found: dict[str, Tensor]) -> None:
    for name, value in whole().items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_what_some_processes_have_written_others_read(tmp_path: Path) -> None:
    for name, processes, groups in (("in a row", 3, 1), ("in groups", 4, 2)):
        together(processes, save, tmp_path / name, groups)
        folder = CheckpointFolder(tmp_path / name)
        assert folder.latest_whole() == 1
        files = {path.name for path in folder.folder(1).iterdir()}
        parts = {f"optimizer_{rank:05d}.safetensors" for rank in range(processes)}
        assert files == {"model.safetensors", "training.json", "manifest.json"} | parts
        assert_whole(load_file(folder.folder(1) / "model.safetensors"))
        moments = dict(folder.load(1).optimizer)
        assert_whole(moments)
        assert all(moments[f"own {rank}"].tolist() == [rank, rank] for rank in range(processes))
        assert moments.keys() == whole().keys() | {f"own {rank}" for rank in range(processes)}
    for name, processes, groups in (("in a row", 4, 2), ("in groups", 3, 1)):
        for states in together(processes, read, tmp_path / name, groups):
            for state in states:
                assert_whole(state)
