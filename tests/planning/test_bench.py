"""Measuring a step: what is there to be read, on the tiniest networks; never how fast it was."""

from dataclasses import replace
from typing import Literal

import pytest
import timm
import torch

from tests.distributed.processes import together
from unveil.config import (
    ClassificationConfig,
    ClipTarget,
    EngineConfig,
    OptimizationConfig,
    PixelTarget,
    PretrainConfig,
    UnveilError,
    ViTConfig,
)
from unveil.config.data import DataConfig
from unveil.engine import Parallel, Precision
from unveil.models.vit import ViT
from unveil.planning import matrix_rate as matrix_rates
from unveil.planning.bench import PHASES, Measured, bench, flops_per_image
from unveil.planning.example_images import SIZE, ExampleImages
from unveil.planning.matrix_rate import matrix_rate
from unveil.planning.teachers import CLIP_TOWERS
from unveil.planning.timm_blocks import TimmBlock, use_timm_blocks

MODEL = ViTConfig(image_size=32, patch_size=16, width=16, depth=2, heads=2, mlp_width=32, drop_path=0.1)
OPTIMIZATION = OptimizationConfig(global_batch_size=4, micro_batch_size=2, steps=10, warmup_steps=0)
ENGINE = EngineConfig(precision="fp32")
DATA = DataConfig(workers=0)


@pytest.fixture(autouse=True)
def short_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.planning.matrix_rate.SECONDS", 1e-9)
    monkeypatch.setattr("unveil.planning.matrix_rate.SIZES", {"cpu": (64,), "cuda": (64,)})


@pytest.mark.parametrize("on_timm", [False, True])
def test_a_pretraining_step_with_a_teacher_of_random_weights(on_timm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(CLIP_TOWERS["ViT-B-16"].config, image_size=32, width=16, depth=1, heads=2, mlp_width=64)
    monkeypatch.setitem(CLIP_TOWERS, "ViT-B-16", replace(CLIP_TOWERS["ViT-B-16"], config=small, embedding_width=8))
    config = PretrainConfig(
        recipe="x",
        model=MODEL,
        target=ClipTarget(name="ViT-B-16/openai"),
        optimization=OPTIMIZATION,
        engine=ENGINE,
        data=DATA,
    )
    here, images = Parallel(torch.device("cpu")), ExampleImages(20, 1)
    found = bench(config, images, parallel=here, steps=1, warm_up=1, on_timm=on_timm)
    assert found.name == ("timm's blocks" if on_timm else "unveil")
    assert set(found.seconds) == set(PHASES)
    assert all(found.seconds[phase] > 0 for phase in ("data", "teacher", "forward", "backward", "optimizer"))
    assert found.images_per_second == pytest.approx(4 / found.step_seconds)
    assert found.flops_per_image == flops_per_image(config)
    assert found.mfu == pytest.approx(found.images_per_second * found.flops_per_image / found.matrix_rate)
    assert found.as_json()["mfu"] == found.mfu
    assert found.peak_bytes > 10**8


def by_several(kinds: tuple[str, ...]) -> dict[str, Measured]:
    """Of pre-training on pixels, by kind of parallelism."""
    matrix_rates.SECONDS, matrix_rates.SIZES = 1e-9, {"cpu": (64,), "cuda": (64,)}
    found = {}
    with Parallel.start("cpu") as parallel:
        for kind in kinds:
            config = PretrainConfig(
                recipe="x",
                model=MODEL,
                target=PixelTarget(),
                optimization=replace(OPTIMIZATION, global_batch_size=8),
                engine=replace(ENGINE, parallel=kind),
                data=DATA,
            )
            found[kind] = bench(config, ExampleImages(40, 1), parallel=parallel, steps=2, warm_up=1)
    return found


def test_two_processes_are_measured_in_each_kind_of_parallelism() -> None:
    kinds = ("ddp", "zero1", "fsdp")
    for found in together(2, by_several, kinds):
        assert tuple(found) == kinds
        for measured in found.values():
            assert measured.processes == 2 and measured.images_per_second == pytest.approx(8 / measured.step_seconds)
            assert all(measured.seconds[phase] > 0 for phase in ("forward", "backward", "communication", "optimizer"))


def test_a_classification_step_has_no_teacher() -> None:
    config = ClassificationConfig(
        recipe="x",
        model=MODEL,
        classes=("a", "b"),
        ema_decay=0.9,
        optimization=OPTIMIZATION,
        engine=ENGINE,
        data=DATA,
    )
    found = bench(config, ExampleImages(20, 2), parallel=Parallel(torch.device("cpu")), steps=1, warm_up=0)
    assert found.seconds["teacher"] == 0.0 < found.seconds["forward"]


@pytest.mark.parametrize("qkv_bias", ["query_and_value", "all", "none"])
def test_timms_blocks_do_the_same_arithmetic_with_as_many_parameters(
    qkv_bias: Literal["query_and_value", "all", "none"],
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    counts = []
    for theirs in (False, True):
        network = ViT(replace(MODEL, qkv_bias=qkv_bias))
        if theirs:
            use_timm_blocks(network)
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, 32, 32)).cls.sum().backward()
        counts.append((counter.get_total_flops(), sum(value.numel() for value in network.parameters())))
    assert counts[0] == counts[1]


def test_of_eva_they_are_those_of_timms_eva() -> None:
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    theirs = timm.create_model("eva_giant_patch14_224", **sizes)
    network = ViT(MODEL)
    use_timm_blocks(network)
    assert isinstance(network.blocks[0], TimmBlock)
    # With the drop path of MODEL, which has no weights.
    assert network.blocks[0].block.load_state_dict(theirs.blocks[0].state_dict())
    assert type(network.blocks[0].block) is type(theirs.blocks[0])


def test_timms_blocks_refuse_relative_positions() -> None:
    with pytest.raises(UnveilError, match="relative positions"):
        use_timm_blocks(ViT(replace(MODEL, relative_positions="shared")))


def test_examples_are_photos_with_labels() -> None:
    source = ExampleImages(70, 3)
    assert len(source) == 70
    assert source[5].image.size == SIZE and source[5].label == 2
    assert source[5].image.tobytes() == source[37].image.tobytes() != source[6].image.tobytes()
    assert len(source.digest()) == 1


def test_the_rate_of_matrices_is_positive_in_every_format() -> None:
    for format in ("fp32", "bf16"):
        assert matrix_rate(Precision(format, torch.device("cpu"))) > 0


def test_pixels_are_no_work_for_a_teacher() -> None:
    config = PretrainConfig(recipe="x", model=MODEL, target=PixelTarget(), optimization=OPTIMIZATION)
    student = flops_per_image(config)
    assert flops_per_image(replace(config, target=ClipTarget(name="ViT-B-32/openai"))) > student
