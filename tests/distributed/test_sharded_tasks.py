"""What zero1 and fsdp must not change: steps scaled by tensors, skipped ones, what follows weights, what is fixed."""

import errno
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.distributed.processes import together
from tests.engine.toy import CPU, Record, Regression, Steps, batch_of, optimization, settings
from tests.models.test_timm_backbone import classifier
from tests.pretext.tokenizers import TINY, samples, tokenizer_of
from tests.tasks.toy_pairs import ToyPairs
from tests.tasks.toy_pairs import config as clip_config
from unveil.build import train_clip
from unveil.config import AdamWConfig, EmaTarget, LAMBConfig, LARSConfig, MaskedAutoencoding, UnveilError
from unveil.config.revcolv2 import RevColV2Config, Reversible
from unveil.engine import Batch, Parallel, RunFolder, train
from unveil.engine.pieces import Pieces
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.pretext.masked_autoencoding import MaskedAutoencoder
from unveil.pretext.masked_modelling import MaskedModelling, stripe_mask
from unveil.pretext.masked_pixels import MaskedPixels
from unveil.pretext.targets.ema import EmaTeacher
from unveil.pretext.targets.pixels import PixelPatches

Changes = Mapping[str, Any]
NONE: Changes = {}
Course = tuple[list[Any], dict[str, Tensor]]
"""Rows that were logged, and weights at the end."""
DIVIDED = ("zero1", "fsdp")
OPTIMIZERS = {
    "lamb": LAMBConfig(learning_rate=1e-2, weight_decay=0.1),
    "lars": LARSConfig(learning_rate=2.0, weight_decay=0.1, trust_coefficient=0.02),
}


def whole(task: Any) -> dict[str, Tensor]:
    """Copies of all weights and buffers; every process must ask."""
    state = {name: value.detach() for name, value in task.state_dict().items()}
    return {name: getattr(value, "full_tensor", value.clone)() for name, value in state.items()}


class LateOverflow(Regression):
    """For sample 13, which lies with the second process, the gradient of the token overflows, and no other.

    It has one row, which under fsdp lies with the first.
    """

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        token = self.cls_token * 1.0
        if self.training and 13 in batch["sample_numbers"]:
            token.register_hook(lambda gradient: gradient * torch.inf)
        loss, count = super().forward(batch | {"x": batch["x"] + token[0]})["loss"]
        return {"loss": (loss / 100, count)}


def masked_with_teacher() -> MaskedModelling:
    torch.manual_seed(0)
    backbone = ViT(TINY, mask_token=True)
    teacher = EmaTeacher(backbone, EmaTarget(decay=0.7, layers=2), normalization="half")
    return MaskedModelling(backbone, teacher, seed=0, normalization="half")


def autoencoder() -> MaskedAutoencoder:
    torch.manual_seed(0)
    objective = MaskedAutoencoding(decoder_width=8, decoder_depth=2, decoder_heads=2)
    target = PixelPatches(TINY.grid, patch_size=TINY.patch_size, normalize=True)
    return MaskedAutoencoder(ViT(TINY), target, seed=0, normalization="half", objective=objective)


def masked_pixels(mode: Reversible) -> MaskedPixels:
    torch.manual_seed(0)
    config = RevColV2Config(
        image_size=16,
        patch_size=1,
        mask_unit=4,
        widths=(8, 16, 16),
        layers=(1, 1, 1),
        kinds=("convolution", "transformer", "convolution"),
        head_width=8,
        mlp_ratio=2,
        bottom_up_columns=2,
        top_down_columns=2,
        layer_scale=None,
        init_std=0.1,
        drop_path=0.3,
        gamma_init=1.0,
        gamma_floor=0.5,
        reversible=mode,
    )
    target = PixelPatches(config.grid, patch_size=config.mask_unit, normalize=True)
    return MaskedPixels(RevColV2(config, mask_token=True), target, seed=0, normalization="half")


def pictures(numbers: range) -> Batch:
    mask = stripe_mask(4, 4).expand(len(numbers), -1)
    hidden = mask[0].nonzero().squeeze(1).expand(len(numbers), -1)
    return samples(numbers) | {"mask": mask, "hidden": hidden, "hidden_weight": torch.ones(hidden.shape)}


FOLLOWING: dict[str, Callable[[], Any]] = {
    "teacher": masked_with_teacher,
    "codebook": lambda: tokenizer_of(global_batch_size=8),
}
COLUMNS: dict[str, Callable[[], Any]] = {
    f"columns, {mode}": partial(masked_pixels, mode) for mode in get_args(Reversible)
}
TASKS = FOLLOWING | COLUMNS | {"autoencoder": autoencoder}


def follow(parallel: Parallel, name: str, micro_batch_size: int, changes: Changes = NONE) -> Course:
    """Rows and weights of a task."""
    task, record = TASKS[name](), Record()
    share = 8 // parallel.world_size

    def steps(first: int, last: int) -> Any:
        for step in range(first, last):
            start = 8 * step + parallel.rank * share
            yield [pictures(range(at, at + micro_batch_size)) for at in range(start, start + share, micro_batch_size)]

    train(
        task,
        steps,
        optimization=optimization(5),
        settings=settings(**changes),
        parallel=parallel,
        sinks=[record],
        after_step=lambda updated: task.after_step(updated, parallel.sum_),
    )
    return record.rows, whole(task)


def labelled(numbers: range) -> Batch:
    batch = samples(numbers)
    return batch | {
        "image": batch["image"].repeat(1, 1, 4, 4),
        "label": torch.tensor([number % 3 for number in numbers]),
    }


def finetuned(parallel: Parallel, micro_batch_size: int, changes: Changes = NONE) -> Course:
    """Rows and weights of one of timm's networks, which has frozen layers, and channels last."""
    task, record = classifier("mobilenetv3_small_050"), Record()
    share = 8 // parallel.world_size

    def steps(first: int, last: int) -> Any:
        for step in range(first, last):
            start = 8 * step + parallel.rank * share
            numbers = [range(at, at + micro_batch_size) for at in range(start, start + share, micro_batch_size)]
            yield [labelled(part) for part in numbers]

    train(
        task,
        steps,
        optimization=optimization(3, optimizer=AdamWConfig(learning_rate=1e-3, epsilon=1e-3)),
        settings=settings(**changes),
        parallel=parallel,
        sinks=[record],
    )
    return record.rows, whole(task)


def by_optimizer(parallel: Parallel, name: str, micro_batch_size: int, changes: Changes = NONE) -> Course:
    task, record = Regression(), Record()
    train(
        task,
        Steps(micro_batch_size=micro_batch_size, parallel=parallel),
        optimization=optimization(optimizer=OPTIMIZERS[name], clip_gradient_norm=1.0),
        settings=settings(**changes),
        parallel=parallel,
        sinks=[record],
    )
    return record.rows, whole(task)


def overflowing(parallel: Parallel, kind: str) -> tuple[list[Any], list[dict[str, Tensor]]]:
    """Rows, and the weights before each step."""
    task, record, seen = LateOverflow(), Record(), []

    def watched(first: int, last: int) -> Any:
        for batches in Steps(parallel=parallel)(first, last):
            seen.append(whole(task))
            yield batches

    train(
        task,
        watched,
        optimization=optimization(4),
        settings=settings(precision="fp16", parallel=kind),
        parallel=parallel,
        sinks=[record],
    )
    return record.rows, seen


def refused(parallel: Parallel) -> list[str]:
    messages = []
    for attempt in (
        lambda: by_optimizer(parallel, "lamb", 2, {"parallel": "fsdp", "shard_group": 3}),
        lambda: train_clip(
            clip_config(optimization={"micro_batch_size": 4}, engine={"parallel": "fsdp"}),
            ToyPairs(24),
            parallel=parallel,
        ),
    ):
        with pytest.raises(UnveilError) as error:
            attempt()
        messages.append(str(error.value))
    return messages


def full_disk(parallel: Parallel, out: Path) -> tuple[str, list[str]]:
    """What a run ends with when the second process cannot write its part of the second checkpoint; what is left."""

    def refusing(state: dict[str, Tensor], path: Path, **settings: Any) -> None:
        if "step_00000006" in str(path) and parallel.rank == 1:
            raise OSError(errno.ENOSPC, "full")
        save_file(state, path, **settings)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UnveilError) as error:
        patch.setattr("unveil.engine.pieces.save_file", refusing)
        with RunFolder.open(out, config={}, data={"order": "counting", "parts": {}}, parallel=parallel) as run:
            train(
                Regression(),
                Steps(parallel=parallel),
                optimization=optimization(12),
                settings=settings(parallel="zero1"),
                parallel=parallel,
                run=run,
            )
    parallel.gather(None)
    return str(error.value), sorted(path.name for path in (out / "checkpoints").iterdir())


def accumulating(parallel: Parallel) -> list[int]:
    """How many weights have the gradient of their own rows after the first and after the last micro-batch."""
    task = Regression()
    module = parallel.wrap(task, settings(parallel="fsdp"))
    found = []
    for last in (False, True):
        with parallel.gradients_combined(module, now=last):
            module(batch_of(range(4)))["loss"][0].backward()
        found.append(sum(parameter.grad is not None for parameter in task.parameters()))
    return found


def kept_of_a_whole(parallel: Parallel, folder: Path) -> tuple[list[float], int]:
    """The rows that a process reads of a tensor of three, and how many numbers it keeps in memory for that."""
    task = Regression()
    parallel.wrap(task, settings(parallel="fsdp"))
    if parallel.is_main:
        save_file({"rows": torch.arange(3.0)[:, None].expand(3, 16).contiguous()}, folder / "whole.safetensors")
    parallel.gather(None)
    pieces = Pieces(folder, "whole.safetensors")
    rows: Any = pieces.room("rows", task.last.weight.detach())
    pieces.fill({"rows": rows})
    local = rows.to_local()
    return local[:, 0].tolist(), local.untyped_storage().nbytes() // 4


def everything(folder: Path) -> dict[str, Any]:
    """All of it in one go, since starting processes takes longer."""
    torch.set_num_threads(1)
    with Parallel.start("cpu") as parallel:
        found: dict[str, Any] = {"refused": refused(parallel), "full disk": full_disk(parallel, folder / "full")}
        for kind in DIVIDED:
            found |= {f"{name}, {kind}": by_optimizer(parallel, name, 2, {"parallel": kind}) for name in OPTIMIZERS}
            found |= {f"overflow, {kind}": overflowing(parallel, kind)}
        found |= {"accumulating": accumulating(parallel), "kept": kept_of_a_whole(parallel, folder)}
        for kind in ("ddp", "fsdp"):
            found |= {f"{name}, {kind}": follow(parallel, name, 2, {"parallel": kind}) for name in FOLLOWING}
        kinds = ("ddp", *DIVIDED)
        found |= {f"autoencoder, {kind}": follow(parallel, "autoencoder", 2, {"parallel": kind}) for kind in kinds}
        for name in COLUMNS:
            able = DIVIDED[:1] if "chain" in name else DIVIDED
            found |= {f"{name}, {kind}": follow(parallel, name, 2, {"parallel": kind}) for kind in able}
        found |= {"timm": finetuned(parallel, 2, {"parallel": "fsdp"})}
        again = {"parallel": "fsdp", "reshard_after_forward": False}
        return found | {"teacher, gathered once": follow(parallel, "teacher", 2, again)}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return together(2, everything, tmp_path_factory.mktemp("two"))


def assert_same(found: Course, expected: Course) -> None:
    names = {"loss", "grad_norm", *(name for name in expected[0][-1][1] if name.startswith("codebook_"))}
    for (at, ours), (step, theirs) in zip(found[0], expected[0], strict=True):
        assert at == step
        assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, abs=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_of_whole_tensors_are_those_of_one_process(name: str, by_two: list[dict[str, Any]]) -> None:
    alone = by_optimizer(CPU, name, 8)
    for kind in DIVIDED:
        assert_same(by_two[0][f"{name}, {kind}"], alone)


@pytest.mark.parametrize("name", FOLLOWING)
def test_what_follows_the_weights_does_so_in_pieces(name: str, by_two: list[dict[str, Any]]) -> None:
    alone = follow(CPU, name, 8)
    for kind in ("ddp", "fsdp"):
        assert_same(by_two[0][f"{name}, {kind}"], alone)
    if name == "teacher":
        assert_same(by_two[0]["teacher, gathered once"], alone)


@pytest.mark.parametrize("kind", ["ddp", *DIVIDED])
def test_what_is_fixed_stays_so_on_every_process(kind: str, by_two: list[dict[str, Any]]) -> None:
    """MAE's tables of positions."""
    alone, begun = follow(CPU, "autoencoder", 8), autoencoder().state_dict()
    assert_same(by_two[0][f"autoencoder, {kind}"], alone)
    for found in by_two:
        weights = found[f"autoencoder, {kind}"][1]
        unmoved = {name for name, value in begun.items() if torch.equal(weights[name], value)}
        assert unmoved == {"backbone.pos_embed", "decoder_pos_embed"}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_learn_as_on_one_process(name: str, by_two: list[dict[str, Any]]) -> None:
    """RevColV2 with stochastic depth, whatever its columns keep; "chain" does not go with fsdp."""
    alone = follow(CPU, "columns, off", 8)
    kinds = [kind for kind in DIVIDED if f"{name}, {kind}" in by_two[0]]
    assert kinds == [*DIVIDED[: 1 if "chain" in name else 2]]
    for kind in kinds:
        assert_same(by_two[0][f"{name}, {kind}"], alone)


def test_an_encoder_of_timm_s_learns_in_pieces(by_two: list[dict[str, Any]]) -> None:
    assert_same(by_two[0]["timm"], finetuned(CPU, 8))


@pytest.mark.parametrize("kind", DIVIDED)
def test_overflow_in_one_piece_is_a_skipped_step_everywhere(kind: str, by_two: list[dict[str, Any]]) -> None:
    (rows, first), (_, second) = (found[f"overflow, {kind}"] for found in by_two)
    for weights, others in zip(first, second, strict=True):
        assert all(torch.equal(weights[name], others[name]) for name in weights)
    # The first step has learning rate 0, the second is skipped.
    moved = [any(not torch.equal(before[name], after[name]) for name in before) for before, after in pairwise(first)]
    assert moved == [False, False, True]
    assert [metrics["loss_scale"] for _, metrics in rows] == [65536, 65536, 32768, 32768]
    assert [metrics["skipped_steps"] for _, metrics in rows] == [0, 1, 1, 1]


def test_what_is_read_whole_is_not_kept_whole(by_two: list[dict[str, Any]]) -> None:
    assert [found["kept"] for found in by_two] == [([0.0, 1.0], 32), ([2.0], 16)]


def test_gradients_are_exchanged_once_a_step(by_two: list[dict[str, Any]]) -> None:
    """By the last micro-batch; what those before it leave is not yet dealt out."""
    assert [found["accumulating"] for found in by_two] == [[0, len(list(Regression().parameters()))]] * 2


def test_what_cannot_be_sharded_is_refused(by_two: list[dict[str, Any]]) -> None:
    groups, relating = by_two[0]["refused"]
    assert "2 processes do not divide into groups of 3" in groups
    assert "give --parallel zero1" in relating


def test_one_that_cannot_write_ends_the_run_of_all(by_two: list[dict[str, Any]]) -> None:
    for found in by_two:
        message, left = found["full disk"]
        assert "no space left while writing step_00000006/optimizer.safetensors" in message
        assert "The checkpoint of step 3 is intact" in message
        assert left == ["step_00000003"], "the run went no further than to the next checkpoint"
