"""Birdsnap (Berg et al. 2014): tables of species and images, and the photos as its script downloaded them."""

import csv
from pathlib import Path

from unveil.tasks.classification.suites.suite import not_laid_out
from unveil.tasks.contrastive.suites.sources import ListedImage, ListedSource
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import LabelledSet, labelled

PHOTOS = ("download/images", "images")
"""Where the script puts them, and where some move them."""


def open_birdsnap(suite: ZeroShotSuite, folder: Path) -> LabelledSet:
    """The test images that are there: many can no longer be downloaded, so the notes count those that are not.

    Raises:
        UnveilError: a table is missing or damaged, or no test image is there.
    """
    species = _rows(suite, folder, "species.txt", ("id", "common"))
    images = _rows(suite, folder, "images.txt", ("path", "species_id"))
    tests = _rows(suite, folder, "test_images.txt", ("path",))
    photos = next((folder / place for place in PHOTOS if (folder / place).is_dir()), None)
    if photos is None:
        raise not_laid_out(suite, folder, f"there is no {PHOTOS[0]}/ in it: run get_birdsnap.py")
    place_of = {row["id"]: place for place, row in enumerate(species)}
    species_of = {row["path"]: row["species_id"] for row in images}
    listed = []
    for row in tests:
        number = species_of.get(row["path"])
        if number not in place_of:
            raise not_laid_out(suite, folder, f"images.txt does not say which species {row['path']} shows")
        listed.append(ListedImage(str(photos / row["path"]), place_of[number]))
    there = tuple(image for image in listed if Path(image.path).is_file())
    missing = len(listed) - len(there)
    notes = [f"{missing:,} of its {len(listed):,} test images are not in {photos}"] if missing else []
    return labelled(suite, ListedSource(there), [row["common"] for row in species], notes=notes)


def _rows(suite: ZeroShotSuite, folder: Path, name: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Of a table with tabs between its columns, whose first line names them."""
    path = folder / name
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError) as error:
        raise not_laid_out(suite, folder, f"{name} cannot be read ({error})") from None
    if not rows or any(row.get(column) is None for row in rows for column in columns):
        raise not_laid_out(suite, folder, f"{name} has not the columns {' and '.join(columns)}")
    return rows
