"""From weights in any known layout to a network that answers, with the head that came with them."""

import logging

import torch
from torch import Tensor, nn

from unveil.config import BackboneConfig, RevColV2Config, UnveilError, ViTConfig
from unveil.config.revcolv2 import in_words
from unveil.data.normalization import Normalization
from unveil.models.backbone import Backbone
from unveil.models.revcolv2 import RevColV2
from unveil.models.vit import ViT
from unveil.tasks.classification.task import Classification, Pooling
from unveil.weights.families import recognize
from unveil.weights.infer import Head, head_of, pooling_of
from unveil.weights.load import fill_backbone
from unveil.weights.revcolv2 import fill_columns

logger = logging.getLogger(__name__)


def build_trained(
    name: str,
    state: dict[str, Tensor],
    config: BackboneConfig,
    *,
    classes: tuple[str, ...],
    normalization: Normalization,
    pooling: Pooling | None,
) -> tuple[Backbone, Classification | None]:
    """The backbone in fp32 and eval mode, and the classifier that it is a part of, if the weights have a head.

    A RevColV2 gives the coarsest level of its last column, unless it is asked for more.

    Args:
        name: what errors and the log call it.
        classes: of the head's rows; () = numbers.
        pooling: what the head sees. None = as its norm tells.

    Raises:
        UnveilError: a layout that is not known, or a head with another number of rows than there are classes.
    """
    found = recognize(state, source=name)
    backbone: Backbone
    match config:
        case ViTConfig():
            # On the meta device nothing is initialised, which for a large network takes longer than loading it.
            with torch.device("meta"):
                backbone = ViT(config, mask_token=found.masked, final_norm="norm.weight" in found.backbone)
            report = fill_backbone(backbone, state, source=name)
        case RevColV2Config():
            backbone = RevColV2(config, mask_token=found.masked, reads="top")
            report = fill_columns(backbone, state, source=name)
    for note in report.notes:
        logger.warning("%s: %s", name, note)
    network: nn.Module = backbone.float()
    classifier = None
    if (head := head_of(state)) is not None:
        rows = len(head[0])
        if classes and len(classes) != rows:
            raise UnveilError(f"{name} names {len(classes)} classes and its head has {rows} rows; restore the file")
        pooling = pooling or pooling_of(state)
        network = classifier = _classifier(backbone, found.native, head, pooling, classes, normalization)
    network.eval().requires_grad_(False)
    ends = "no head" if classifier is None else f"a head for {len(classifier.classes):,} classes"
    logger.info(
        f"{name} ({report.layout}): {in_words(config)}, {config.image_size} px in "
        f"{'patches' if isinstance(config, ViTConfig) else 'units'} of {config.mask_unit}, {ends}"
    )
    return backbone, classifier


def _classifier(
    backbone: Backbone,
    native: dict[str, Tensor],
    head: Head,
    pooling: Pooling,
    classes: tuple[str, ...],
    normalization: Normalization,
) -> Classification:
    weight, bias = (part.float() for part in head)
    classifier = Classification(
        backbone,
        classes or tuple(str(row) for row in range(len(weight))),
        seed=0,
        normalization=normalization,
        label_smoothing=0.0,
        head_init_scale=1.0,
        pooling=pooling,
    )
    if pooling == "mean" and "fc_norm.weight" not in native:
        # A probe's head: the tokens have had their norm before the mean.
        classifier.fc_norm = nn.Identity()
    elif pooling == "mean":
        classifier.fc_norm.load_state_dict({name: native[f"fc_norm.{name}"].float() for name in ("weight", "bias")})
    classifier.head.load_state_dict({"weight": weight, "bias": bias})
    return classifier


def usual_normalization(name: str, state: dict[str, Tensor]) -> Normalization:
    """Of a file that does not say: that of its family's publishers."""
    usual: Normalization = "imagenet" if recognize(state, source=name).family == "timm" else "clip"
    logger.info("%s does not say how its images are normalised: as usual for its kind, by %s's numbers", name, usual)
    return usual
