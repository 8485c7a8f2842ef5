"""Lengths and batches made concrete."""

from dataclasses import replace
from typing import Any

import pytest

from unveil.config import AugmentationConfig, OptimizationConfig, PretrainConfig, UnveilError
from unveil.config.resolve import Machine, batch_arithmetic, resolve
from unveil.recipes import clip_base_one_gpu, clip_small, eva_giant, finetune_small, small_cpu, tiny_cpu


def machine(**changes: Any) -> Machine:
    given: dict[str, Any] = {"device": "cpu", "world_size": 1, "cores": 4, "memory_gib": 16.0, "precision": "fp32"}
    return Machine(**(given | changes))


def with_optimization(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    return replace(config, optimization=replace(config.optimization, **changes))


def test_eva_has_the_released_log_s_steps() -> None:
    """The released log's learning rates belong to 7,242 steps an epoch, at 4,096 images a step."""
    gpus = machine(device="cuda", world_size=128, memory_gib=40.0, cores=8, precision="bf16")
    resolved = resolve(eva_giant(), images=29_663_232, machine=gpus).optimization
    assert (resolved.steps, resolved.warmup_steps) == (7242 * 150, 14_484)
    assert resolved.epochs is None and resolved.warmup_epochs is None


def test_epochs_that_do_not_fill_the_last_batch() -> None:
    config = with_optimization(small_cpu(), epochs=1.5, warmup_epochs=0.5, global_batch_size=64)
    resolved = resolve(config, images=1000, machine=machine()).optimization
    assert (resolved.steps, resolved.warmup_steps) == (1500 // 64, 500 // 64)


def test_fewer_images_than_a_batch_still_make_a_step() -> None:
    resolved = resolve(with_optimization(small_cpu(), epochs=1.0), images=3, machine=machine()).optimization
    assert (resolved.steps, resolved.warmup_steps) == (1, 0)


def test_warm_up_ends_before_the_run_does() -> None:
    config = with_optimization(tiny_cpu(), steps=5, warmup_steps=50)
    assert resolve(config, images=100, machine=machine()).optimization.warmup_steps == 4


def test_without_a_length() -> None:
    with pytest.raises(UnveilError, match="neither steps nor epochs"):
        resolve(with_optimization(tiny_cpu(), steps=None), images=100, machine=machine())


@pytest.mark.parametrize(("batch", "processes", "micro"), [(100, 8, None), (10, 3, None), (2, 8, None), (96, 2, 32)])
def test_a_batch_that_does_not_divide_comes_with_one_that_does(batch: int, processes: int, micro: int | None) -> None:
    config = with_optimization(tiny_cpu(), global_batch_size=batch, micro_batch_size=micro)
    with pytest.raises(UnveilError, match=r"try --global-batch-size \d+") as raised:
        resolve(config, images=100, machine=machine(world_size=processes))
    proposed = int(str(raised.value).split("--global-batch-size ")[1].split()[0])
    resolve(with_optimization(config, global_batch_size=proposed), images=100, machine=machine(world_size=processes))


@pytest.mark.parametrize("batch", [1, 7, 48, 97, 128, 4096])
@pytest.mark.parametrize("memory", [0.001, 1.0, 80.0])
def test_a_derived_micro_batch_divides(batch: int, memory: float) -> None:
    config = with_optimization(tiny_cpu(), global_batch_size=batch)
    micro = resolve(config, images=100, machine=machine(memory_gib=memory)).optimization.micro_batch_size
    assert micro is not None and batch % micro == 0 and 1 <= micro <= 64


def test_less_memory_never_means_a_larger_micro_batch() -> None:
    sizes = []
    for memory in (8.0, 16.0, 40.0, 80.0, 141.0):
        gpus = machine(device="cuda", world_size=8, memory_gib=memory, precision="bf16")
        size = resolve(eva_giant(), images=10**6, machine=gpus).optimization.micro_batch_size
        assert size is not None
        sizes.append(size)
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_precision_and_workers() -> None:
    resolved = resolve(small_cpu(), images=100, machine=machine(precision="bf16", cores=1))
    assert (resolved.engine.precision, resolved.data.workers) == ("bf16", 0)
    resolved = resolve(eva_giant(), images=10**6, machine=machine(device="cuda", precision="bf16", cores=64))
    assert (resolved.engine.precision, resolved.data.workers) == ("fp16", 16)
    assert resolve(tiny_cpu(), images=9, machine=machine()).data.workers == 1


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(small_cpu(), images=1000, machine=machine())
    assert resolve(once, images=5, machine=machine(precision="bf16", cores=99)) == once


@pytest.mark.parametrize(
    ("device", "processes", "line"),
    [
        ("cuda", 8, "global 4096 = 8 GPUs x 64 x 8 accumulation"),
        ("cuda", 1, "global 4096 = 1 GPU x 64 x 64 accumulation"),
        ("cpu", 1, "global 4096 = 1 CPU process x 64 x 64 accumulation"),
        ("cpu", 2, "global 4096 = 2 CPU processes x 64 x 32 accumulation"),
    ],
)
def test_the_line_of_arithmetic(device: Any, processes: int, line: str) -> None:
    config = replace(tiny_cpu(), optimization=OptimizationConfig(global_batch_size=4096, micro_batch_size=64, steps=1))
    here = machine(device=device, world_size=processes)
    assert batch_arithmetic(resolve(config, images=10, machine=here), here) == line


def test_micro_batches_of_a_mixed_run_hold_pairs() -> None:
    mixed = finetune_small()
    assert mixed.augmentation.mixes
    for batch, processes, memory, expected in ((30, 1, 16.0, 30), (30, 1, 0.005, 2), (36, 2, 0.04, 6), (6, 3, 16.0, 2)):
        config = replace(mixed, optimization=replace(mixed.optimization, global_batch_size=batch))
        here = machine(world_size=processes, memory_gib=memory)
        micro = resolve(config, images=100, machine=here).optimization.micro_batch_size
        assert micro == expected
    odd = replace(mixed, optimization=replace(mixed.optimization, global_batch_size=9))
    with pytest.raises(
        UnveilError, match="mix pairs of images, which micro-batches of 9 cannot hold; try --global-batch-size 8"
    ):
        resolve(odd, images=100, machine=machine())
    plain = replace(odd, augmentation=AugmentationConfig())
    assert resolve(plain, images=100, machine=machine()).optimization.micro_batch_size == 9


def test_micro_batches_of_a_clip_are_as_large_as_memory_allows() -> None:
    """Splitting its batch costs a second forward pass."""
    assert resolve(clip_small(), images=10_000, machine=machine()).optimization.micro_batch_size == 256
    sizes = []
    for memory in (4.0, 12.0, 24.0, 640.0):
        gpu = machine(device="cuda", memory_gib=memory, precision="bf16")
        sizes.append(resolve(clip_base_one_gpu(), images=10**6, machine=gpu).optimization.micro_batch_size)
    assert sizes == sorted(sizes) and sizes[0] < sizes[1] < sizes[-1] == 1024
    dropped = replace(clip_base_one_gpu(), patch_dropout=0.75)
    gpu = machine(device="cuda", memory_gib=12.0, precision="bf16")
    assert resolve(dropped, images=10**6, machine=gpu).optimization.micro_batch_size > sizes[1]
