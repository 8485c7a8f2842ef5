"""A whole pre-training, complete."""

from dataclasses import dataclass

from unveil.config.data import DataConfig
from unveil.config.errors import UnveilError
from unveil.config.model import ViTConfig
from unveil.config.pretext import (
    BlockMasking,
    EmaTarget,
    EmbeddedTarget,
    MaskedRegression,
    MaskedTokenPrediction,
    Masking,
    Objective,
    Target,
)
from unveil.config.training import EngineConfig, OptimizationConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pre-training without labels: by default, predict a frozen teacher's features of the patches that are hidden."""

    recipe: str
    model: ViTConfig
    objective: Objective = MaskedRegression()
    masking: Masking = BlockMasking()
    target: Target = EmbeddedTarget()
    cache_targets: bool = False
    """Compute each image's target once and keep it in memory; refused with random crops."""
    data: DataConfig = DataConfig()
    optimization: OptimizationConfig
    engine: EngineConfig = EngineConfig()
    init_from: str | None = None
    """Start from these weights (a run or a file) at step 0; resuming needs nothing, the same command does it."""

    def __post_init__(self) -> None:
        if self.cache_targets and isinstance(self.objective, MaskedTokenPrediction):
            raise UnveilError(f"{self.recipe} predicts codes of a tokeniser, which cannot be cached")
        if not isinstance(self.target, EmaTarget):
            return
        if not isinstance(self.objective, MaskedRegression):
            raise UnveilError(
                "the target EmaTarget is an average of the student, which only MaskedRegression learns from: without "
                "hidden patches it would end with one answer for all images"
            )
        if self.cache_targets:
            raise UnveilError("the targets of EmaTarget change at every step and cannot be cached")
