import logging
import os
import pickle
import shutil
from pathlib import Path

import pytest

from unveil.config import UnveilError
from unveil.data.sources.base import Source, UnreadableSample
from unveil.data.sources.folder import FolderSource


def names(source: Source, root: Path) -> list[str]:
    return [os.path.relpath(source[index].name, root) for index in range(len(source))]


def test_finds_images_at_any_depth_in_an_order_of_their_names(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path, ["b.jpg", "a/z.PNG", "a/deep/er/x.gif", "a.jpeg", "c/1.jpg", ".hidden.jpg", ".git/x.jpg"])
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = FolderSource(tmp_path)
    assert names(source, tmp_path) == ["a.jpeg", "b.jpg", "a/z.PNG", "a/deep/er/x.gif", "c/1.jpg"]
    assert isinstance(source, Source) and source.classes is None and source.labels() is None
    assert [source[i].index for i in range(5)] == list(range(5)) and source[0].label is None
    with pytest.raises(IndexError):
        source[5]


def test_follows_links_but_not_in_circles(tmp_path: Path, write_photos, caplog: pytest.LogCaptureFixture) -> None:
    write_photos(tmp_path, ["elsewhere/1.jpg", "data/own/2.jpg"])
    data = tmp_path / "data"
    (data / "link").symlink_to(tmp_path / "elsewhere")
    (data / "file.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (data / "own" / "back").symlink_to(data)
    (data / "own" / "self").symlink_to(".")
    (data / "circle.jpg").symlink_to("circle.jpg")
    (data / "gone.jpg").symlink_to("nowhere.jpg")
    with caplog.at_level(logging.WARNING):
        source = FolderSource(data)
    assert names(source, data) == ["file.jpg", "link/1.jpg", "own/2.jpg"]
    assert "2 broken symbolic links" in caplog.text and "2 links back" in caplog.text


def test_two_folders_that_link_to_each_other_end(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path, ["a/1.jpg", "b/2.jpg"])
    (tmp_path / "a" / "b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "a").symlink_to(tmp_path / "a")
    assert names(FolderSource(tmp_path), tmp_path) == ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"]


def test_says_what_it_found_instead_of_images(tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="holds no image .no files.; give a folder"):
        FolderSource(tmp_path)
    for number in range(3):
        (tmp_path / f"{number}.txt").touch()
        (tmp_path / f"{number % 2}.csv").touch()
    (tmp_path / "Makefile").touch()
    with pytest.raises(UnveilError, match="6 files, none of them an image: 3 .txt, 2 .csv, 1 without suffix") as raised:
        FolderSource(tmp_path)
    assert str(tmp_path) in str(raised.value)
    with pytest.raises(UnveilError, match="did you mean .*Makefile"):
        FolderSource(tmp_path / "Makefle")


def test_one_file_is_a_source(tmp_path: Path, write_photos, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(tmp_path, ["only.jpg", "other.jpg"])
    monkeypatch.chdir(tmp_path)
    source = FolderSource("only.jpg")
    assert len(source) == 1 and source[0].name.endswith("only.jpg")


def test_class_folders_are_labels(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path, ["dog/1.jpg", "cat/2.jpg", "cat/more/3.jpg", "eel/4.jpg"])
    (tmp_path / "bird").mkdir()
    source = FolderSource(tmp_path, labelled=True)
    assert source.classes == ("bird", "cat", "dog", "eel")
    assert [source[i].label for i in range(4)] == [1, 1, 2, 3]
    labels = source.labels()
    assert labels is not None and labels.tolist() == [1, 1, 2, 3]
    write_photos(tmp_path, ["stray.jpg"])
    with pytest.raises(UnveilError, match="stray.jpg"):
        FolderSource(tmp_path, labelled=True)


def test_digest_tells_directories_apart_and_moves_with_the_folder(tmp_path: Path, write_photos) -> None:
    old = tmp_path / "old"
    write_photos(old, ["top.jpg", "a/1.jpg", "b/2.jpg"])
    before = FolderSource(old).digest()
    assert {part: value["count"] for part, value in before.items()} == {".": 1, "a": 1, "b": 1}
    shutil.move(old, tmp_path / "new")
    assert FolderSource(tmp_path / "new").digest() == before
    changes = [
        lambda folder: (folder / "a" / "1.jpg").write_bytes((folder / "a" / "1.jpg").read_bytes() + b"x"),
        lambda folder: (folder / "a" / "1.jpg").rename(folder / "a" / "3.jpg"),
        lambda folder: shutil.copy(folder / "b" / "2.jpg", folder / "a" / "9.jpg"),
    ]
    for number, change in enumerate(changes):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "new", folder)
        change(folder)
        after = FolderSource(folder).digest()
        assert [part for part in before if after[part] != before[part]] == ["a"]


def test_unreadable_file_and_file_that_vanished(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path, ["1.jpg", "2.jpg"])
    source = FolderSource(tmp_path)
    (tmp_path / "1.jpg").write_bytes(b"junk")
    (tmp_path / "2.jpg").unlink()
    for index, reason in enumerate(["not an image", "No such file or directory"]):
        with pytest.raises(UnreadableSample) as raised:
            source[index]
        assert (raised.value.name, raised.value.reason) == (str(tmp_path / f"{index + 1}.jpg"), reason)
    assert source.digest()["."]["count"] == 2


def test_names_that_are_not_utf8(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path, ["ä ö.jpg"])
    os.rename(tmp_path / "ä ö.jpg", os.path.join(os.fsencode(tmp_path), b"\xe4\xff.jpg"))
    source = FolderSource(tmp_path)
    assert source[0].name.endswith("\\xe4\\xff.jpg") and source[0].image.size == (24, 18)
    source[0].name.encode("utf-8")


def test_keeps_names_in_flat_memory_and_pickles(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"a_rather_long_file_name_{number:06d}.jpg").touch()
    source = FolderSource(tmp_path)
    data = pickle.dumps(source)
    assert len(data) < 2000 * (34 + 8) + 5000
    assert pickle.loads(data).digest() == source.digest()


def test_photos_can_be_decoded_small(tmp_path: Path, photo) -> None:
    photo(1, 800, 600).save(tmp_path / "a.jpg")
    assert FolderSource(tmp_path, shortest_side=100)[0].image.size == (200, 150)
