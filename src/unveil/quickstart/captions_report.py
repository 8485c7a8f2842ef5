"""The chapter of captions as tables and pictures."""

import statistics
from typing import Any

from unveil.quickstart.story import Search, Story, percent
from unveil.visualize.pictures import sheet
from unveil.visualize.report import Report

SIDE = 88
"""Pixels of one picture on a sheet."""

COLUMNS = {
    "zero_shot": "zero-shot accuracy",
    "test_image_to_text_r1": "image to text R@1",
    "test_text_to_image_r1": "text to image R@1",
}


def clip_table(clip: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of `report["clip"]`: percent, and the loss over all pairs of the test images."""
    rows = []
    for name, title in (("pretrained", "pre-trained"), ("scratch", "from scratch")):
        loss = statistics.mean(clip["test_loss"][name])
        rows.append([title, *(percent(clip[column][name]) for column in COLUMNS), f"{loss:.2f}"])
    guessed, recalled = clip["chance"]["zero_shot"], clip["chance"]["r1"]
    rows.append(["chance", *(percent([share]) for share in (guessed, recalled, recalled)), ""])
    return ["", *COLUMNS.values(), "loss"], rows


def add_captions(story: Story, report: Report) -> None:
    """The table of both CLIPs, and what the one from the pre-trained network finds."""
    clip = story.report["clip"]
    report.heading("Images and captions: a CLIP whose image tower is the pre-trained network")
    report.table(*clip_table(clip), highlight="pre-trained")
    report.text(
        f"Each CLIP saw {clip['samples_seen']['pretrained'][0]:,} pairs of image and caption, such as "
        f"“{story.searches[0].query}”, and no labels. Zero-shot: a test image belongs to the class whose sentences are "
        "nearest. R@1: the nearest text of all test images has the words of the image's own, and the other way round. "
        "The loss is over all pairs of the test images.",
        small=True,
    )
    report.heading("Finding images by text")
    for search in story.searches:
        report.picture(sheet([[story.test.pixels[place] for place, _ in search.found]], SIDE), _line(search))


def _line(search: Search) -> str:
    cosines = ", ".join(f"{cosine:.2f}" for _, cosine in search.found)
    return f"“{search.query}”: cosines {cosines}; {search.right} of {len(search.found)} have this caption."
