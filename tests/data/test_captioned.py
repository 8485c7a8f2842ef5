"""Images with captions from tars, tables, JSON lines and COCO's files."""

import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unveil.config import UnveilError
from unveil.data.loader import EvaluationLoader, TrainingLoader
from unveil.data.sources.base import Source
from unveil.data.sources.captions import CaptionedSource, find_captioned_splits, open_captioned
from unveil.data.sources.labelled import hold_out
from unveil.data.sources.shards import ShardSource

WritePhotos = Callable[[Path, list[str]], None]
WriteTar = Callable[[Path, dict[str, bytes]], None]

PAIRS = [("1.png", ("one cat",)), ("2.png", ("two, or three, dogs", "a pair of dogs")), ("3.png", ("ein Kätzchen 🐈",))]


def pairs(source: CaptionedSource) -> list[tuple[str, tuple[str, ...]]]:
    """File name and captions of every sample, which the source must also tell without the image."""
    samples = [source[place] for place in range(len(source))]
    assert [sample.index for sample in samples] == list(range(len(samples)))
    assert [source.captions(place) for place in range(len(source))] == [sample.captions for sample in samples]
    return [(Path(sample.name.split(":")[-1]).name, sample.captions) for sample in samples]


def written(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


@pytest.fixture
def photos(tmp_path: Path, write_photos: WritePhotos) -> Path:
    write_photos(tmp_path / "photos", ["1.png", "deep/2.png", "3.png"])
    return tmp_path / "photos"


CSV = (
    'path,caption\n1.png,one cat\ndeep/2.png,"two, or three, dogs"\n3.png, ein Kätzchen 🐈\ndeep/2.png,a pair of dogs\n'
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", CSV),
        ("x.csv", CSV.split("\n", 1)[1]),
        ("x.csv", "\ufeff" + CSV.replace("path,caption", "FilePath,Title").replace("\n", "\r\n")),
        (
            "x.tsv",
            "id\ttext\timage\n7\tone cat\t1.png\n8\ttwo, or three, dogs\tdeep/2.png\n\n9\tein Kätzchen 🐈\t3.png\n"
            "8\ta pair of dogs\tdeep/2.png",
        ),
        (
            "x.jsonl",
            '{"path": "1.png", "caption": "one cat", "width": 3}\n\n'
            '{"captions": ["two, or three, dogs", "a pair of dogs"], "file_name": "deep/2.png"}\n'
            '{"path": "3.png", "caption": "ein K\\u00e4tzchen 🐈"}',
        ),
        (
            "x.jsonl",
            '{"image": "1.png", "text": "one cat"}\n{"image": "deep/2.png", "text": "two, or three, dogs"}\n'
            '{"image": "3.png", "text": "ein Kätzchen 🐈"}\n{"image": "deep/2.png", "text": "a pair of dogs"}\n',
        ),
    ],
    ids=["csv", "csv without a header", "csv of another program", "tsv", "jsonl", "jsonl with repeated rows"],
)
def test_lists(photos: Path, name: str, text: str) -> None:
    source = open_captioned([written(photos / name, text)])
    assert isinstance(source, Source)
    assert pairs(source) == PAIRS
    assert (len(source), source.images_found, source.caption_count()) == (3, 3, 4)
    assert not source.left_out()
    with pytest.raises(IndexError):
        source.captions(3)


def test_tars(tmp_path: Path, write_tar: WriteTar, photo, encoded) -> None:
    picture = encoded(photo(1), "PNG")
    write_tar(
        tmp_path / "a.tar",
        {
            # img2dataset writes both; the .json repeats the caption among other things.
            "1.png": picture,
            "1.txt": b" one cat\n",
            "1.json": json.dumps({"caption": "not this one", "url": "x"}).encode(),
            # The order does not matter.
            "2.json": json.dumps({"captions": ["two, or three, dogs", "a pair of dogs"]}).encode(),
            "2.png": picture,
        },
    )
    write_tar(tmp_path / "b.tar", {"deep/3.png": picture, "deep/3.txt": "\ufeffein Kätzchen 🐈".encode()})
    source = open_captioned([f"{tmp_path}/{{a,b}}.tar"])
    assert pairs(source) == PAIRS
    assert (source.images_found, source.caption_count(), str(source.left_out())) == (3, 4, "")
    assert np.array_equal(np.asarray(source[2].image), np.asarray(photo(1)))
    # From the indices kept beside the tars, and in another process.
    again = pickle.loads(pickle.dumps(open_captioned([str(tmp_path)])))
    assert pairs(again) == PAIRS and again.digest() == source.digest()


def coco(folder: Path, split: str = "train2017", captions: str = "annotations") -> str:
    """Three images, one of them with two captions that do not follow one another."""
    names = {1: "1.png", 20: "2.png", 3: "3.png"}
    texts = [(20, PAIRS[1][1][0]), (1, PAIRS[0][1][0]), (3, PAIRS[2][1][0]), (20, PAIRS[1][1][1])]
    content = {
        "info": {},
        "images": [{"id": number, "file_name": name, "width": 24, "height": 18} for number, name in names.items()],
        "annotations": [{"id": 9 - n, "image_id": image, "caption": text} for n, (image, text) in enumerate(texts)],
    }
    return written(folder / captions / f"captions_{split}.json", json.dumps(content))


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "images", "."])
def test_coco(tmp_path: Path, write_photos: WritePhotos, place: str) -> None:
    annotations = coco(tmp_path)
    write_photos(tmp_path / place, ["1.png", "2.png", "3.png"])
    for path in (annotations, str(tmp_path), str(tmp_path / "annotations")):
        source = open_captioned([path])
        assert pairs(source) == PAIRS
    assert source[1].name == str(tmp_path / place / "2.png")


def test_coco_beside_its_images(tmp_path: Path, write_photos: WritePhotos) -> None:
    write_photos(tmp_path, ["1.png", "2.png", "3.png"])
    assert pairs(open_captioned([coco(tmp_path, captions=".")])) == PAIRS


def test_several_sources_are_joined(photos: Path, tmp_path: Path, write_tar: WriteTar, photo, encoded) -> None:
    picture = encoded(photo(1), "PNG")
    write_tar(tmp_path / "a.tar", {"5.png": picture, "6.png": picture, "6.txt": b"six"})
    table = written(photos / "x.csv", CSV)
    source = open_captioned([str(tmp_path / "a.tar"), table, str(tmp_path / "a.tar")])
    assert pairs(source) == [("6.png", ("six",)), *PAIRS, ("6.png", ("six",))]
    assert (source.images_found, source.caption_count()) == (7, 6)
    assert [part["count"] for part in source.digest().values()] == [2, 3, 2]


def test_counts_while_reading(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.data.sources.caption_files.PROGRESS_EVERY", 2)
    seen: list[int] = []
    open_captioned([written(photos / "x.csv", CSV)], on_progress=seen.append)
    assert seen == [2, 4, 3]


def test_the_digest_covers_the_captions(photos: Path, tmp_path: Path, write_tar: WriteTar, photo, encoded) -> None:
    def digest(text: str, name: str = "x.csv") -> str:
        return json.dumps(list(open_captioned([written(photos / name, text)]).digest().values()))

    before = digest(CSV)
    assert digest(CSV.replace("path,caption", "file,text")) == before
    assert digest(CSV.replace("\n", "\r\n"), "y.csv") == before
    changed = [
        CSV.replace("one cat", "one rat"),
        CSV.replace("3.png", "1.png"),
        CSV.removesuffix("deep/2.png,a pair of dogs\n"),
        # The same letters in the same order, divided otherwise.
        CSV.replace("one cat", "one").replace('"two', '"cattwo'),
    ]
    assert len({digest(text) for text in changed} | {before}) == 5

    hashes = set()
    for text in (b"a cat", b"a rat"):
        write_tar(tmp_path / text.decode() / "a.tar", {"1.png": encoded(photo(1), "PNG"), "1.txt": text})
        path = tmp_path / text.decode() / "a.tar"
        hashes.add(open_captioned([str(path)]).digest()["a.tar"]["sha256"])
        # Without captions what matters is the images, as before.
        hashes.add(ShardSource([path]).digest()["a.tar"]["sha256"])
    assert len(hashes) == 3


def test_a_part_can_be_held_out(tmp_path: Path, write_photos: WritePhotos) -> None:
    write_photos(tmp_path, [f"{number}.png" for number in range(10)])
    table = "".join(f"{number}.png,{text} {number}\n" for text in ("left", "right") for number in range(10))
    kept, held = hold_out(open_captioned([written(tmp_path / "x.csv", table)]))
    found = [[part[place].captions for place in range(len(part))] for part in (kept, held)]
    assert [len(part) for part in found] == [8, 2]
    # All captions of an image are on the same side.
    assert sorted(found[0] + found[1]) == [(f"left {number}", f"right {number}") for number in range(10)]


def test_the_loaders_carry_captions(photos: Path) -> None:
    source = open_captioned([written(photos / "x.csv", CSV)])

    def view(sample, rng) -> dict[str, str]:
        return {"text": rng.choice(sample.captions)}

    def collate(views: list[dict[str, str]]) -> dict[str, list[str]]:
        return {"text": [view["text"] for view in views]}

    loader = TrainingLoader(source, view, collate, seed=1, global_batch_size=3, micro_batch_size=3)
    texts = [text for batches in loader.steps(0, 20) for batch in batches for text in batch["text"]]
    assert {text: texts.count(text) for _, captions in PAIRS[::2] for text in captions} == dict.fromkeys(
        ("one cat", "ein Kätzchen 🐈"), 20
    )
    assert 4 < texts.count("a pair of dogs") < 16
    evaluated = [batch["text"] for batch in EvaluationLoader(source, view, collate, batch_size=3)]
    assert evaluated == [batch["text"] for batch in EvaluationLoader(source, view, collate, batch_size=3)]


def test_folders(photos: Path, tmp_path: Path, write_tar: WriteTar, photo, encoded) -> None:
    with pytest.raises(UnveilError, match="photos holds no images with captions: no .tar, no captions.csv or "):
        open_captioned([str(photos)])
    written(photos / "captions.csv", CSV)
    assert pairs(open_captioned([str(photos)])) == PAIRS
    with pytest.raises(UnveilError, match=f"there are in {photos}"):
        open_captioned([str(tmp_path)])
    write_tar(photos / "a.tar", {"6.png": encoded(photo(1), "PNG"), "6.txt": b"six"})
    with pytest.raises(UnveilError, match=r"more than one set of captions \(captions.csv, a.tar\); name the one"):
        open_captioned([str(photos)])
    assert pairs(open_captioned([f"{photos}/*.tar"])) == [("6.png", ("six",))]


def test_splits(tmp_path: Path, write_tar: WriteTar, write_photos: WritePhotos, photo, encoded) -> None:
    table = written(tmp_path / "x.csv", CSV)
    assert find_captioned_splits(table) == ((table,), ())
    assert find_captioned_splits(str(tmp_path)) == ((str(tmp_path),), ())

    sets = tmp_path / "coco [2017]"
    write_photos(sets / "train2017", ["1.png", "2.png", "3.png"])
    files = [coco(sets, split) for split in ("train2017", "val2017")]
    assert find_captioned_splits(str(sets)) == ((files[0],), (files[1],))
    with pytest.raises(UnveilError, match="more than one set of captions .*captions_train2017.json, .*val2017"):
        open_captioned([str(sets)])

    shards = tmp_path / "shards [1]"
    for name in ("train-00", "train-01", "test-00"):
        write_tar(shards / f"{name}.tar", {f"{name}.png": encoded(photo(1), "PNG"), f"{name}.txt": name.encode()})
    train, test = find_captioned_splits(str(shards))
    assert pairs(open_captioned(train)) == [("train-00.png", ("train-00",)), ("train-01.png", ("train-01",))]
    assert pairs(open_captioned(test)) == [("test-00.png", ("test-00",))]

    folders = tmp_path / "folders"
    for name in ("train", "val"):
        written(folders / name / "captions.csv", CSV)
    assert find_captioned_splits(str(folders)) == ((str(folders / "train"),), (str(folders / "val"),))

    # Folders of images alone are not what the captions are divided into.
    alone = tmp_path / "alone"
    write_photos(alone, ["train/1.png", "train/2.png", "train/3.png", "val/4.png"])
    coco(alone, "train")
    assert find_captioned_splits(str(alone)) == ((str(alone),), ())
    assert pairs(open_captioned([str(alone)])) == PAIRS


def test_what_is_left_out_is_told_once(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_captioned([written(photos / "x.csv", CSV + "1.png,\n3.png,  \n")])
    assert caplog.messages == [f"left out: 2 empty captions (such as {photos}/x.csv, line 6)"]
