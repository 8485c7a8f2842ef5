"""The quickstart's story: pre-train, then compare; with captions, if they are asked for."""

from dataclasses import dataclass

from unveil.config.classification import ClassificationConfig
from unveil.config.contrastive import ContrastiveConfig
from unveil.config.data import FashionScenes
from unveil.config.pretraining import PretrainConfig
from unveil.config.revcolv2 import require_vit


@dataclass(frozen=True, kw_only=True)
class FewLabels:
    """Fine-tuning with few labels: how many, how often, and each side's own settings."""

    labels: int
    seeds: int
    pretrained: ClassificationConfig
    scratch: ClassificationConfig


@dataclass(frozen=True, kw_only=True)
class CaptionsChapter:
    """A CLIP on images with captions, its image tower from the pre-training and from scratch: how often, and how."""

    seeds: int
    pretrained: ContrastiveConfig
    scratch: ContrastiveConfig


@dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Pre-train on unlabelled images; probe the features; fine-tune with few labels, against the same from scratch."""

    pretrain: PretrainConfig
    test: FashionScenes
    probe_labels: tuple[int, ...]
    """Beside these, all labels."""
    probe_seeds: int
    finetune: tuple[FewLabels, ...]
    captions: CaptionsChapter | None
    """Optional: `unveil quickstart --chapters all`. None: there is none, for a CLIP's image tower is a ViT."""

    def __post_init__(self) -> None:
        if self.captions is not None:
            require_vit(self.pretrain.model, "the chapter of captions")
