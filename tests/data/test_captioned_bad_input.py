"""Captions that are empty, missing, no text or not UTF-8, and members of tars that are no pairs: counted, and refused
where nothing is left."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from unveil.config import UnveilError
from unveil.data.sources.base import UnreadableSample
from unveil.data.sources.caption_text import LeftOut
from unveil.data.sources.captions import CaptionedSource, open_captioned

WritePhotos = Callable[[Path, list[str]], None]
WriteTar = Callable[[Path, dict[str, bytes]], None]


def counts(source: CaptionedSource) -> dict[str, int]:
    return {reason: count for reason, count, _ in source.left_out()}


def names(source: CaptionedSource) -> list[str]:
    return [Path(source[place].name.split(":")[-1]).stem for place in range(len(source))]


@pytest.fixture
def photos(tmp_path: Path, write_photos: WritePhotos) -> Path:
    write_photos(tmp_path / "photos", ["1.png", "2.png", "3.png"])
    return tmp_path / "photos"


def listed(photos: Path, name: str, content: bytes) -> CaptionedSource:
    (photos / name).write_bytes(content)
    return open_captioned([str(photos / name)])


def test_rows_of_a_table(photos: Path) -> None:
    source = listed(
        photos,
        "x.csv",
        b"1.png,a cat\n1.png,  \n2.png,\n3.png,caf\xe9\n3.png,caf\xc3\xa9\n4.png,a ghost\n5.png,\n",
    )
    assert names(source) == ["1", "3"] and source.captions(1) == ("café",)
    assert counts(source) == {"empty captions": 3, "captions that are not UTF-8": 1, "images that do not exist": 1}
    assert (len(source), source.images_found) == (2, 5)
    examples = [example for _, _, example in source.left_out()]
    assert examples == [f"{photos}/x.csv, {place}" for place in ("line 2", "line 4", "4.png")]


def test_rows_of_json_lines(photos: Path) -> None:
    lines = [
        {"path": "1.png", "caption": None},
        {"path": "1.png", "caption": ["", "a cat", 7]},
        {"path": "2.png"},
        {"path": "3.png", "caption": "\ud800 half a character"},
        {"path": "3.png", "captions": []},
    ]
    source = listed(photos, "x.jsonl", "\n".join(json.dumps(line) for line in lines).encode())
    assert names(source) == ["1"] and source.captions(0) == ("a cat",)
    assert counts(source) == {
        "empty captions": 2,
        "captions that are not text": 1,
        "images without a caption": 2,
        "captions that are not UTF-8": 1,
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "x.csv has no rows; write one path,caption a line"),
        ("x.csv", b"path,caption\n", "has a header and no rows"),
        ("x.csv", b"1.png\n", "line 1: 1 columns, and a path and a caption are needed"),
        ("x.csv", b"1.png,a cat\n,a dog\n", "line 2: the path is empty"),
        ("x.csv", b"1.png,a cat\n2.png,a dog, asleep\n", "line 2: 3 columns, and the first line has 2; put quotes"),
        ("x.csv", b"path,label\n1.png,cat\n", "none of them is called caption"),
        ("x.csv", b"path,caption\n1.png,\n", "has a caption: it has 1 empty captions (such as"),
        ("x.csv", b"1.pgn,a cat\n2.pgn,a dog\n", "1.pgn does not exist; did you mean"),
        ("x.csv", "1.png,a cat\n".encode("utf-16"), "it is not UTF-8 text"),
        ("x.csv", b'1.png,a cat\n2.png,"a dog\n', "x.csv, after line 1 (unexpected end of data)"),
        ("x.jsonl", b"\n", "x.jsonl has no rows; write one {"),
        ("x.jsonl", b'{"path": "1.png", "caption": "a cat"}\n{"path": "2.p', "line 2 is not a JSON object"),
        ("x.jsonl", b'["1.png", "a cat"]\n', "line 1 is not a JSON object"),
        ("x.jsonl", b'{"caption": "a cat"}\n', "line 1 names no image under path"),
        ("x.jsonl", b"[" * 100_000, "line 1 is not a JSON object"),
        ("x.json", b'{"images": [', "cannot read"),
        ("x.json", b"[]", "is not in the layout of COCO's captions"),
        ("x.json", b'{"images": [], "annotations": []}', "lists no images; give COCO's captions_*.json"),
        ("x.json", b'{"images": [{"id": 1, "file_name": "1.png"}]}', "(there is no 'annotations')"),
        (
            "x.json",
            b'{"images": [{"id": 1, "file_name": "1.png"}], "annotations": [{"image_id": 1, "bbox": []}]}',
            "(there is no 'caption')",
        ),
        (
            "x.json",
            b'{"images": [{"id": 1, "file_name": "9.png"}], "annotations": [{"image_id": 1, "caption": "a"}]}',
            "no image of",
        ),
        ("x.txt", b"1.png a cat", "x.txt is no list of images with captions by its name; give .tar shards"),
        ("x.zip", b"", "unpack it first"),
        ("1.png", None, "1.png is no list of images"),
        ("y.csv", None, "does not exist"),
    ],
)
def test_lists_that_cannot_be(photos: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (photos / name).write_bytes(content)
    with pytest.raises(UnveilError) as caught:
        open_captioned([str(photos / name)])
    assert message in str(caught.value)
    assert str(photos) in str(caught.value)


def test_nothing_given() -> None:
    with pytest.raises(UnveilError, match="no images with captions are given"):
        open_captioned([])


def test_coco_with_holes(photos: Path) -> None:
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in (1, 2, 3, 4)],
        "annotations": [
            {"image_id": 1, "caption": "a cat"},
            {"image_id": 2, "caption": "\n"},
            {"image_id": 4, "caption": "a ghost"},
            {"image_id": 77, "caption": "of another list"},
        ],
    }
    source = listed(photos, "captions_x.json", json.dumps(content).encode())
    assert names(source) == ["1"]
    assert counts(source) == {
        "captions without an image": 1,
        "empty captions": 1,
        "images without a caption": 1,
        "images that do not exist": 1,
    }


def test_members_of_a_tar(tmp_path: Path, write_tar: WriteTar, photo, encoded) -> None:
    picture = encoded(photo(1), "PNG")
    write_tar(
        tmp_path / "a.tar",
        {
            "good.png": picture,
            "good.txt": b"a cat",
            "alone.png": picture,
            "text_alone.txt": b"a dog",
            "json_alone.json": b'{"caption": "a bird"}',
            # No caption, and nobody's business.
            "about.json": b'{"version": 1}',
            "empty.png": picture,
            "empty.txt": b" \n",
            "latin.png": picture,
            "latin.txt": "café".encode("latin-1"),
            "fields.png": picture,
            "fields.json": b'{"url": "x"}',
            "torn.png": picture,
            "torn.json": b'{"caption": "a c',
            "wide.png": picture,
            "wide.json": b'\xff\xfe{\x00"',
            "large.png": picture,
            "large.txt": b"a" * (2**20 + 1),
            # The .json helps out.
            "both.png": picture,
            "both.txt": b"",
            "both.json": b'{"caption": ["", "a fish"]}',
            "last.png": picture,
        },
    )
    expected = {
        "images without a caption": 3,
        "captions without an image": 2,
        "empty captions": 3,
        "captions that are not UTF-8": 2,
        "captions in JSON that cannot be read": 1,
        "captions in files over 1 MiB": 1,
    }
    for _ in range(2):
        # The second time from the index beside the tar.
        source = open_captioned([str(tmp_path / "a.tar")])
        assert names(source) == ["good", "both"] and source.captions(1) == ("a fish",)
        assert counts(source) == expected
        assert (len(source), source.images_found) == (2, 10)
        first = {reason: example for reason, _, example in source.left_out()}
        assert first["images without a caption"] == f"{tmp_path}/a.tar:alone.png"
        assert first["captions without an image"] == f"{tmp_path}/a.tar:text_alone.txt"
        assert first["empty captions"] == f"{tmp_path}/a.tar:empty.txt"


def test_a_tar_without_captions(tmp_path: Path, write_tar: WriteTar, photo, encoded) -> None:
    picture = encoded(photo(1), "PNG")
    write_tar(tmp_path / "a.tar", {"1.png": picture, "1.cls": b"3", "2.png": picture})
    with pytest.raises(UnveilError, match=r"a.tar has a caption .2 images without a caption .*it is the .txt"):
        open_captioned([str(tmp_path)])


def test_a_tar_that_was_cut_or_shrank(tmp_path: Path, write_tar: WriteTar, photo, encoded) -> None:
    picture = encoded(photo(1), "PNG")
    tar = tmp_path / "a.tar"
    write_tar(tar, {name: data for n in range(3) for name, data in ((f"{n}.png", picture), (f"{n}.txt", b"a cat"))})
    content = tar.read_bytes()
    # Inside the text of the last pair: its image is whole, and has no caption.
    tar.write_bytes(content[: content.rindex(b"a cat") + 2])
    source = open_captioned([str(tar)])
    assert names(source) == ["0", "1"] and counts(source) == {"images without a caption": 1}
    os.truncate(tar, 600)
    with pytest.raises(UnreadableSample, match="1.png: the tar has become shorter"):
        source.captions(1)


def test_a_picture_that_cannot_be_decoded(photos: Path) -> None:
    (photos / "2.png").write_bytes(b"junk")
    source = listed(photos, "x.csv", b"1.png,a cat\n2.png,a dog\n")
    assert source.captions(1) == ("a dog",)
    with pytest.raises(UnreadableSample, match="2.png: not an image"):
        source[1]


def test_what_is_left_out_reads_well() -> None:
    left_out = LeftOut()
    assert not left_out and str(left_out) == ""
    left_out.add("empty captions", "x.csv, line 3")
    left_out.add("empty captions", "x.csv, line 9", 1199)
    left_out.add("images without a caption", "4.png")
    assert str(left_out) == "1,200 empty captions (such as x.csv, line 3); 1 images without a caption (such as 4.png)"
