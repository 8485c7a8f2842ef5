"""From an image network's configuration to the network."""

from unveil.config import BackboneConfig, RevColV2Config, ViTConfig
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT

Backbone = ViT | RevColV2
"""An image network of ours."""


def classified_backbone(config: BackboneConfig, *, final_norm: bool) -> Backbone:
    """One whose patches a classifier reads: of RevColV2 the coarsest level of the last column.

    Args:
        final_norm: of a ViT.
    """
    match config:
        case ViTConfig():
            return ViT(config, final_norm=final_norm)
        case RevColV2Config():
            return RevColV2(config, reads="top")


def probed_backbone(config: BackboneConfig) -> Backbone:
    """One whose patches a linear probe reads: of RevColV2 the coarsest level of the last bottom-up column (supplement,
    section 2.2)."""
    match config:
        case ViTConfig():
            return ViT(config)
        case RevColV2Config():
            return RevColV2(config, reads="bottom_up")


def masked_backbone(config: BackboneConfig) -> Backbone:
    """One that has mask tokens."""
    match config:
        case ViTConfig():
            return ViT(config, mask_token=True)
        case RevColV2Config():
            return RevColV2(config, mask_token=True)
