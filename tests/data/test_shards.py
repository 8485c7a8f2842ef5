import json
import logging
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from unveil.config import UnveilError
from unveil.data.sources.base import Source, UnreadableSample
from unveil.data.sources.shards import ShardSource


@pytest.fixture
def members(photo, encoded) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    for number in range(6):
        content[f"{number:04d}.jpg"] = encoded(photo(number), "JPEG")
        content[f"{number:04d}.cls"] = str(number % 4).encode()
        content[f"{number:04d}.txt"] = b"a caption"
    return content


def index_file(tar: Path) -> Path:
    return tar.with_name(tar.stem + ".tar.index")


def test_reads_any_image_as_the_file_that_went_in(tmp_path: Path, members, write_tar, photo, encoded) -> None:
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", {"folder/x.PNG": encoded(photo(9), "PNG"), "folder/y.json": b"{}"})
    source = ShardSource([tmp_path / "a.tar", tmp_path / "b.tar"])
    assert isinstance(source, Source) and len(source) == 7
    for index in (6, 0, 5, 2):
        sample = source[index]
        assert sample.index == index and sample.label is None
    assert source[6].name == f"{tmp_path}/b.tar:folder/x.PNG"
    assert np.array_equal(np.asarray(source[6].image), np.asarray(photo(9)))
    with pytest.raises(IndexError):
        source[7]


def test_long_and_odd_member_names(tmp_path: Path, write_tar, photo, encoded) -> None:
    data = encoded(photo(1), "PNG")
    names = ["d/" * 90 + "x.png", "ünïcode.png", "two.dots.in.png", "./dot/slash.png"]
    write_tar(tmp_path / "a.tar", dict.fromkeys(names, data))
    source = ShardSource([tmp_path / "a.tar"])
    assert [source[i].name.split(":")[1] for i in range(4)] == names


def test_index_is_kept_and_renewed_when_the_tar_changes(
    tmp_path: Path, members, write_tar, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, members)
    first = ShardSource([tar])
    assert index_file(tar).exists()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "TarFile", None)
        again = ShardSource([tar])
    assert again.digest() == first.digest() and again[3].image.size == (24, 18)
    write_tar(tar, dict(list(members.items())[:6]))
    os.utime(tar, ns=(1, 1))
    assert len(ShardSource([tar])) == 2


def test_damaged_index_is_built_anew(tmp_path: Path, members, write_tar) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, members)
    ShardSource([tar])
    whole = index_file(tar).read_bytes()
    for damaged in (b"", b"junk", whole[: len(whole) // 2]):
        index_file(tar).write_bytes(damaged)
        assert len(ShardSource([tar])) == 6
        assert index_file(tar).read_bytes() != damaged


def test_folder_without_permission_to_write(
    tmp_path: Path, members, write_tar, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", members)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    source = ShardSource([tmp_path / "a.tar"])
    assert len(source) == 6 and source[5].image.size == (24, 18)
    assert os.listdir(tmp_path) == ["a.tar"]


def test_a_tar_that_was_cut_gives_its_whole_images_and_says_so(
    tmp_path: Path, members, write_tar, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "whole.tar", members)
    whole = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [m.offset_data + m.size for m in tar if m.name.endswith(".jpg")]
        after_last = max(m.offset_data + 512 * -(-m.size // 512) for m in tar)
    cuts = [*range(ends[0], after_last, 311), *ends, *(end - 1 for end in ends[1:]), after_last, after_last + 100]
    for number, cut in enumerate(cuts):
        path = tmp_path / f"cut_{number}.tar"
        path.write_bytes(whole[:cut])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            source = ShardSource([path])
        expected = sum(end <= cut for end in ends)
        assert len(source) == expected
        assert source[expected - 1].image.size == (24, 18)
        assert len(caplog.records) == 1
        assert all(text in caplog.text for text in (str(path), f"{expected} whole images", "copy it again"))


def test_loss_is_told_again_from_a_kept_index(
    tmp_path: Path, members, write_tar, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "a.tar", members)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:9000])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            ShardSource([tmp_path / "a.tar"])
    assert len(caplog.records) == 2


def test_damage_in_the_middle_is_told(tmp_path: Path, members, write_tar, caplog: pytest.LogCaptureFixture) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, members)
    data = bytearray(tar.read_bytes())
    with tarfile.open(tar) as whole:
        third = next(member for member in whole if member.name == "0002.jpg").offset
    data[third : third + 512] = b"\x55" * 512
    tar.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert len(ShardSource([tar])) == 2
    assert f"corrupt at byte {third:,}" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b rest", "compressed"),
        (b"no tar" * 200, "not a tar file"),
    ],
)
def test_what_is_no_tar(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UnveilError, match=message) as raised:
        ShardSource([tmp_path / "a.tar"])
    assert str(tmp_path / "a.tar") in str(raised.value)


def test_a_tar_without_a_whole_image_is_an_error(tmp_path: Path, members, write_tar) -> None:
    write_tar(tmp_path / "a.tar", {"x.txt": b"1", "y.txt": b"2"})
    with pytest.raises(UnveilError, match=r"no whole image .2 .txt"):
        ShardSource([tmp_path / "a.tar"])
    write_tar(tmp_path / "b.tar", members)
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:700])
    with pytest.raises(UnveilError, match=r"no whole image .it ends inside 0000.jpg.; copy it again"):
        ShardSource([tmp_path / "b.tar"])
    with pytest.raises(UnveilError, match="did you mean .*b.tar"):
        ShardSource([tmp_path / "bb.tar"])


def test_labels_from_cls_or_json_members(tmp_path: Path, members, write_tar, encoded, photo) -> None:
    write_tar(tmp_path / "a.tar", members)
    source = ShardSource([tmp_path / "a.tar"], labelled=True)
    assert [source[i].label for i in range(6)] == [0, 1, 2, 3, 0, 1]
    data = encoded(photo(0), "JPEG")
    # The order of a sample's members does not matter, and .cls wins.
    content = {
        "a.json": json.dumps({"label": 7}).encode(),
        "a.jpg": data,
        "b.jpg": data,
        "b.json": b'{"cls": 8}',
        "b.cls": b"9\n",
        "c.jpg": data,
        "c.json": b'{"caption": "x"}',
    }
    write_tar(tmp_path / "b.tar", content)
    source = ShardSource([tmp_path / "b.tar"], labelled=True)
    assert [source[i].label for i in range(2)] == [7, 9]
    with pytest.raises(UnveilError, match="c.jpg is not an integer in label or cls"):
        source[2]
    write_tar(tmp_path / "c.tar", {"a.jpg": data, "a.cls": b"1", "b.jpg": data})
    with pytest.raises(UnveilError, match="b.jpg has neither"):
        ShardSource([tmp_path / "c.tar"], labelled=True)


def test_digest_changes_with_the_content_and_not_with_the_place(tmp_path: Path, members, write_tar) -> None:
    write_tar(tmp_path / "1" / "x" / "a.tar", members)
    write_tar(tmp_path / "1" / "b.tar", members)
    write_tar(tmp_path / "2" / "x" / "a.tar", members)
    write_tar(tmp_path / "2" / "b.tar", {**members, "0000.jpg": members["0001.jpg"] + b"."})
    one, two = (ShardSource([tmp_path / n / "x" / "a.tar", tmp_path / n / "b.tar"]).digest() for n in "12")
    assert set(one) == {"x/a.tar", "b.tar"} and one["x/a.tar"] == two["x/a.tar"] and one["b.tar"] != two["b.tar"]


def test_more_tars_than_may_be_open(tmp_path: Path, write_tar, encoded, photo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.data.sources.shards.OPEN_FILES", 2)
    for number in range(5):
        write_tar(tmp_path / f"{number}.tar", {"x.png": encoded(photo(number), "PNG")})
    source = ShardSource(sorted(tmp_path.glob("*.tar")))
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc") else 0
    for turn in range(15):
        assert np.array_equal(np.asarray(source[turn % 5].image), np.asarray(photo(turn % 5)))
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_reads_in_a_pickled_copy_and_in_forked_processes(tmp_path: Path, members, write_tar) -> None:
    import multiprocessing

    write_tar(tmp_path / "a.tar", members)
    source = ShardSource([tmp_path / "a.tar"])
    expected = [np.asarray(source[i].image) for i in range(6)]
    copy = pickle.loads(pickle.dumps(source))
    assert all(np.array_equal(np.asarray(copy[i].image), expected[i]) for i in range(6))

    def read_often(answers: "multiprocessing.Queue[bool]", start: int) -> None:
        answers.put(
            all(
                np.array_equal(np.asarray(source[(start + i) % 6].image), expected[(start + i) % 6]) for i in range(200)
            )
        )

    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=read_often, args=(answers, start)) for start in range(3)]
    for process in processes:
        process.start()
    assert all(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()


def test_a_member_that_is_no_image_and_a_tar_that_shrank(tmp_path: Path, members, write_tar) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, {**members, "bad.jpg": b"junk"})
    source = ShardSource([tar])
    with pytest.raises(UnreadableSample, match="bad.jpg: not an image"):
        source[6]
    os.truncate(tar, 600)
    with pytest.raises(UnreadableSample, match="shorter"):
        source[5]
