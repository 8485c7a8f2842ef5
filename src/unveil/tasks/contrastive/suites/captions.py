"""Retrieval on Flickr30k and COCO: images and their captions, as Karpathy split them or as the authors list them."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unveil.config import UnveilError
from unveil.tasks.classification.suites.suite import not_laid_out
from unveil.tasks.contrastive.suites.sources import ListedImage, ListedSource
from unveil.tasks.contrastive.suites.suite import ZeroShotSuite
from unveil.tasks.contrastive.suites.zero_shot_set import RetrievalSet

CAPTIONS = 5
"""Of each image: some of COCO's have six or seven, and the published numbers are over the first five."""

FLICKR_IMAGES = ("flickr30k-images", "flickr30k_images", "images", ".")


def open_flickr30k(suite: ZeroShotSuite, folder: Path) -> RetrievalSet:
    """Karpathy's test images, or without his list all images of the token file.

    Raises:
        UnveilError: no list is there, one is damaged, or images are missing.
    """
    split, tokens = (_beside(folder, name) for name in ("dataset_flickr30k.json", "results_20130124.token"))
    if split is not None:
        captions, note = _karpathy(split), ""
    elif tokens is not None:
        captions = _tokens(tokens)
        note = "over all images of the token file: the published numbers are over Karpathy's 1,000 test images"
    else:
        raise not_laid_out(suite, folder, "it holds neither list")
    return _paired(suite, folder, [folder / place for place in FLICKR_IMAGES], captions, note)


def open_coco(suite: ZeroShotSuite, folder: Path) -> RetrievalSet:
    """Karpathy's 5,000 test images of 2014, or the 5,000 validation images of 2017.

    Raises:
        UnveilError: no list is there, one is damaged, or images are missing.
    """
    split, annotations = folder / "dataset_coco.json", folder / "annotations" / "captions_val2017.json"
    if split.is_file():
        return _paired(suite, folder, [folder / "val2014", folder], _karpathy(split), "")
    if annotations.is_file():
        note = "over the validation images of 2017: the published numbers are over Karpathy's test images of 2014"
        return _paired(suite, folder, [folder / "val2017"], _coco(annotations), note)
    raise not_laid_out(suite, folder, "it holds neither list")


def _paired(
    suite: ZeroShotSuite, folder: Path, places: list[Path], captions: dict[str, list[str]], note: str
) -> RetrievalSet:
    """Raises UnveilError where an image of the list is not there: its captions would have nothing to find."""
    if not any(captions.values()):
        raise UnveilError(f"the list of {suite.name} in {folder} has no captions of test images; download it again")
    first = next(iter(captions))
    place = next((place for place in places if (place / first).is_file()), places[0])
    missing = [name for name in captions if not (place / name).is_file()]
    if missing:
        raise not_laid_out(
            suite, folder, f"{len(missing):,} of its {len(captions):,} images are not in {place}, {missing[0]} for one"
        )
    return RetrievalSet(
        suite=suite,
        source=ListedSource(tuple(ListedImage(str(place / name)) for name in captions)),
        captions=tuple(tuple(texts[:CAPTIONS]) for texts in captions.values()),
        notes=(note,) if note else (),
    )


def _karpathy(path: Path) -> dict[str, list[str]]:
    """Captions of the test images by file name, in the list's order."""

    def read(content: Any) -> dict[str, list[str]]:
        tests = [image for image in content["images"] if image["split"] == "test"]
        return {image["filename"]: [sentence["raw"] for sentence in image["sentences"]] for image in tests}

    return _read_json(path, read)


def _coco(path: Path) -> dict[str, list[str]]:
    """The same of COCO's own annotations, in the order of the images."""

    def read(content: Any) -> dict[str, list[str]]:
        texts = defaultdict(list)
        for annotation in sorted(content["annotations"], key=lambda annotation: annotation["id"]):
            texts[annotation["image_id"]].append(annotation["caption"])
        return {image["file_name"]: texts[image["id"]] for image in content["images"] if image["id"] in texts}

    return _read_json(path, read)


def _tokens(path: Path) -> dict[str, list[str]]:
    """Lines such as "1000092795.jpg#0<tab>Two young guys with shaggy hair ..." """
    captions: dict[str, list[str]] = defaultdict(list)
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            name, tab, text = line.partition("\t")
            if not tab or "#" not in name:
                raise UnveilError(
                    f"{path}, line {number}: {line[:60]!r} is not an image, # and a number, a tab, a text"
                )
            captions[name.rsplit("#", 1)[0]].append(text.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UnveilError(f"{path} cannot be read ({error}); download it again") from None
    return dict(captions)


def _read_json(path: Path, read: Callable[[Any], dict[str, list[str]]]) -> dict[str, list[str]]:
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnveilError(
            f"{path} is not the list of captions that it should be ({type(error).__name__}: {error}); download it again"
        ) from None


def _beside(folder: Path, name: str) -> Path | None:
    """In the folder or, where that is the folder of the images, above it."""
    return next((place / name for place in (folder, folder.parent) if (place / name).is_file()), None)
