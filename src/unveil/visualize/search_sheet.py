"""What a search has found, on a sheet: the query, and the images with their places and scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from unveil.visualize.prediction_sheet import COLUMNS, GAP, GREY, INK, LINE, MARGIN, THUMBNAIL, TRACK, fitted, typeface

HEADING = 30
"""Height of the line with the query."""


@dataclass(frozen=True)
class Found:
    """One image."""

    title: str
    score: float
    """Cosine of image and query."""
    picture: Image.Image | None
    """RGB; None where it cannot be read."""


def search_sheet(query: str, subtitle: str, found: Sequence[Found]) -> Image.Image:
    """All images, the nearest first, row by row, whole, on white.

    Args:
        subtitle: what was searched, in what model's eyes.
    """
    columns = min(COLUMNS, max(1, math.ceil(math.sqrt(len(found)))))
    rows = math.ceil(len(found) / columns)
    height = THUMBNAIL + 10 + LINE
    width = columns * (THUMBNAIL + GAP) - GAP
    head = HEADING + LINE + GAP
    page = Image.new("RGB", (2 * MARGIN + width, 2 * MARGIN + head + rows * (height + GAP) - GAP), "white")
    draw = ImageDraw.Draw(page)
    large, plain, small = typeface("DejaVuSans-Bold", 20), typeface("DejaVuSans", 15), typeface("DejaVuSans", 12)
    draw.text((MARGIN, MARGIN), fitted(f"“{query}”", large, width), INK, large)
    draw.text((MARGIN, MARGIN + HEADING), fitted(subtitle, small, width), GREY, small)
    for place, image in enumerate(found):
        left = MARGIN + place % columns * (THUMBNAIL + GAP)
        top = MARGIN + head + place // columns * (height + GAP)
        draw.rectangle((left, top, left + THUMBNAIL - 1, top + THUMBNAIL - 1), fill=TRACK)
        if image.picture is not None:
            scale = THUMBNAIL / max(image.picture.size)
            size = tuple(max(1, round(side * scale)) for side in image.picture.size)
            tile = image.picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
            page.paste(tile, (left + (THUMBNAIL - size[0]) // 2, top + (THUMBNAIL - size[1]) // 2))
        top += THUMBNAIL + 10
        score = f"{image.score:.3f}"
        wide = round(plain.getlength(score))
        draw.text((left, top), fitted(f"{place + 1}  {image.title}", plain, THUMBNAIL - wide - 10), INK, plain)
        draw.text((left + THUMBNAIL - wide, top), score, GREY, plain)
    return page
