"""Bytes on each GPU at the fullest moment of a training step, part by part."""

from dataclasses import dataclass, fields
from typing import Literal

from unveil.config import AdamWConfig, LAMBConfig, LARSConfig, RevColV2Config
from unveil.config.resolve import AnyRun
from unveil.planning.columns import largest_column, widest_map
from unveil.planning.cost import Cost, Storage, block
from unveil.planning.networks import backbone_of
from unveil.planning.teachers import Teacher

Parallel = Literal["ddp", "zero1", "fsdp"]
Layout = Literal["ours", "as-published"]

REDUCED_AT_ONCE = 500_000_000
"""Gradients that DeepSpeed copies together before it sums them over the processes (released configuration)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one GPU that lie there together; their sum is the peak."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    """A running average of the weights (EMA)."""
    teacher: int
    activations: int
    """What the forward pass keeps for the backward pass."""
    buffers: int
    """16-bit copies of weights, gathered shards, and what one layer's backward needs for itself."""

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a step is laid out over GPUs."""

    gpus: int
    parallel: Parallel
    layout: Layout
    micro_batch: int
    accumulation: int
    shard_group: int
    """GPUs among which fsdp divides the weights."""
    reshard: bool = True
    """fsdp gives a block's weights back after its forward pass."""

    @property
    def shards(self) -> int:
        """Parts of the weights, of which a GPU holds one."""
        return self.shard_group if self.parallel == "fsdp" else 1


def memory(config: AnyRun, setting: Setting, network: Cost, teacher: Teacher | None, storage: Storage) -> Memory:
    """The fullest of three moments of a step: when forward is through, in the backward pass of the last block, and when
    backward is through (all gradients, no activations).

    Before the end of backward, gradients lie there only where earlier micro-batches or DDP's buckets hold them.
    """
    published = setting.layout == "as-published"
    fixed = _fixed(config, setting, network, teacher)
    whole = (2 if published else 4) * network.learned
    gradients = whole // setting.shards
    # DDP's buckets stay where they are between steps; DeepSpeed and a single GPU let gradients go. Those of earlier
    # micro-batches are whole under FSDP, too.
    held = whole if setting.accumulation > 1 else gradients if not published and setting.gpus > 1 else 0
    activations = setting.micro_batch * network.saved
    gathered = _gathered(setting, config, network, storage)
    copies = 0 if network.recomputed else _copies(setting, network, storage)
    forward_is_through = Memory(**fixed, gradients=held, activations=activations, buffers=gathered + copies)
    last_block = Memory(
        **fixed,
        gradients=held,
        activations=activations + setting.micro_batch * network.recomputed,
        buffers=gathered + copies + _one_layer(config, setting, storage),
    )
    backward_is_through = Memory(
        **fixed,
        gradients=gradients,
        activations=0,
        buffers=gathered + (2 * min(REDUCED_AT_ONCE, network.learned) if published else 0),
    )
    return max(forward_is_through, last_block, backward_is_through, key=lambda moment: moment.total)


def _fixed(config: AnyRun, setting: Setting, network: Cost, teacher: Teacher | None) -> dict[str, int]:
    optimizer_parts = setting.gpus if setting.parallel == "zero1" else setting.shards
    averaged = network.learned if getattr(config, "ema_decay", None) is not None else 0
    if setting.layout == "as-published":
        # float16, beside it float32 weights and both moments in the optimizer.
        return {
            "parameters": 2 * network.parameters,
            "optimizer": 12 * network.learned // optimizer_parts,
            "average": 2 * averaged,
            "teacher": 0 if teacher is None else 4 * teacher.parameters,
        }
    return {
        "parameters": 4 * network.parameters // setting.shards,
        "optimizer": _state_bytes(config) * network.learned // optimizer_parts,
        "average": 4 * averaged // setting.shards,
        "teacher": 0 if teacher is None else teacher.weight_bytes,
    }


def _state_bytes(config: AnyRun) -> int:
    """Of a parameter, in float32."""
    match config.optimization.optimizer:
        case AdamWConfig() | LAMBConfig():
            return 8
        case LARSConfig():
            return 4


def _copies(setting: Setting, network: Cost, storage: Storage) -> int:
    """Autocast's 16-bit copies of the weights, with which backward multiplies; where activations are recomputed, each
    is made anew and lasts no longer than its product."""
    casts = setting.layout == "ours" and storage.number == 2
    return 2 * network.matrices if casts else 0


def _gathered(setting: Setting, config: AnyRun, network: Cost, storage: Storage) -> int:
    """Under FSDP: the block (or column) whose turn it is and the next one, whole, and the gradient of one; all in
    float32. Where weights are not given back after forward, all of them."""
    if setting.shards == 1:
        return 0
    model = backbone_of(config)
    unit = largest_column(model) if isinstance(model, RevColV2Config) else block(model, 1, storage).parameters
    return 4 * unit + 4 * (2 * unit if setting.reshard else network.parameters)


def _one_layer(config: AnyRun, setting: Setting, storage: Storage) -> int:
    """The gradient of the widest map, an MLP's hidden one, beside all that is kept."""
    model = backbone_of(config)
    if isinstance(model, RevColV2Config):
        return setting.micro_batch * storage.number * widest_map(model)
    return setting.micro_batch * storage.number * (1 + model.grid[0] * model.grid[1]) * model.mlp_width
