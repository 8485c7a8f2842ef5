"""How a network is optimised, and how the loop runs."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from unveil.config.errors import UnveilError


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    """Adam with decoupled weight decay; biases, norms, positions and the cls token are not decayed."""

    learning_rate: float = 1e-3
    """Peak, absolute: not scaled by the batch size."""
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    weight_decay: float = 0.05

    def __post_init__(self) -> None:
        if min(self.learning_rate, self.epsilon, self.weight_decay) < 0:
            raise UnveilError("learning_rate, epsilon and weight_decay of the optimizer must not be less than 0")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UnveilError(f"betas {self.betas} of the optimizer must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LARSConfig:
    """Layer-wise adaptive rate scaling on momentum SGD: what linear probes with very large batches use.

    Vectors (biases) get neither the adaptive rate nor weight decay.
    """

    learning_rate: float = 1.0
    """Peak, absolute."""
    momentum: float = 0.9
    weight_decay: float = 0.0
    trust_coefficient: float = 0.001

    def __post_init__(self) -> None:
        if min(self.learning_rate, self.weight_decay, self.trust_coefficient) < 0:
            raise UnveilError("learning_rate, weight_decay and trust_coefficient of the optimizer must not be negative")
        if not 0.0 <= self.momentum < 1.0:
            raise UnveilError(f"momentum {self.momentum} of the optimizer must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class LAMBConfig:
    """Adam whose step on each tensor is rescaled to the tensor: contrastive training with very large batches.

    What is not decayed is the same as with AdamW.
    """

    learning_rate: float = 1e-3
    """Peak, absolute."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    trust_ratio: tuple[float, float] = (0.01, 10.0)
    """Least and most by which a step is rescaled (DeepSpeed's bounds)."""

    def __post_init__(self) -> None:
        if min(self.learning_rate, self.epsilon, self.weight_decay) < 0:
            raise UnveilError("learning_rate, epsilon and weight_decay of the optimizer must not be less than 0")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise UnveilError(f"betas {self.betas} of the optimizer must lie in [0, 1)")
        if not 0.0 < self.trust_ratio[0] <= self.trust_ratio[1]:
            raise UnveilError(f"trust_ratio {self.trust_ratio} of the optimizer must be 0 < least <= most")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """Length, batch and schedule. Give `steps` or `epochs`, not both.

    Raises:
        UnveilError: contradictory or impossible values.
    """

    optimizer: AdamWConfig | LARSConfig | LAMBConfig = AdamWConfig()
    global_batch_size: int = 4096
    micro_batch_size: int | None = None
    """Images in one forward pass on one device; accumulation is derived. Left out: as many as it should hold."""
    steps: int | None = None
    epochs: float | None = None
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    min_learning_rate: float = 1e-5
    clip_gradient_norm: float | None = 3.0
    layer_decay: float | None = None
    """Learning rate falls by this factor from each layer group to the one below."""

    RIVALS: ClassVar[dict[str, str]] = {
        "steps": "epochs",
        "epochs": "steps",
        "warmup_steps": "warmup_epochs",
        "warmup_epochs": "warmup_steps",
    }
    """Two ways to say one thing: who sets the one takes back the other."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise UnveilError("both steps and epochs are given; give one of them")
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise UnveilError("both warmup_steps and warmup_epochs are given; give one of them")
        for name in ("global_batch_size", "micro_batch_size", "steps", "epochs", "clip_gradient_norm", "layer_decay"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UnveilError(f"optimization.{name} is {value}; it must be more than 0")
        for name in ("warmup_steps", "warmup_epochs", "min_learning_rate"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UnveilError(f"optimization.{name} is {value}; it must not be less than 0")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What should not change the result, but for `seed` and `precision`."""

    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the arithmetic; parameters and optimizer state are fp32 always."""
    loss_scale_window: int = 500
    """With fp16: the loss scale doubles after so many steps without an overflow (released code: EVA's; EVA-CLIP's is
    1000)."""
    parallel: Literal["ddp", "zero1", "fsdp"] = "ddp"
    """What several processes divide among them: the images only (ddp); the optimizer's state, too (zero1, as in the
    paper); that, the weights and the gradients (fsdp)."""
    reshard_after_forward: bool = True
    """With fsdp: give a block's gathered weights back after its forward pass, and gather them again for its backward
    pass. Otherwise they stay until then: less is sent, and the weights are whole while a step lasts."""
    shard_group: int | None = None
    """With fsdp: so many processes of neighbouring ranks, such as those of one machine, divide the weights among them,
    and every such group has all of them; None = one group of all."""
    timeout_minutes: float = 15.0
    """A process that waits longer for the others fails, so that one that hangs or died leaves nobody waiting. While a
    checkpoint is written it waits four times as long; until the images have been found, 15 minutes."""
    compile: bool = False
    deterministic: bool = False
    """On CUDA: only deterministic kernels, so that resuming is exact to the bit."""
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_last: int = 2
    evaluate_every: int | None = None
    """Steps between evaluations; left out: at the end only."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Beside metrics.jsonl, which is always written."""

    def __post_init__(self) -> None:
        counts = ("loss_scale_window", "log_every", "checkpoint_every", "keep_last", "evaluate_every", "shard_group")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UnveilError(f"engine.{name} is {value}; it must be at least 1")
        if self.timeout_minutes <= 0:
            raise UnveilError(f"engine.timeout_minutes is {self.timeout_minutes}; it must be more than 0")
        if self.shard_group is not None and self.parallel != "fsdp":
            raise UnveilError(
                f"engine.shard_group says how fsdp divides the weights, and engine.parallel is {self.parallel}; give "
                "--parallel fsdp, or leave shard_group out"
            )
