"""Flickr30k and COCO in the layouts of their authors and of Karpathy's lists, against recalls counted by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.miniature_benchmarks import PaintedEmbedder, save
from tests.tasks.miniature_suites import write, write_json
from unveil.build.clip_evaluation import evaluate_clip
from unveil.build.evaluation import ReadingSettings
from unveil.config import UnveilError
from unveil.engine import Parallel
from unveil.tasks.contrastive.suites.layouts import open_zero_shot_suites
from unveil.tasks.contrastive.suites.table import RetrievalScore

IMAGES = {"1.jpg": 0, "2.jpg": 4, "3.jpg": 8}
"""What is painted, of twelve colours."""
CAPTIONS = {"1.jpg": ["a", "b"], "2.jpg": ["c", "d", "e"], "3.jpg": ["f"]}
PLACES = {"a": 0, "b": 4, "c": 5, "d": 10, "e": 9, "f": 9, "six": 0}
"""What the texts say. Nearest images: a 1; b 2 (then 1); c 2; d, e, f 3.

So of six texts a, c and f are right at once, which are 3; e and d have image 2 at 0 like image 1, which comes first.
Nearest texts: of image 1 (0 to 4) a; of 2 (4 to 8) b before c; of 3 (8 to 12) e and f alike, e first, then d.
So one image of three is right at once, and all within five: e, f, d, then a, b, c alike and in order.
"""


def score(root: Path, name: str, **options: Any) -> RetrievalScore:
    (found,), _ = open_zero_shot_suites([name], root, **options)
    report = evaluate_clip(
        PaintedEmbedder(PLACES, 12), [found], {}, ReadingSettings(batch_size=2), Parallel(torch.device("cpu"))
    )
    return report.retrieval[0]


def assert_as_counted(found: RetrievalScore) -> None:
    assert found.found.images == 3 and found.found.texts == 6
    assert found.found.text_to_image == pytest.approx({1: 3 / 6, 5: 1.0, 10: 1.0})
    assert found.found.image_to_text == pytest.approx({1: 1 / 3, 5: 1.0, 10: 1.0})


def karpathy(folder: str) -> dict[str, Any]:
    """With an image of the training split between the others."""
    entries = [
        {"filename": name, "filepath": folder, "split": "test", "sentences": [{"raw": text} for text in texts]}
        for name, texts in CAPTIONS.items()
    ]
    entries.insert(1, {"filename": "0.jpg", "filepath": folder, "split": "train", "sentences": [{"raw": "no"}]})
    return {"images": entries, "dataset": "any"}


def save_images(folder: Path) -> None:
    for name, code in IMAGES.items():
        save(folder / name, code)


def test_flickr30k_by_karpathys_list(tmp_path: Path) -> None:
    save_images(tmp_path / "flickr30k/flickr30k-images")
    write_json(tmp_path / "flickr30k/dataset_flickr30k.json", karpathy("flickr30k-images"))
    found = score(tmp_path, "flickr30k")
    assert_as_counted(found)
    assert found.notes == ("not the whole set: 3 images of 1,000",)


def test_flickr30k_by_its_token_file(tmp_path: Path) -> None:
    save_images(tmp_path / "flickr30k-images")
    lines = [f"{name}#{number}\t{text}" for name, texts in CAPTIONS.items() for number, text in enumerate(texts)]
    write(tmp_path / "results_20130124.token", "\n".join(lines) + "\n")
    found = score(tmp_path, "flickr30k")
    assert_as_counted(found)
    assert found.notes[0].startswith("over all images of the token file")
    write(tmp_path / "results_20130124.token", "1.jpg a\n")
    with pytest.raises(UnveilError, match="line 1: '1.jpg a' is not"):
        score(tmp_path, "flickr30k")


def test_coco_by_its_annotations(tmp_path: Path) -> None:
    """Captions lie mixed, are put in order by their numbers, and a sixth of an image is not used."""
    texts = {**CAPTIONS, "1.jpg": ["a", "b"], "2.jpg": ["c", "d", "e"], "3.jpg": ["f"]}
    pairs = [(number, text) for number, name in enumerate(texts, start=7) for text in texts[name]]
    annotations = [{"id": place, "image_id": image, "caption": text} for place, (image, text) in enumerate(pairs)]
    content = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(texts, start=7)],
        "annotations": annotations[::-1],
    }
    save_images(tmp_path / "coco/val2017")
    write_json(tmp_path / "coco/annotations/captions_val2017.json", content)
    found = score(tmp_path, "coco")
    assert_as_counted(found)
    assert found.notes[0].startswith("over the validation images of 2017")
    more = [{"id": 10 + place, "image_id": 9, "caption": "f"} for place in range(4)]
    more.append({"id": 99, "image_id": 9, "caption": "six"})
    write_json(tmp_path / "coco/annotations/captions_val2017.json", {**content, "annotations": annotations + more})
    assert score(tmp_path, "coco").found.texts == 10


def test_coco_by_karpathys_list_goes_first(tmp_path: Path) -> None:
    save_images(tmp_path / "coco/val2014")
    write_json(tmp_path / "coco/dataset_coco.json", karpathy("val2014"))
    write(tmp_path / "coco/annotations/captions_val2017.json", "not read")
    assert_as_counted(score(tmp_path, "coco"))


def test_an_image_that_cannot_be_read_goes_with_its_captions(tmp_path: Path) -> None:
    save_images(tmp_path / "coco/val2014")
    write_json(tmp_path / "coco/dataset_coco.json", karpathy("val2014"))
    (tmp_path / "coco/val2014/2.jpg").write_bytes(b"torn")
    found = score(tmp_path, "coco")
    assert found.found.images == 2 and found.found.texts == 3 and len(found.unreadable) == 1
    # Of a, b and f all are nearest to their own image: b says 4, of which image 1 has 0.2 and image 3 nothing.
    assert found.found.text_to_image[1] == 1.0


def test_a_limit_keeps_images_with_their_captions(tmp_path: Path) -> None:
    save_images(tmp_path / "coco/val2014")
    write_json(tmp_path / "coco/dataset_coco.json", karpathy("val2014"))
    found = score(tmp_path, "coco", limit=2)
    # The first and the second of three.
    assert found.found.images == 2 and found.found.texts == 5
    assert "limited to 2 of 3 images" in found.notes


@pytest.mark.parametrize("name", ["flickr30k", "coco"])
def test_lists_that_are_none(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(UnveilError, match=f"does not hold {name} .*it holds neither list"):
        open_zero_shot_suites([name], tmp_path)
    write_json(folder / f"dataset_{name}.json", {"images": [{"filename": "1.jpg"}]})
    with pytest.raises(UnveilError, match="is not the list of captions that it should be"):
        open_zero_shot_suites([name], tmp_path)
    write_json(folder / f"dataset_{name}.json", {"images": []})
    with pytest.raises(UnveilError, match="has no captions of test images"):
        open_zero_shot_suites([name], tmp_path)
    write_json(folder / f"dataset_{name}.json", karpathy("x"))
    with pytest.raises(UnveilError, match="3 of its 3 images are not in .*, 1.jpg for one"):
        open_zero_shot_suites([name], tmp_path)
