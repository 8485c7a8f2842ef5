"""What RevColV2 learned from pixels, as pictures."""

import torch

from unveil.build.insight import reconstruct
from unveil.config import PixelTarget
from unveil.data.normalization import normalize
from unveil.models.revcolv2 import RevColV2
from unveil.quickstart.examples import SHOWN, SIDE, hidden_examples
from unveil.quickstart.story import Story
from unveil.visualize.pictures import loss_curve, masked_image, pca_pictures, sheet
from unveil.visualize.report import Report

WHAT_IS_READ = (
    "The linear probe and the neighbours read the coarsest level of the bottom-up columns, fine-tuning that of the "
    "last column."
)


def add_columns(story: Story, report: Report) -> None:
    """The loss, hidden squares as they are predicted, and what the levels of the last column hold."""
    config = story.config.pretrain
    assert isinstance(config.target, PixelTarget)
    normalized = config.target.normalize
    report.heading("Pre-training loss")
    steps, losses = zip(*story.losses, strict=True)
    report.picture(
        loss_curve(list(steps), list(losses), "mean squared error"),
        "Training loss by step: the squared error of a hidden pixel"
        + (
            ", in units of its square's variance. Whoever answers with each square's mean gets 1."
            if normalized
            else ", where black is -1 and white 1."
        ),
    )
    _add_reconstructions(story, report, normalized=normalized)
    _add_levels(story, report)


def _add_reconstructions(story: Story, report: Report, *, normalized: bool) -> None:
    images, masks = hidden_examples(story)
    grid = story.config.pretrain.model.grid
    rows = [
        list(images),
        [masked_image(image, mask, grid) for image, mask in zip(images, masks, strict=True)],
        list(reconstruct(story.task.eval(), images, masks)),
    ]
    told = " Brightness and contrast of each square are the true ones, which it does not predict." if normalized else ""
    report.heading("What the network could not see, and painted")
    report.picture(
        sheet(rows, SIDE), f"Test images; what the network saw; the hidden squares as it predicts them.{told}"
    )


def _add_levels(story: Story, report: Report) -> None:
    task, config = story.task.eval(), story.config.pretrain
    assert isinstance(task.backbone, RevColV2)
    images = story.test.pixels[:SHOWN]
    device = next(task.parameters()).device
    with torch.no_grad():
        maps = task.backbone.feature_maps(normalize(images.to(device), config.data.normalization))
    rows = [list(images)]
    size = (images.shape[2], images.shape[3])
    for level in maps.values():
        cells = level.float().cpu().flatten(2).transpose(1, 2)
        rows.append(pca_pictures(cells, (level.shape[2], level.shape[3]), size))
    strides = [str(stride) for stride in maps]
    report.heading("The levels of the last column in colour")
    report.picture(
        sheet(rows, SIDE),
        "Test images; then the three main directions of the features as red, green and blue, level by level: cells of "
        f"{', '.join(strides[:-1])} and {strides[-1]} pixels. Pixels are predicted from the finest, classes from the "
        "coarsest.",
    )
