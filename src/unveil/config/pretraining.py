"""A whole pre-training, complete."""

from dataclasses import dataclass

from unveil.config.data import DataConfig
from unveil.config.errors import UnveilError
from unveil.config.model import ViTConfig
from unveil.config.pretext import (
    BlockMasking,
    EmaTarget,
    EmbeddedTarget,
    MaskedAutoencoding,
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
        elif isinstance(self.objective, MaskedAutoencoding):
            self._check_autoencoder(self.model)
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
        self._check_equal_masks("RevColV2", "units")

    def _check_autoencoder(self, model: ViTConfig) -> None:
        """Raises UnveilError for what MAE does not learn from."""
        if not isinstance(self.target, PixelTarget):
            raise UnveilError(
                f"MaskedAutoencoding tells the hidden patches' pixels, and {self.recipe} has the target "
                f"{type(self.target).__name__}; choose PixelTarget (--teacher pixels)"
            )
        if model.relative_positions != "none":
            raise UnveilError(
                "MaskedAutoencoding shows the network the visible patches alone, and relative positions need all; give "
                "--set model.relative_positions=none"
            )
        self._check_equal_masks("MaskedAutoencoding", "patches")

    def _check_equal_masks(self, who: str, what: str) -> None:
        """Raises UnveilError for masks that hide more of one image than of another."""
        if not isinstance(self.masking, RandomMasking) and not self.masking.exact:
            raise UnveilError(
                f"{who} needs masks that hide equally many {what} of each image; give --set masking=RandomMasking, or "
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
