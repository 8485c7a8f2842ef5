"""A whole pre-training, complete."""

from dataclasses import dataclass

from unveil.config.data import DataConfig
from unveil.config.errors import UnveilError
from unveil.config.pretext import (
    BlockMasking,
    EmaTarget,
    EmbeddedTarget,
    MaskedRegression,
    MaskedTokenPrediction,
    Masking,
    Objective,
    PixelTarget,
    RandomMasking,
    Target,
)
from unveil.config.revcolv2 import BackboneConfig, RevColV2Config
from unveil.config.training import EngineConfig, OptimizationConfig


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pre-training without labels: by default, predict a frozen teacher's features of the patches that are hidden."""

    recipe: str
    model: BackboneConfig
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
        if isinstance(self.model, RevColV2Config):
            self._check_columns()
        self._check_pixels()
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

    def _check_columns(self) -> None:
        """Raises UnveilError for what RevColV2 does not learn from."""
        if not isinstance(self.objective, MaskedRegression) or not isinstance(self.target, PixelTarget):
            raise UnveilError(
                f"RevColV2 learns from the hidden units' pixels, and {self.recipe} has the objective "
                f"{type(self.objective).__name__} and the target {type(self.target).__name__}; choose MaskedRegression "
                "and PixelTarget (--teacher pixels)"
            )
        if not isinstance(self.masking, RandomMasking) and not self.masking.exact:
            raise UnveilError(
                "RevColV2 needs masks that hide equally many units of each image; give --set masking=RandomMasking, or "
                "--set masking.exact=true"
            )

    def _check_pixels(self) -> None:
        """Raises UnveilError for squares that do not divide a patch."""
        side = self.target.normalized_side if isinstance(self.target, PixelTarget) else None
        if side is not None and self.model.mask_unit % side:
            raise UnveilError(
                f"target.normalized_side {side} does not divide what is hidden as a whole, squares of "
                f"{self.model.mask_unit} pixels; give a divisor of that"
            )
