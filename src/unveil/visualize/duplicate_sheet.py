"""Groups of images that are said to be the same, one group in a row, for a person to judge."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from unveil.visualize.prediction_sheet import GAP, GREY, INK, LINE, MARGIN, TRACK, fitted, typeface

SIDE = 180
"""Of a thumbnail, pixels."""
ACROSS = 5
"""Images of a group that are shown."""


@dataclass(frozen=True)
class Copies:
    """One group."""

    title: str
    pictures: Sequence[tuple[str, Image.Image | None]]
    """What is said below each, and the picture; None where it cannot be read."""


def duplicate_sheet(groups: Sequence[Copies]) -> Image.Image:
    """All groups, on white; of each the first `ACROSS` pictures."""
    across = max(min(len(group.pictures), ACROSS) for group in groups)
    height = LINE + SIDE + LINE + GAP
    page = Image.new(
        "RGB", (2 * MARGIN + across * (SIDE + GAP) - GAP, 2 * MARGIN + len(groups) * height - GAP), "white"
    )
    draw = ImageDraw.Draw(page)
    bold, small = typeface("DejaVuSans-Bold", 13), typeface("DejaVuSans", 11)
    for number, group in enumerate(groups):
        top = MARGIN + number * height
        draw.text((MARGIN, top), fitted(group.title, bold, page.width - 2 * MARGIN), INK, bold)
        for column, (text, picture) in enumerate(group.pictures[:ACROSS]):
            left = MARGIN + column * (SIDE + GAP)
            draw.rectangle((left, top + LINE, left + SIDE - 1, top + LINE + SIDE - 1), fill=TRACK)
            if picture is not None:
                tile = picture.copy()
                tile.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                page.paste(tile, (left + (SIDE - tile.width) // 2, top + LINE + (SIDE - tile.height) // 2))
            draw.text((left, top + LINE + SIDE + 4), fitted(text, small, SIDE), GREY, small)
    return page
