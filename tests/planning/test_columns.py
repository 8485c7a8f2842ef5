"""What RevColV2 costs, against torch's counter, torch's saved tensors, and the benchmark's figures."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unveil.build import build_classification, build_pretext
from unveil.config import (
    ClassificationConfig,
    MaskedRegression,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    ProbeConfig,
    RandomMasking,
    UnveilError,
)
from unveil.config.revcolv2 import RevColV2Config, Reversible, revcolv2_base
from unveil.models.revcolv2 import RevColV2
from unveil.planning.bench import flops_per_image
from unveil.planning.columns import Reads, columns, largest_column
from unveil.planning.cost import FULL
from unveil.planning.hardware import gpu_named
from unveil.planning.networks import network_cost
from unveil.planning.plan import plan
from unveil.planning.teachers import teacher_of
from unveil.pretext.masked_modelling import pad_hidden
from unveil.recipes.revcolv2 import revcolv2_base_in1k, revcolv2_base_mim

MODEL = RevColV2Config(
    image_size=64,
    mask_unit=32,
    widths=(8, 12, 16, 20),
    layers=(1, 2, 1, 1),
    head_width=8,
    mlp_ratio=2,
    bottom_up_columns=2,
    top_down_columns=3,
    reversible="off",
)
OPTIMIZATION = OptimizationConfig(global_batch_size=2, steps=10, micro_batch_size=2)
PRETRAINING = PretrainConfig(
    recipe="x",
    model=MODEL,
    objective=MaskedRegression(loss="squared"),
    masking=RandomMasking(ratio=0.5),
    target=PixelTarget(),
    optimization=OPTIMIZATION,
)
CLASSIFICATION = ClassificationConfig(recipe="x", model=MODEL, classes=("a", "b", "c"), optimization=OPTIMIZATION)
MIB = 2**20
CHAIN: dict[bool, dict[str, Any]] = {False: {}, True: {"gamma_floor": 0.5}}

HELD = {
    (4, "off"): 187.7,
    (4, "column"): 9.5,
    (4, "chain"): 7.3,
    (8, "off"): 375.4,
    (8, "column"): 18.3,
    (8, "chain"): 7.3,
    (16, "off"): 750.8,
    (16, "column"): 35.9,
    (16, "chain"): 7.3,
}
"""MiB of one image of base, measured: docs/revcolv2.md, by benchmarks/reversible_memory.py."""


@pytest.mark.parametrize(("count", "mode"), HELD)
def test_what_waits_for_backward_is_what_was_measured(count: int, mode: Reversible) -> None:
    half = {"bottom_up_columns": count // 2, "top_down_columns": count // 2}
    floor = {"gamma_floor": 0.5} if mode == "chain" else {}
    config = replace(revcolv2_base(), reversible=mode, **half, **floor)
    found = columns(config, FULL).saved / MIB
    assert found == pytest.approx(HELD[count, mode], abs=0.2)
    if mode == "column":
        # Facts of the reconstruction, section 5.
        assert found == pytest.approx({4: 8.8, 8: 17.6, 16: 35.2}[count], rel=0.1)


def test_the_published_sizes_and_what_classification_leaves_out() -> None:
    """88 M and 19 G with a head of 1000 classes; 15.5 G in classification: docs/revcolv2.md."""
    whole = columns(revcolv2_base(), FULL)
    assert (whole.parameters + 1024 + 513_000) / 1e6 == pytest.approx(88.02, abs=0.005)
    assert whole.forward / 2e9 == pytest.approx(18.74, abs=0.005)
    assert columns(revcolv2_base(), FULL, reads="top").forward / 2e9 == pytest.approx(15.5, abs=0.05)


def convolution_backward(gradient: Any, images: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of a depthwise convolution: as much for its input and for its kernel as forward. (torch's own count multiplies
    all channels with all.)"""
    batch, _, rows, columns_ = images
    return 2 * 2 * batch * rows * columns_ * weight[0] * weight[2] * weight[3]


def counted(task: nn.Module, batch: dict[str, Any]) -> int:
    """By torch, for one of the two images."""
    task.train()
    mapping = {torch.ops.aten.convolution_backward: convolution_backward}
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=mapping) as counter,
    ):
        task(batch)["loss"][0].backward()
    return counter.get_total_flops() // 2


def batch_of(config: PretrainConfig | ClassificationConfig) -> dict[str, Any]:
    batch: dict[str, Any] = {
        "image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
        "sample_numbers": torch.arange(2),
        "label": torch.zeros(2, dtype=torch.int64),
        "step": 0,
    }
    if isinstance(config, PretrainConfig):
        batch["mask"] = (torch.arange(4) < 2).expand(2, -1)
        batch["hidden"], batch["hidden_weight"] = pad_hidden(batch["mask"], 2)
    return batch


def test_classification_in_a_chain_computes_all_levels_forward() -> None:
    config = replace(CLASSIFICATION, model=replace(MODEL, reversible="chain", gamma_floor=0.5))
    task, cost = build_classification(config), network_cost(config, FULL, None, 3)
    task.train()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(batch_of(config))
    assert 2 * cost.forward == counter.get_total_flops()
    in_columns = network_cost(CLASSIFICATION, FULL, None, 3)
    assert cost.backward == in_columns.backward and cost.forward > in_columns.forward
    assert (cost.parameters, cost.learned) == (in_columns.parameters, in_columns.learned)


@pytest.mark.parametrize("config", [PRETRAINING, CLASSIFICATION], ids=["masked", "classified"])
def test_parameters_and_arithmetic_are_those_of_the_network(config: PretrainConfig | ClassificationConfig) -> None:
    task = build_pretext(config) if isinstance(config, PretrainConfig) else build_classification(config)
    teacher = teacher_of(config) if isinstance(config, PretrainConfig) else None
    cost = network_cost(config, FULL, teacher, 3)
    assert cost.parameters == sum(value.numel() for value in task.parameters())
    assert cost.learned == sum(value.numel() for value in task.parameters() if value.requires_grad)
    assert cost.forward + cost.backward == counted(task, batch_of(config)) == flops_per_image(config)
    column = task.backbone.top_down[0]
    assert largest_column(MODEL) == sum(value.numel() for value in column.parameters())


def test_a_probe_runs_the_bottom_up_columns_alone() -> None:
    config = ProbeConfig(recipe="x", model=MODEL, pooling="mean", classes=("a", "b"), optimization=OPTIMIZATION)
    cost = network_cost(config, FULL, None, 2)
    network = RevColV2(MODEL, reads="bottom_up").eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 64, 64))
    head = 20 * 2
    assert cost.forward == counter.get_total_flops() + 2 * head
    assert cost.learned == head + 2 and cost.parameters == head + 2 + sum(p.numel() for p in network.parameters())


def held(network: RevColV2, reads: Reads, mask: Tensor | None) -> int:
    """Bytes of all storages that wait for backward, but for the parameters and for numbers of cells."""
    own = {value.untyped_storage().data_ptr() for value in [*network.parameters(), *network.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        found = network(torch.randn(1, 3, 64, 64), mask, need=(reads,))
        maps = found.levels.values() if found.levels else [found.patches]
        loss = torch.stack([one.sum() for one in maps]).sum()
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("mode", ["off", "column", "chain"])
@pytest.mark.parametrize(("reads", "hidden"), [("levels", 2), ("levels", 0), ("top", 0)])
def test_what_waits_for_backward_is_what_autograd_is_seen_to_keep(mode: Reversible, reads: Reads, hidden: int) -> None:
    config = replace(MODEL, reversible=mode, **CHAIN[mode == "chain"])
    network = RevColV2(config, mask_token=hidden > 0, reads=reads)
    mask = (torch.arange(4) < hidden)[None] if hidden else None
    reckoned = columns(config, FULL, reads=reads, mask_tokens=hidden > 0, hidden=hidden).saved
    assert reckoned == pytest.approx(held(network, reads, mask), rel=0.1)


def test_a_plan_tells_the_three_ways_and_the_cheapest_keeps_all_that_fits() -> None:
    planned = plan(revcolv2_base_mim(), gpus=8, gpu=gpu_named("a100-40gb"))
    by_mode = planned.by_reversible
    assert by_mode["off"] > by_mode["column"] > by_mode["chain"]
    assert planned.chosen.reversible == "column" and planned.chosen.memory.total == by_mode["column"]
    assert planned.cheapest is not None and planned.cheapest.reversible == "off"
    # Some 12 G multiply-adds forward (facts of the reconstruction, section 6.5: 2.3 + 9.4).
    assert planned.network.forward / 2e9 == pytest.approx(11.7, abs=0.2)
    sharded = plan(revcolv2_base_in1k(), gpus=8, gpu=gpu_named("a100-40gb"), parallel="fsdp")
    assert sharded.chosen.memory.parameters == 4 * sharded.network.parameters // 8


def test_the_released_layout_is_evas_alone() -> None:
    with pytest.raises(UnveilError, match="pre-trains a ViT"):
        plan(revcolv2_base_mim(), gpus=8, gpu=gpu_named("a100-40gb"), layout="as-published")
