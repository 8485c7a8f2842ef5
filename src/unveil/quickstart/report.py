"""The quickstart's results as files: report.json for programs, report.html for people."""

import json
import platform
from pathlib import Path

import torch
from torch.nn.functional import cosine_similarity

from unveil.config import BackboneConfig, RevColV2Config, UnveilError, ViTConfig
from unveil.data.normalization import normalize
from unveil.quickstart.captions_report import add_captions
from unveil.quickstart.columns_report import WHAT_IS_READ, add_columns
from unveil.quickstart.examples import SHOWN, SIDE, hidden_examples
from unveil.quickstart.story import Story, table
from unveil.visualize.pictures import (
    loss_curve,
    masked_image,
    nearest_images,
    pca_pictures,
    sheet,
    similarity_map,
)
from unveil.visualize.report import Report

NEIGHBOURS = 9
TEACHERS_FEATURES = "a frozen teacher's features of the patches"


def write_report(story: Story, out: Path) -> Path:
    """Write both files into `out`; the page's path.

    Raises:
        UnveilError: the folder cannot be written.
    """
    page = out / "report.html"
    try:
        (out / "report.json").write_text(json.dumps(story.report, indent=2) + "\n")
        page.write_text(_page(story).html(), encoding="utf-8")
    except OSError as error:
        raise UnveilError(f"{page} cannot be written: {error.strerror}; free space or give another --out") from error
    return page


def _page(story: Story) -> Report:
    config = story.config.pretrain
    count, test = len(story.train.labels), len(story.test.labels)
    columns = isinstance(config.model, RevColV2Config)
    report = Report("unveil quickstart: was it worth pre-training?")
    report.text(
        f"{_who(config.model)} looked at {count:,} images without labels and learned to predict "
        f"{'the pixels of the squares' if columns else TEACHERS_FEATURES} it could not see. Tested on {test:,} other "
        f"images of {len(story.classes)} classes: {', '.join(story.classes[:12])}"
        f"{', ...' if len(story.classes) > 12 else ''}. The whole took {story.report['seconds'] / 60:.1f} minutes."
    )
    report.heading("Linear probe: a linear classifier on frozen features")
    report.table(*table(story.report["linear_probe"]), highlight="pre-trained")
    report.heading("Nearest neighbours on frozen features")
    report.table(*table(story.report["knn"]), highlight="pre-trained")
    report.heading("Fine-tuning the whole network with few labels")
    report.table(*table(story.report["finetune"]), highlight="pre-trained")
    report.text(
        "Test accuracy; ± is the standard deviation over draws of the labelled images. Scratch has its own "
        f"settings; docs/lab_book.md says how they were chosen{' for the ViT' if columns else ''}. The untrained "
        f"network's features are those of its random weights.{f' {WHAT_IS_READ}' if columns else ''}",
        small=True,
    )
    if columns:
        add_columns(story, report)
    else:
        _add_loss(story, report)
        _add_similarity(story, report)
        _add_features(story, report)
    _add_neighbours(story, report)
    if story.searches:
        add_captions(story, report)
    report.text(
        f"unveil, torch {torch.__version__}, {platform.platform()}, {torch.get_num_threads()} threads, "
        f"{config.engine.precision}. Settings: pretrain/config.json. Numbers: report.json.",
        small=True,
    )
    return report


def _who(model: BackboneConfig) -> str:
    match model:
        case ViTConfig():
            return f"A ViT ({model.width} wide, {model.depth} deep, {model.image_size} px)"
        case RevColV2Config():
            return (
                f"RevColV2 (a reconstruction: {model.bottom_up_columns} bottom-up and {model.top_down_columns} "
                f"top-down columns of {len(model.widths)} levels, {model.image_size} px)"
            )


def _add_loss(story: Story, report: Report) -> None:
    report.heading("Pre-training loss")
    steps, losses = zip(*story.losses, strict=True)
    report.picture(
        loss_curve(list(steps), list(losses)),
        "Training loss by step: lower is closer to the teacher.",
    )


def _add_similarity(story: Story, report: Report) -> None:
    """Test images, what the student saw of them, and how well it predicted the rest."""
    task, config = story.task.eval(), story.config.pretrain
    images, masks = hidden_examples(story)
    everywhere = torch.arange(masks.shape[1]).expand(len(images), -1)
    device = next(task.parameters()).device
    with torch.no_grad():
        predicted = task.predict_hidden(
            normalize(images.to(device), config.data.normalization), masks.to(device), everywhere.to(device)
        )
        wanted = task.target(images.to(device)).to(predicted)
        similarity = cosine_similarity(predicted.float(), wanted.float(), dim=-1).cpu()
    size = (images.shape[2], images.shape[3])
    grid = config.model.grid
    rows = [
        list(images),
        [masked_image(image, mask, grid) for image, mask in zip(images, masks, strict=True)],
        [similarity_map(values, mask, grid, size) for values, mask in zip(similarity, masks, strict=True)],
    ]
    mean = similarity[masks].mean().item()
    report.heading("What the student could not see, and predicted")
    report.picture(
        sheet(rows, SIDE),
        "Test images; what the student saw; similarity of its prediction to the teacher's feature at each hidden "
        f"patch, from violet (0) to yellow (1). Mean here: {mean:.2f}.",
    )


def _add_features(story: Story, report: Report) -> None:
    task, config = story.task.eval(), story.config.pretrain
    images = story.test.pixels[:SHOWN]
    device = next(task.parameters()).device
    with torch.no_grad():
        student = task.backbone(normalize(images.to(device), config.data.normalization)).patches.float().cpu()
        teacher = task.target(images.to(device)).float().cpu()
    size, grid = (images.shape[2], images.shape[3]), config.model.grid
    report.heading("Patch features in colour")
    report.picture(
        sheet([list(images), pca_pictures(student, grid, size), pca_pictures(teacher, grid, size)], SIDE),
        "Test images; the three main directions of the student's patch features as red, green and blue; the teacher's.",
    )


def _add_neighbours(story: Story, report: Report) -> None:
    rows = []
    train, test = story.features["pretrained"]
    found = nearest_images(test[:6], train, NEIGHBOURS)
    for query, places in enumerate(found):
        rows.append([story.test.pixels[query], *story.train.pixels[places]])
    hits = (story.train.labels[found] == story.test.labels[:6, None]).float().mean().item()
    report.heading("Nearest neighbours")
    report.picture(
        sheet(rows, SIDE),
        f"First column: test images. Then the training images whose features are nearest; {hits:.0%} of those shown "
        "are of the same class.",
    )
