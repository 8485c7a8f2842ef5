"""RevColV2 in two gloo processes gives the gradients of one: replicated in every mode, sharded where it can be."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.processes import together
from tests.models.revcolv2_tiny import gradients, half_hidden, noise_for, tiny
from unveil.config import UnveilError
from unveil.engine import Parallel

MODES = ("off", "column", "chain")


def network_of(mode: str, task: str) -> nn.Module:
    sizes: dict[str, Any] = {"drop_path": 0.3, "bottom_up_columns": 2, "top_down_columns": 2, "gamma_floor": 0.5}
    if task == "pixels":
        return tiny(mask_token=True, reversible=mode, **sizes)
    return tiny(reads="top", reversible=mode, **sizes)


def loss_of(module: nn.Module, network: Any, task: str, rank: int = 0, world_size: int = 1) -> Tensor:
    """Of this process's images, so that the average over processes is the gradient over all four."""
    torch.manual_seed(1)
    images, mine = torch.randn(4, 3, 64, 64), slice(rank, None, world_size)
    noise = noise_for(network, 4)[mine]
    if task == "pixels":
        return module(images[mine], half_hidden(4)[mine], drop_path_noise=noise).levels[4].square().mean()
    return module(images[mine], drop_path_noise=noise).patches.square().mean()


def replicated(mode: str, task: str) -> dict[str, Tensor]:
    with Parallel.start("cpu") as parallel:
        network = network_of(mode, task)
        module = DistributedDataParallel(network)
        loss_of(module, network, task, parallel.rank, parallel.world_size).backward()
        return gradients(network)


def sharded(mode: str, task: str) -> dict[str, Tensor]:
    with Parallel.start("cpu") as parallel:
        network = network_of(mode, task)
        for unit in network.shard_units():
            fully_shard(unit)
        fully_shard(network)
        loss_of(network, network, task, parallel.rank, parallel.world_size).backward()
        return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients(network).items()}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pixels", "top"])
def test_two_processes_give_the_gradients_of_one(task: str) -> None:
    network = network_of("off", task)
    loss_of(network, network, task).backward()
    expected = gradients(network)
    runs = [(replicated, mode) for mode in MODES] + [(sharded, mode) for mode in ("off", "column")]
    for run, mode in runs:
        first, second = together(2, run, mode, task)
        assert first.keys() == second.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(first[name], gradient, atol=1e-4, rtol=1e-3, msg=f"{run.__name__} {mode} {name}")


@pytest.mark.slow
def test_chain_refuses_sharded_parameters() -> None:
    found = together(2, sharded, "chain", "top")
    assert all(isinstance(one, UnveilError) and "engine.parallel=fsdp" in str(one) for one in found)
