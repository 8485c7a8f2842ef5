"""A small classifier's training in every way of dividing it among processes, with all that could tell them apart."""

import shutil
from pathlib import Path
from typing import Any

import torch

from tests.engine.toy import Record, optimization, settings
from unveil.config import AdamWConfig, ViTConfig
from unveil.engine import Batch, Parallel, Precision, RunFolder, evaluate, train
from unveil.models.vit import ViT
from unveil.tasks.classification.task import Classification

STEPS, GLOBAL_BATCH, HELD_OUT = 20, 24, 29
DATA = {"order": "counting", "parts": {}}


def classifier(**changes: Any) -> Classification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "depth": 3, "heads": 2, "mlp_width": 32}
    config = ViTConfig(image_size=16, patch_size=8, init_std=0.1, drop_path=0.3, **sizes | changes)
    return Classification(
        ViT(config, final_norm=False),
        ("a", "b", "c"),
        seed=5,
        normalization="half",
        label_smoothing=0.1,
        head_init_scale=1.0,
        freeze_patch_embedding=True,
    )


def batch_of(numbers: range, last: int = 10**9) -> Batch:
    """Pictures and labels that are pure functions of their numbers; those from `last` on are padding."""
    drawn = [torch.Generator().manual_seed(number) for number in numbers]
    return {
        "image": torch.stack([torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=each) for each in drawn]),
        "label": torch.tensor([number % 3 for number in numbers]),
        "valid": torch.tensor([number < last for number in numbers]),
        "sample_numbers": torch.tensor(list(numbers)),
        "names": [f"sample {number}" for number in numbers],
    }


def course(
    parallel: Parallel, out: Path, micro_batch_size: int, changes: dict[str, Any] | None = None
) -> list[tuple[int, dict[str, float]]]:
    """The rows that a training logs: accumulation, clipping, an average of the weights, drop path, evaluation."""
    task, record = classifier(), Record()
    if parallel.rank:
        # All processes must begin with the first one's weights.
        with torch.no_grad():
            task.head.weight += 1.0
    share = GLOBAL_BATCH // parallel.world_size

    def batches(first: int, last: int) -> Any:
        for step in range(first, last):
            start = step * GLOBAL_BATCH + parallel.rank * share
            yield [batch_of(range(at, at + micro_batch_size)) for at in range(start, start + share, micro_batch_size)]

    # 4 at a time: the last ones are padding, and with several processes some have nothing else.
    held_out = -(-HELD_OUT // (4 * parallel.world_size)) * 4 * parallel.world_size
    places = range(4 * parallel.rank, held_out, 4 * parallel.world_size)
    validation = [batch_of(range(1000 + at, 1000 + at + 4), last=1000 + HELD_OUT) for at in places]
    with RunFolder.open(out, config={"recipe": "course"}, data=DATA, parallel=parallel) as run:
        train(
            task,
            batches,
            optimization=optimization(
                STEPS,
                optimizer=AdamWConfig(learning_rate=1e-2, epsilon=1e-3),
                global_batch_size=GLOBAL_BATCH,
                clip_gradient_norm=0.5,
                layer_decay=0.8,
            ),
            settings=settings(checkpoint_every=10, evaluate_every=5, **changes or {}),
            parallel=parallel,
            run=run,
            sinks=[record],
            evaluate=lambda: evaluate(task, validation, parallel, Precision.of("fp32", parallel.device)),
            ema_decay=0.7,
        )
    return [
        (at, {name: value for name, value in row.items() if name != "images_per_second"}) for at, row in record.rows
    ]


def courses(micro_batch_size: int, asked: dict[Path, dict[str, Any]]) -> dict[Path, list[tuple[int, dict[str, float]]]]:
    """Several, in the processes that are there: starting those takes longer."""
    torch.set_num_threads(1)
    with Parallel.start("cpu") as parallel:
        return {out: course(parallel, out, micro_batch_size, settings) for out, settings in asked.items()}


def half_way(run: Path, copy: Path) -> Path:
    """The run as it was after half of its steps."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / f"step_{STEPS:08d}")
    return copy
