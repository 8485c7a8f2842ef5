"""What is kept of a folder from search to search."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.embedders import ColourEmbedder, save_colour
from unveil.build import image_index
from unveil.build.embedding_file import read_embedding
from unveil.build.image_index import IndexedImages, find_picture, index_folder, index_images
from unveil.config import UnveilError
from unveil.data.sources.open import open_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "red", "green")):
        save_colour(folder / f"{number}.png", colour, number)
    return folder


def search(photos: Path, embedder: ColourEmbedder, cache: Path) -> IndexedImages:
    return index_images(open_images([str(photos)]), embedder, cache, batch_size=2, workers=0)


def expected(photos: Path) -> torch.Tensor:
    embedder = ColourEmbedder()
    files = [Path(path) for path in sorted(photos.rglob("*.png"))]
    return embedder.encode_images(torch.stack([embedder.transform(Image.open(file)) for file in files]))


def check(found: IndexedImages, photos: Path) -> None:
    assert list(found.names) == [str(path) for path in sorted(photos.rglob("*.png"))]
    torch.testing.assert_close(found.features, expected(photos), atol=1e-6, rtol=0)


def test_only_what_is_new_or_changed_is_looked_at(photos: Path, tmp_path: Path) -> None:
    embedder, cache = ColourEmbedder(), tmp_path / "cache" / "here"
    first = search(photos, embedder, cache)
    check(first, photos)
    assert (first.new, embedder.images) == (5, 5)
    again = search(photos, embedder, cache)
    check(again, photos)
    assert (again.new, embedder.images) == (0, 5)
    save_colour(photos / "25.png", "blue", 7)
    save_colour(photos / "3.png", "white", 8)
    (photos / "0.png").unlink()
    third = search(photos, embedder, cache)
    check(third, photos)
    assert (third.new, embedder.images) == (2, 7)
    # One part in the place of two, without what is gone.
    (part,) = cache.iterdir()
    assert len(np.load(part)["paths"]) == 5
    check(search(photos, embedder, cache), photos)
    assert embedder.images == 7


def test_the_same_place_by_another_name(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = ColourEmbedder()
    folder = index_folder(tmp_path / "cache", embedder, [str(photos)])
    search(photos, embedder, folder)
    monkeypatch.chdir(photos.parent)
    assert index_folder(tmp_path / "cache", embedder, ["photos/"]) == folder
    found = search(Path("photos"), embedder, folder)
    assert found.names[0] == "photos/0.png" and found.new == 0
    monkeypatch.setattr(ColourEmbedder, "identity", "another")
    assert index_folder(tmp_path / "cache", embedder, ["photos"]) != folder


def test_an_interrupted_search_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_index, "PART_SECONDS", 0.0)
    encode = ColourEmbedder.encode_images

    def stopping(self: ColourEmbedder, images: torch.Tensor) -> torch.Tensor:
        if self.images >= 4:
            raise KeyboardInterrupt
        return encode(self, images)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ColourEmbedder, "encode_images", stopping)
        search(photos, ColourEmbedder(), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    embedder = ColourEmbedder()
    check(search(photos, embedder, tmp_path / "cache"), photos)
    assert embedder.images == 1 and len(list((tmp_path / "cache").iterdir())) == 1


def test_what_cannot_be_read_is_left_out(photos: Path, tmp_path: Path) -> None:
    embedder, cache = ColourEmbedder(), tmp_path / "cache"
    (photos / "0.png").write_bytes(b"no picture")
    found = search(photos, embedder, cache)
    assert len(found.names) == len(found.features) == 4 and (found.new, found.unreadable) == (4, 1)
    # The second time it is the only new one.
    again = search(photos, embedder, cache)
    assert torch.equal(again.features, found.features) and (again.new, again.unreadable) == (0, 1)
    save_colour(photos / "0.png", "white")
    check(search(photos, embedder, cache), photos)
    only = tmp_path / "only"
    only.mkdir()
    (only / "0.png").write_bytes(b"no picture")
    with pytest.raises(UnveilError, match="1 of the 1 samples"):
        search(only, embedder, tmp_path / "other")


def test_a_cache_that_cannot_be_used(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnveilError, match="set XDG_CACHE_HOME"):
        search(photos, ColourEmbedder(), tmp_path / "file" / "cache")
    search(photos, ColourEmbedder(), tmp_path / "cache")
    (part,) = (tmp_path / "cache").iterdir()
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(UnveilError, match="is damaged .*; delete it"):
        search(photos, ColourEmbedder(), tmp_path / "cache")


def test_pictures_are_found_by_name_in_folders_and_tars(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for number in range(3):
            tar.add(photos / f"{number}.png", f"deep/{number}.png")
    with Image.open(photos / "1.png") as wanted:
        pixels = np.asarray(wanted)
    for name in (str(photos / "1.png"), f"{tmp_path / 'some.tar'}:deep/1.png"):
        found = find_picture(name)
        assert found is not None and np.array_equal(np.asarray(found), pixels)
    os.truncate(photos / "2.png", 20)
    for gone in (str(photos / "2.png"), str(photos / "9.png"), f"{tmp_path / 'some.tar'}:9.png", "no.tar:9.png"):
        assert find_picture(gone) is None


def test_embeddings_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.parquet").write_text("hello")
    np.savez(tmp_path / "other.npz", features=np.zeros((2, 3)))
    for name in ("text.npz", "text.parquet", "other.npz"):
        with pytest.raises(UnveilError, match="is no embedding of"):
            read_embedding(tmp_path / name)
    with pytest.raises(UnveilError, match="does not exist"):
        read_embedding(tmp_path / "nowhere.npz")
