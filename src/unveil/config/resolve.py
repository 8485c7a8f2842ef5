"""The values that a recipe leaves open, settled once: length, batch arithmetic, precision, workers."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, TypeVar

from unveil.config.classification import ClassificationConfig, ProbeConfig
from unveil.config.clip import TextConfig
from unveil.config.contrastive import ContrastiveConfig
from unveil.config.errors import UnveilError
from unveil.config.model import ViTConfig, recomputes
from unveil.config.pretraining import PretrainConfig
from unveil.config.revcolv2 import RevColV2Config

AnyRun = PretrainConfig | ClassificationConfig | ProbeConfig | ContrastiveConfig
Run = TypeVar("Run", bound=AnyRun)

MAY_CHANGE_ON_RESUME = frozenset(
    {
        "data.workers",
        "data.max_unreadable_share",
        "data.source.paths",
        "data.validation.paths",
        "objective.tokenizer",
        "optimization.micro_batch_size",
        "engine.log_every",
        "engine.checkpoint_every",
        "engine.keep_last",
        "engine.evaluate_every",
        "engine.trackers",
        "engine.parallel",
        "engine.reshard_after_forward",
        "engine.shard_group",
        "engine.timeout_minutes",
        "model.activation_checkpointing",
        "model.reversible",
        "model.vision.activation_checkpointing",
        "model.text.activation_checkpointing",
        "local_loss",
    }
)
"""What a resumed run may be given anew. Paths may move: what they hold is compared by its digest."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run finds: read once from the hardware by the caller, so that this room needs no torch."""

    device: Literal["cpu", "cuda"]
    world_size: int
    cores: int
    """Processor cores for this process."""
    memory_gib: float
    """Of one device; of the machine where the device is the processor."""
    precision: Literal["fp32", "bf16", "fp16"]
    """Fastest one that is safe on the device."""


def resolve(config: Run, *, images: int, machine: Machine) -> Run:
    """`config` with every open value concrete.

    Raises:
        UnveilError: a length or batch that cannot be, or columns that cannot be inverted exactly enough.
    """
    optimization = config.optimization
    batch = optimization.global_batch_size
    steps = optimization.steps
    if steps is None:
        if optimization.epochs is None:
            raise UnveilError("neither steps nor epochs is given; add --steps N or --epochs N")
        steps = max(1, int(optimization.epochs * images) // batch)
    warmup = optimization.warmup_steps
    if warmup is None:
        warmup = int((optimization.warmup_epochs or 0.0) * images) // batch
    warmup = min(warmup, max(steps - 1, 0))
    pairs = isinstance(config, ClassificationConfig) and config.augmentation.mixes
    micro = optimization.micro_batch_size or _micro_batch_size(config, batch, machine, pairs=pairs)
    if batch % machine.world_size:
        raise UnveilError(
            f"the global batch of {batch} does not divide among {machine.world_size} processes; "
            f"try --global-batch-size {_nearest_multiple(batch, machine.world_size)}"
        )
    if (batch // machine.world_size) % micro:
        raise UnveilError(
            f"{batch // machine.world_size} images per process and step do not divide into micro-batches of {micro}; "
            f"try --global-batch-size {_nearest_multiple(batch, machine.world_size * micro)} or another "
            "optimization.micro_batch_size"
        )
    if pairs and micro % 2:
        raise UnveilError(
            f"Mixup and CutMix mix pairs of images, which micro-batches of {micro} cannot hold; try "
            f"--global-batch-size {_nearest_multiple(batch, 2 * machine.world_size)}, an even "
            "optimization.micro_batch_size, or --set augmentation.mixup=0 --set augmentation.cutmix=0"
        )
    workers = config.data.workers
    if workers is None:
        workers = max(1, min(16, machine.cores - 1)) if machine.device == "cuda" else min(2, machine.cores - 1)
    precision = machine.precision if config.engine.precision == "auto" else config.engine.precision
    trains = not isinstance(config, ProbeConfig)
    if trains and isinstance(config.model, RevColV2Config) and config.model.reversible == "chain":
        _check_chain(config.model, config.engine.parallel, precision)
    return dataclasses.replace(
        config,
        optimization=dataclasses.replace(
            optimization, steps=steps, epochs=None, warmup_steps=warmup, warmup_epochs=None, micro_batch_size=micro
        ),
        data=dataclasses.replace(config.data, workers=workers),
        engine=dataclasses.replace(config.engine, precision=precision),
    )


def batch_arithmetic(config: Run, machine: Machine) -> str:
    """The line "global 4096 = 8 GPUs x 64 x 8 accumulation" of a resolved configuration."""
    batch, micro = config.optimization.global_batch_size, config.optimization.micro_batch_size
    assert micro is not None
    device = "GPU" if machine.device == "cuda" else "CPU process"
    plural = {"GPU": "GPUs", "CPU process": "CPU processes"}[device] if machine.world_size > 1 else device
    accumulation = batch // machine.world_size // micro
    return f"global {batch} = {machine.world_size} {plural} x {micro} x {accumulation} accumulation"


def _micro_batch_size(config: Run, batch: int, machine: Machine, *, pairs: bool) -> int:
    """The largest divisor of a process's share whose activations are expected to fit in half of the memory.

    `pairs`: an even one, where there is any.
    """
    share = max(1, batch // machine.world_size)
    fits = int(machine.memory_gib * 2**30 / 2 / _activation_bytes(config)) or 1
    # A contrastive step that is not split goes through the network once, and not twice.
    most = share if isinstance(config, ContrastiveConfig) else 64 if machine.device == "cpu" else 1024
    limit = min(fits, most)
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    whole_pairs = [size for size in sizes if size % 2 == 0] if pairs else []
    fitting = [size for size in whole_pairs or sizes if size <= limit]
    return max(fitting, default=min(whole_pairs or sizes))


def _activation_bytes(config: Run) -> int:
    """What backward needs of one sample."""
    if isinstance(config, ContrastiveConfig):
        vision, text = config.model.vision, config.model.text
        seen = 1 + int(vision.grid[0] * vision.grid[1] * (1.0 - config.patch_dropout))
        return _blocks_bytes(vision, seen) + _blocks_bytes(text, text.context_length)
    if isinstance(config.model, RevColV2Config):
        return _columns_bytes(config.model)
    return _blocks_bytes(config.model, config.model.grid[0] * config.model.grid[1] + 1)


def _blocks_bytes(model: ViTConfig | TextConfig, tokens: int) -> int:
    """A block keeps about 34 x width bytes a token in half precision (its inputs, normed inputs, q, k, v, attention
    output, two MLP maps of four widths): Korthikanti et al. 2022, Eq. 2 without the attention matrix, which the fused
    attention does not keep. With activation checkpointing one input of 2 x width bytes is kept; the selective one
    keeps what matrix products and attention answer as well (q, k, v, 2 of one width, one of four, another of one).
    """
    less = 22 if model.activation_checkpointing == "selective" else 2
    widths = sum(less if recomputes(model.activation_checkpointing, number) else 34 for number in range(model.depth))
    return widths * model.width * tokens


def _columns_bytes(model: RevColV2Config) -> int:
    """Blocks keep what a ViT's do (see `_blocks_bytes`), with nothing hidden; maps between columns are in fp32.

    Where columns are computed again the maps are kept, and one column whole while its turn lasts.
    """
    cells = [(model.image_size // stride) ** 2 for stride in model.strides]
    maps = sum(4 * width * count for width, count in zip(model.widths, cells, strict=True))
    column = sum(
        34 * width * count * blocks for width, count, blocks in zip(model.widths, cells, model.layers, strict=True)
    )
    match model.reversible:
        case "off":
            return model.columns * column
        case "column":
            return model.columns * maps + column
        case "chain":
            return 2 * maps + column


def _check_chain(model: RevColV2Config, parallel: str, precision: str) -> None:
    """Raises UnveilError where columns cannot be inverted (see `unveil.models.reversible`)."""
    if parallel == "fsdp":
        raise UnveilError(
            "model.reversible=chain computes columns outside of where fsdp gathers their weights; give --set "
            "model.reversible=column, or --parallel zero1"
        )
    if precision != "fp32" and not model.functions_in_fp32:
        raise UnveilError(
            f"model.reversible=chain inverts columns, for which arithmetic in {precision} is too coarse; give --set "
            "model.functions_in_fp32=true, --set engine.precision=fp32, or --set model.reversible=column"
        )


def _nearest_multiple(value: int, of: int) -> int:
    return max(of, round(value / of) * of)
