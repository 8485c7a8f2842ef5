"""The sheet of a search: whole pictures in order, with their scores."""

import numpy as np
from PIL import Image

from unveil.visualize.prediction_sheet import GAP, MARGIN, THUMBNAIL, TRACK
from unveil.visualize.search_sheet import HEADING, LINE, Found, search_sheet


def test_pictures_stand_whole_in_their_places() -> None:
    wide, tall = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (30, 90), "blue")
    found = [Found("a.png", 0.31, wide), Found("b.png", 0.2, tall), Found("gone.png", -0.1, None)]
    sheet = np.asarray(search_sheet("a red bicycle " * 30, "3 images", found))
    top = MARGIN + HEADING + LINE + GAP
    step, middle = THUMBNAIL + GAP, THUMBNAIL // 2
    assert sheet.shape[1] == 2 * MARGIN + 2 * step - GAP

    def colour(left: int, down: int) -> tuple[int, ...]:
        return tuple(sheet[down, left].tolist())

    grey = tuple(int(TRACK[place : place + 2], 16) for place in (1, 3, 5))
    # The wide one touches left and right, the tall one top and bottom; the third is not there.
    assert colour(MARGIN + 2, top + middle) == colour(MARGIN + THUMBNAIL - 3, top + middle) == (255, 0, 0)
    assert colour(MARGIN + middle, top + 2) == grey
    second = MARGIN + step
    assert colour(second + middle, top + 2) == colour(second + middle, top + THUMBNAIL - 3) == (0, 0, 255)
    assert colour(second + 2, top + middle) == grey
    row = top + THUMBNAIL + 10 + LINE + GAP
    assert colour(MARGIN + middle, row + middle) == grey
    # The heading, however long, stays within the margins.
    heading = (sheet[MARGIN : MARGIN + HEADING] < 128).any(axis=(0, 2)).nonzero()[0]
    assert heading.min() >= MARGIN and heading.max() < sheet.shape[1] - MARGIN
