"""A run on GPUs that are not there yet: memory, speed, days, and the cheapest setting that fits."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from unveil.config import (
    ClassificationConfig,
    ContrastiveConfig,
    PretrainConfig,
    ProbeConfig,
    RevColV2Config,
    UnveilError,
    ViTConfig,
)
from unveil.config.model import ActivationCheckpointing
from unveil.config.resolve import AnyRun, Machine, resolve
from unveil.config.revcolv2 import LEAST_CHAINED_GAMMA, Reversible
from unveil.planning.cost import FULL, HALF, PUBLISHED, Cost, Storage
from unveil.planning.datasets import classes_of, images_of
from unveil.planning.hardware import GIB, RESERVED_GIB, Gpu
from unveil.planning.memory import Layout, Memory, Parallel, Setting, memory
from unveil.planning.networks import backbone_of, network_cost
from unveil.planning.teachers import Teacher, teacher_of

KINDS: tuple[Parallel, ...] = ("ddp", "zero1", "fsdp")
"""From the least to the most that is sent between processes."""


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """One way to lay a run out, and what it takes."""

    setting: Setting
    checkpointing: ActivationCheckpointing
    """What backward computes anew of blocks; of columns, whether it does."""
    memory: Memory
    fits: bool
    reversible: Reversible | None = None
    """Of a RevColV2."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will take. Bytes and seconds; FLOPs of one image, forward and backward, recomputation not counted."""

    recipe: str
    gpu: Gpu
    mfu: float
    network: Cost
    teacher: Teacher | None
    steps: int
    global_batch_size: int
    images: int
    """In the data set; where it is not known, as many as the run sees."""
    chosen: Arrangement
    """As asked for."""
    cheapest: Arrangement | None
    """None: nothing fits."""
    by_reversible: dict[Reversible, int]
    """Of a RevColV2 that learns: bytes of a GPU's fullest moment, laid out as asked for, by what its columns keep;
    "chain" with its functions in fp32, as it must be. Else {}."""

    @property
    def flops_per_image(self) -> int:
        return self.network.forward + self.network.backward + (0 if self.teacher is None else self.teacher.flops)

    @property
    def images_per_second(self) -> float:
        return self.chosen.setting.gpus * self.gpu.tera_flops * 1e12 * self.mfu / self.flops_per_image

    @property
    def days(self) -> float:
        return self.steps * self.global_batch_size / self.images_per_second / 86_400

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs."""
        figures = asdict(self)
        figures["flops_per_image"] = self.flops_per_image
        figures["images_per_second"] = self.images_per_second
        figures["days"] = self.days
        for name in ("chosen", "cheapest"):
            layout: Arrangement | None = getattr(self, name)
            if layout is not None:
                figures[name]["memory"]["total"] = layout.memory.total
        return figures


def plan(
    config: AnyRun,
    *,
    gpus: int,
    gpu: Gpu,
    parallel: Parallel | None = None,
    layout: Layout = "ours",
    mfu: float = 0.4,
    images: int | None = None,
    classes: int | None = None,
) -> Plan:
    """Plan a recipe's run.

    Args:
        parallel: None: the recipe's own where that is zero1 or fsdp, or else as in the cheapest setting.
        mfu: the share of the GPU's peak rate at which the model's arithmetic is done.
        images: in the data set; None: the recipe's own.
        classes: of a classifier; None: the recipe's own.

    Raises:
        UnveilError: a length or a batch that cannot be, or a layout that the recipe does not have.
    """
    if parallel is None and config.engine.parallel != "ddp":
        parallel = config.engine.parallel
    group = config.engine.shard_group
    if group is not None and gpus % group:
        raise UnveilError(f"{gpus} GPUs do not divide into groups of {group}; choose another engine.shard_group")
    of_eva = isinstance(config, PretrainConfig) and isinstance(config.model, ViTConfig)
    if layout == "as-published" and (parallel not in (None, "zero1") or not of_eva):
        raise UnveilError(
            "--layout as-published is EVA's pre-training under DeepSpeed: ZeRO-1 in fp16; give a recipe that "
            "pre-trains a ViT and --parallel zero1, or leave --layout out"
        )
    images = images or images_of(config.recipe)
    if images is None:
        if config.optimization.steps is None:
            raise UnveilError(
                f"{config.recipe} is {config.optimization.epochs:g} passes over your images; say how many there are: "
                "--images N"
            )
        images = config.optimization.steps * config.optimization.global_batch_size
    classes = classes or len(getattr(config, "classes", ())) or classes_of(config.recipe)
    resolved = _resolved(config, gpus, images)
    teacher = None
    if isinstance(resolved, PretrainConfig):
        teacher = teacher_of(resolved, for_all=layout == "as-published")
    candidates = list(_layouts(resolved, gpus, gpu, layout, teacher, classes))
    cheapest = next((found for found in candidates if found.fits), None)
    assert resolved.optimization.steps is not None
    chosen = _asked_for(config, candidates, parallel, cheapest)
    return Plan(
        recipe=config.recipe,
        gpu=gpu,
        mfu=mfu,
        network=_cost(resolved, layout, teacher, classes),
        teacher=teacher,
        steps=resolved.optimization.steps,
        global_batch_size=resolved.optimization.global_batch_size,
        images=images,
        chosen=chosen,
        cheapest=cheapest,
        by_reversible=_by_reversible(resolved, chosen.setting, teacher, classes),
    )


def _resolved(config: AnyRun, gpus: int, images: int) -> AnyRun:
    machine = Machine(device="cuda", world_size=gpus, cores=8, memory_gib=float(10**6), precision="bf16")
    return resolve(config, images=images, machine=machine)


def _asked_for(
    config: AnyRun, candidates: list[Arrangement], parallel: Parallel | None, cheapest: Arrangement | None
) -> Arrangement:
    """What was set counts; what was left open is chosen so that it fits, or else as small as it can be."""
    if parallel is None and cheapest is not None:
        parallel = cheapest.setting.parallel
    checkpointing = _checkpoints(config)
    micro = config.optimization.micro_batch_size
    fitting = [
        found
        for found in candidates
        if found.setting.parallel == (parallel or "fsdp")
        and found.checkpointing == checkpointing
        and micro in (None, found.setting.micro_batch)
    ]
    return next((found for found in fitting if found.fits), fitting[-1])


def _layouts(
    config: AnyRun, gpus: int, gpu: Gpu, layout: Layout, teacher: Teacher | None, classes: int
) -> Iterator[Arrangement]:
    """Every way to lay the run out, the cheapest first: nothing recomputed, little sent, large micro-batches."""
    for checkpointing in (False, _checkpoints(config) or True):
        variant = _with_checkpointing(config, checkpointing)
        storage = storage_of(variant, layout)
        network = _cost(variant, layout, teacher, classes)
        for parallel in KINDS if layout == "ours" else ("zero1",):
            for micro_batch in _micro_batches(config, gpus):
                setting = Setting(
                    gpus=gpus,
                    parallel=parallel,
                    layout=layout,
                    micro_batch=micro_batch,
                    accumulation=config.optimization.global_batch_size // gpus // micro_batch,
                    shard_group=config.engine.shard_group or gpus,
                    reshard=config.engine.reshard_after_forward,
                )
                needed = memory(variant, setting, network, teacher, storage)
                fits = needed.total <= (gpu.memory_gib - RESERVED_GIB) * GIB
                model = backbone_of(variant)
                yield Arrangement(
                    setting=setting,
                    checkpointing=checkpointing,
                    memory=needed,
                    fits=fits,
                    reversible=model.reversible if isinstance(model, RevColV2Config) else None,
                )


def _micro_batches(config: AnyRun, gpus: int) -> list[int]:
    """Those that divide a GPU's share of the batch, the largest first; even ones where pairs of images are mixed."""
    share = config.optimization.global_batch_size // gpus
    pairs = isinstance(config, ClassificationConfig) and config.augmentation.mixes
    return [size for size in range(share, 0, -1) if share % size == 0 and not (pairs and size % 2)]


def storage_of(config: AnyRun, layout: Layout) -> Storage:
    """On a GPU."""
    if layout == "as-published":
        return PUBLISHED
    return FULL if config.engine.precision == "fp32" else HALF


def _cost(config: AnyRun, layout: Layout, teacher: Teacher | None, classes: int) -> Cost:
    return network_cost(config, storage_of(config, layout), teacher, classes)


def _by_reversible(config: AnyRun, setting: Setting, teacher: Teacher | None, classes: int) -> dict[Reversible, int]:
    if isinstance(config, ContrastiveConfig | ProbeConfig) or not isinstance(config.model, RevColV2Config):
        return {}
    found: dict[Reversible, int] = {}
    for mode in get_args(Reversible):
        invertible: dict[str, Any] = {"gamma_init": 1.0, "gamma_floor": LEAST_CHAINED_GAMMA, "functions_in_fp32": True}
        model = replace(config.model, reversible=mode, **(invertible if mode == "chain" else {}))
        variant = replace(config, model=model)
        storage = storage_of(variant, "ours")
        found[mode] = memory(variant, setting, _cost(variant, "ours", teacher, classes), teacher, storage).total
    return found


def _checkpoints(config: AnyRun) -> ActivationCheckpointing:
    model = backbone_of(config)
    if isinstance(model, RevColV2Config):
        return model.reversible != "off"
    return model.activation_checkpointing


def _with_checkpointing(config: AnyRun, setting: ActivationCheckpointing) -> AnyRun:
    if isinstance(config, ContrastiveConfig):
        vision = replace(config.model.vision, activation_checkpointing=setting)
        text = replace(config.model.text, activation_checkpointing=setting)
        return replace(config, model=replace(config.model, vision=vision, text=text))
    if isinstance(config.model, RevColV2Config):
        chained = config.model.reversible == "chain"
        mode: Reversible = ("chain" if chained else "column") if setting else "off"
        return replace(config, model=replace(config.model, reversible=mode))
    return replace(config, model=replace(config.model, activation_checkpointing=setting))
