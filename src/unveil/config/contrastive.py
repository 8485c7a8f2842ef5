"""Contrastive image-text training (paper section 2.3.5)."""

from dataclasses import dataclass
from typing import Literal

from unveil.config.clip import ClipModelConfig
from unveil.config.data import DataConfig, RandomResizedCrop
from unveil.config.errors import UnveilError
from unveil.config.training import EngineConfig, OptimizationConfig


@dataclass(frozen=True, kw_only=True)
class TowerOptimization:
    """How one part of a network is optimised where that differs from the rest; None = as the rest."""

    learning_rate: float | None = None
    """Peak, absolute; it rises and falls with the run's."""
    weight_decay: float | None = None
    layer_decay: float | None = None
    """Learning rate falls by this factor from each layer of the part to the one below."""
    locked: int | Literal["all"] = 0
    """Layers of the input side that do not learn: 1 = the embeddings, 2 = also the first block; or the whole part."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise UnveilError(f"the {name} of a tower is {value}; it must not be less than 0")
        if self.layer_decay is not None and self.layer_decay <= 0:
            raise UnveilError(f"the layer_decay of a tower is {self.layer_decay}; it must be more than 0")
        if self.locked != "all" and self.locked < 0:
            raise UnveilError(f"the locked layers of a tower are {self.locked}; give 0 or more, or all")


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Training of a CLIP: the image and the text of a pair are alike, and unlike all others of the global batch."""

    recipe: str
    model: ClipModelConfig
    data: DataConfig = DataConfig(crop=RandomResizedCrop(scale=(0.9, 1.0)), flip=False)
    optimization: OptimizationConfig
    """Its learning rate, weight decay and layer decay are those of whatever the towers do not set themselves."""
    engine: EngineConfig = EngineConfig()
    visual: TowerOptimization = TowerOptimization()
    text: TowerOptimization = TowerOptimization()
    local_loss: bool = True
    """Each process computes the logits of its own pairs against all. Otherwise each computes those of all pairs, which
    takes as many times more memory as there are processes; the gradients are the same."""
    patch_dropout: float = 0.0
    """Share of the patches that the image tower does not see in training (Li et al. 2022, FLIP)."""
    vision_init: str | None = None
    """Start the image tower from these weights: a run, or a file of any known layout. Its projection is new."""
    text_init: str | None = None
    """Start the text tower from the CLIP in this run or file. Its projection is new."""
    init_from: str | None = None
    """Start everything, projections and temperature too, from the CLIP in this run or file."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.patch_dropout < 1.0:
            raise UnveilError(f"patch_dropout {self.patch_dropout} is not in [0, 1)")
        if self.visual.locked == self.text.locked == "all":
            raise UnveilError("both towers are locked, so that nothing is left to learn; let one of them learn")
        towers_with_rates = [tower for tower in (self.visual, self.text) if tower.learning_rate is not None]
        if towers_with_rates and self.optimization.optimizer.learning_rate == 0:
            raise UnveilError(
                "the learning rates of the towers rise and fall with optimization.optimizer.learning_rate, which is 0; "
                "give it a value"
            )
        if self.init_from is not None and (self.vision_init is not None or self.text_init is not None):
            raise UnveilError(
                "init_from gives both towers their weights, and vision_init or text_init is given as well; give either "
                "the one or the others"
            )
