"""Several pre-trainings side by side (paper Table 2)."""

from dataclasses import dataclass

from unveil.config.classification import ClassificationConfig, ProbeConfig
from unveil.config.errors import UnveilError
from unveil.config.pretraining import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Pre-train with each recipe at each length, probe and fine-tune what comes out; from scratch and the teacher, too.

    Everything that is drawn is drawn alike for all: run k of `seeds` adds k to every seed, and fine-tuning j of `draws`
    gets the same labelled images whatever it starts from.
    """

    pretrain: tuple[PretrainConfig, ...]
    tokenizer: PretrainConfig | None = None
    """How the tokeniser of those recipes that need one is trained, once for each seed; None = they name a run."""
    epochs: tuple[float, ...]
    """Lengths of pre-training, passes over the images: each recipe's batch makes steps of them."""
    probe: ProbeConfig
    """Of all rows; its labels and draws, too."""
    finetune: ClassificationConfig
    scratch: ClassificationConfig
    """Fine-tuning without pre-training wants settings of its own."""
    labels: int | None = None
    """Labelled images for fine-tuning, as many of each class as of any other; None = all."""
    draws: int = 1
    """How often those are drawn anew."""
    seeds: int = 1
    """How often everything is repeated, pre-training included."""
    scratch_row: bool = True
    teacher_row: bool = True

    def __post_init__(self) -> None:
        if not self.pretrain or not self.epochs:
            raise UnveilError("a comparison needs a recipe and a length, or several")
        names = [config.recipe for config in self.pretrain]
        if len(set(names)) < len(names) or len(set(self.epochs)) < len(self.epochs):
            raise UnveilError("each recipe and each length can be compared once; leave the repeated one out")
        if min(self.epochs) <= 0:
            raise UnveilError(f"--epochs {min(self.epochs):g}: give more than 0")
        if self.draws < 1 or self.seeds < 1:
            raise UnveilError(f"draws ({self.draws}) and seeds ({self.seeds}) must be at least 1")
        if self.labels is not None and self.labels < 2:
            raise UnveilError(f"labels is {self.labels}; fine-tuning needs 2 labelled images or more")
        if self.draws > 1 and self.labels is None:
            raise UnveilError(f"{self.draws} draws of all labels would all be the same; give --labels, too")
