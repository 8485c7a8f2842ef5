"""Images on a sheet, each with its likeliest classes as bars."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

THUMBNAIL = 280
"""Side of an image, pixels."""
MARGIN, GAP = 32, 28
"""Around the sheet, and between cards."""
COLUMNS = 6
"""At most."""
LINE, BAR = 21, 7
"""Height of a line of text, and of a bar."""
INK, GREY, TRACK, FIRST, OTHERS = "#222222", "#777777", "#eceff2", "#1f4e79", "#9bb7d4"


@dataclass(frozen=True)
class Card:
    """One image with what is said of it."""

    title: str
    picture: UInt8[Tensor, "3 h w"]
    answers: Sequence[tuple[str, float]]
    """Labels and probabilities, the likeliest first."""


def prediction_sheet(cards: Sequence[Card]) -> Image.Image:
    """All cards, row by row, on white."""
    columns = min(COLUMNS, max(1, math.ceil(math.sqrt(len(cards)))))
    rows = math.ceil(len(cards) / columns)
    answers = max(len(card.answers) for card in cards)
    height = THUMBNAIL + 10 + LINE + answers * (LINE + BAR + 8)
    page = Image.new(
        "RGB",
        (
            2 * MARGIN + columns * (THUMBNAIL + GAP) - GAP,
            2 * MARGIN + rows * (height + GAP) - GAP,
        ),
        "white",
    )
    draw = ImageDraw.Draw(page)
    plain, bold, small = typeface("DejaVuSans", 15), typeface("DejaVuSans-Bold", 15), typeface("DejaVuSans", 12)
    for place, card in enumerate(cards):
        left = MARGIN + place % columns * (THUMBNAIL + GAP)
        top = MARGIN + place // columns * (height + GAP)
        picture = Image.fromarray(card.picture.permute(1, 2, 0).numpy())
        page.paste(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC), (left, top))
        top += THUMBNAIL + 10
        draw.text((left, top), fitted(card.title, small, THUMBNAIL), GREY, small)
        top += LINE
        for rank, (label, probability) in enumerate(card.answers):
            font = plain if rank else bold
            percent = f"{100 * probability:.0f} %"
            width = round(font.getlength(percent))
            draw.text((left, top), fitted(label, font, THUMBNAIL - width - 10), INK, font)
            draw.text((left + THUMBNAIL - width, top), percent, INK, font)
            top += LINE
            _bar(draw, left, top, 1.0, TRACK)
            _bar(draw, left, top, probability, OTHERS if rank else FIRST)
            top += BAR + 8
    return page


def _bar(draw: ImageDraw.ImageDraw, left: int, top: int, share: float, colour: str) -> None:
    width = max(BAR, round(share * THUMBNAIL))
    draw.rounded_rectangle((left, top, left + width - 1, top + BAR - 1), BAR // 2, fill=colour)


def fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, its middle left out where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(_shortened(text, kept)) > width:
        kept -= 1
    return _shortened(text, kept)


def _shortened(text: str, kept: int) -> str:
    return f"{text[: math.ceil(kept / 2)]}…{text[len(text) - kept // 2 :]}"


def typeface(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of those that matplotlib carries: no system needs to have it."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)
