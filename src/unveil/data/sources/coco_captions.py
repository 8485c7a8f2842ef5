"""COCO's captions: annotations/captions_*.json and the folder of images that it is about."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from unveil.config.errors import UnveilError
from unveil.data.sources.caption_files import Row
from unveil.data.sources.caption_text import NO_IMAGE, LeftOut
from unveil.data.sources.missing import missing_path

_ADVICE = "give COCO's captions_*.json"

CAPTIONS_FILE = re.compile(r"captions_(?P<split>.+)\.json")


def read_coco_captions(path: str) -> tuple[str, Iterator[Row], LeftOut]:
    """The folder of the images, a row for each of them with all its captions, and captions of images that it lacks.

    The folder is looked for beside the file and above it: the split's ("train2017" of captions_train2017.json), the
    same in images/, images/ itself.

    Raises:
        UnveilError: no such file, not COCO's layout, another of its files, or no folder with one of the images.
    """
    content, left_out = _read(path), LeftOut()
    try:
        files = {image["id"]: str(image["file_name"]) for image in content["images"]}
        captions: dict[Any, list[Any]] = {number: [] for number in files}
        for annotation in content["annotations"]:
            number, caption = annotation["image_id"], annotation["caption"]
            if number in captions:
                captions[number].append(caption)
            else:
                left_out.add(NO_IMAGE, f"{path}, image {number}")
    except (KeyError, TypeError) as error:
        missing = f"there is no {error}" if isinstance(error, KeyError) else "it should hold lists of objects"
        raise UnveilError(f"{path} is not in the layout of COCO's captions ({missing}); {_ADVICE}") from None
    if not files:
        raise UnveilError(f"{path} lists no images; {_ADVICE}")
    rows = (Row(f"image {number}", file, captions[number]) for number, file in files.items())
    return _find_folder(path, list(files.values())), rows, left_out


def _read(path: str) -> dict[str, Any]:
    if not os.path.exists(path):
        raise UnveilError(missing_path(path))
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UnveilError(f"cannot read {path} ({error}); {_ADVICE}") from None
    if not isinstance(content, dict):
        raise UnveilError(f"{path} is not in the layout of COCO's captions; {_ADVICE}")
    return content


def _find_folder(path: str, files: list[str]) -> str:
    here = os.path.dirname(os.path.abspath(path))
    above = os.path.dirname(here)
    named = CAPTIONS_FILE.fullmatch(os.path.basename(path))
    names = [named["split"], os.path.join("images", named["split"])] if named else []
    folders = [os.path.join(parent, name) for parent in (above, here) for name in (*names, "images")] + [here, above]
    for folder in filter(os.path.isdir, folders):
        if any(os.path.isfile(os.path.join(folder, file)) for file in files):
            return folder
    raise UnveilError(
        f"no image of {path} ({files[0]}, ...) is in {', '.join(folders[:3])} or beside it; put its folder of images "
        "there"
    )
