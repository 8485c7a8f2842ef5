"""Image classification: fine-tuning a whole network, and probing a frozen one."""

from dataclasses import dataclass
from typing import Literal

from unveil.config.data import DataConfig
from unveil.config.errors import UnveilError
from unveil.config.revcolv2 import BackboneConfig, RevColV2Config
from unveil.config.training import EngineConfig, OptimizationConfig


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What is done to training images beside crop and flip. Everything off: the defaults."""

    rand_augment: str | None = None
    """In timm's words, such as "rand-m9-mstd0.5-inc1": magnitude 9, deviation 0.5 (paper: RandAug (9, 0.5))."""
    random_erasing: float = 0.0
    """Probability that a rectangle is filled with noise (timm's mode "pixel")."""
    mixup: float = 0.0
    """Alpha of the beta distribution; 0 = no Mixup."""
    cutmix: float = 0.0
    """Alpha of the beta distribution; 0 = no CutMix."""
    mix_probability: float = 1.0
    """That a batch is mixed at all, where Mixup or CutMix is on."""
    switch_probability: float = 0.5
    """That a mixed batch gets CutMix, where both are on."""

    def __post_init__(self) -> None:
        for name in ("random_erasing", "mix_probability", "switch_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UnveilError(f"augmentation.{name} {getattr(self, name)} is not in [0, 1]")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0.0:
                raise UnveilError(f"augmentation.{name} {getattr(self, name)} must not be less than 0")

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed with one another."""
        return self.mixup > 0.0 or self.cutmix > 0.0


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Fine-tuning of a classifier (paper Tables 12 and 13)."""

    recipe: str
    model: BackboneConfig
    classes: tuple[str, ...] = ()
    """Names in the order of the head's rows; left out: those of the data."""
    data: DataConfig = DataConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimization: OptimizationConfig
    engine: EngineConfig = EngineConfig()
    pooling: Literal["mean", "cls"] = "mean"
    """What the head sees: the mean of the patch tokens under a fresh norm, or the cls token under the network's own."""
    label_smoothing: float = 0.1
    head_init_scale: float = 0.001
    head_from: Literal["new", "keep", "remap"] = "new"
    """What becomes of the head in `init_from`: dropped, kept (same classes), or its rows picked by class name."""
    freeze_patch_embedding: bool = False
    """The released EVA code freezes it in all image fine-tuning; the paper does not say so."""
    ema_decay: float | None = None
    """Of a running average of the weights, kept and evaluated beside them; None = none."""
    test_crop: float = 1.0
    """Share of the short side that evaluation sees (paper Table 13: test crop ratio 1.0)."""
    init_from: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UnveilError(f"label_smoothing {self.label_smoothing} is not in [0, 1)")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise UnveilError(f"ema_decay {self.ema_decay} is not in [0, 1)")
        if not 0.0 < self.test_crop <= 1.0:
            raise UnveilError(f"test_crop {self.test_crop} is not in (0, 1]")
        if isinstance(self.model, RevColV2Config):
            _check_pooling(self.pooling)
            if self.freeze_patch_embedding:
                raise UnveilError(
                    "freeze_patch_embedding is for ViTs, and the model is a RevColV2; leave it out, or lower "
                    "optimization.layer_decay"
                )


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What a frozen network's features are worth: a linear probe by gradient descent (MAE's and EVA's protocol, paper
    Table 11), L-BFGS, nearest neighbours."""

    recipe: str
    model: BackboneConfig
    classes: tuple[str, ...] = ()
    data: DataConfig = DataConfig()
    optimization: OptimizationConfig
    """Of the linear probe."""
    engine: EngineConfig = EngineConfig()
    pooling: Literal["mean", "cls"] = "cls"
    """The mean of the patch tokens, or the cls token, both behind the network's final norm."""
    test_crop: float = 1.0
    labels: int | None = None
    """Learn from so many labelled images, as many of each class as of any other; None = from all."""
    draws: int = 1
    """How often those few are drawn anew, the probe repeated, and its scores averaged."""
    neighbours: int = 20
    """That vote in kNN."""
    temperature: float = 0.07
    """A neighbour's vote weighs exp(cosine / temperature)."""
    init_from: str | None = None

    def __post_init__(self) -> None:
        if self.engine.parallel == "fsdp":
            raise UnveilError("a probe trains one layer, too little to be sharded; give --parallel ddp or zero1")
        if isinstance(self.model, RevColV2Config):
            _check_pooling(self.pooling)
        if not 0.0 < self.test_crop <= 1.0:
            raise UnveilError(f"test_crop {self.test_crop} is not in (0, 1]")
        if self.labels is not None and self.labels < 2:
            raise UnveilError(f"labels is {self.labels}; a probe needs 2 labelled images or more")
        if self.draws < 1 or self.neighbours < 1:
            raise UnveilError(f"draws ({self.draws}) and neighbours ({self.neighbours}) must be at least 1")
        if self.draws > 1 and self.labels is None:
            raise UnveilError(f"{self.draws} draws of all labels would all be the same; give labels, too (--labels N)")
        if not 0.02 <= self.temperature < float("inf"):
            raise UnveilError(f"temperature {self.temperature} must be at least 0.02: smaller ones overflow")


def _check_pooling(pooling: str) -> None:
    if pooling != "mean":
        raise UnveilError(f"RevColV2 has no cls token, and pooling is {pooling}; give --set pooling=mean")
