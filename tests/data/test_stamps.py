"""A stamp names a sample without reading it, and changes when its file does."""

import os
import tarfile
from pathlib import Path

from PIL import Image

from unveil.data.sources.base import Stamped
from unveil.data.sources.open import open_images


def test_stamps_name_samples_and_change_with_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.png", "deep/c.png"):
        Image.new("RGB", (9, 8), "red").save(folder / name)
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        tar.add(folder / "a.png", "x/a.png")
        tar.add(folder / "deep" / "b.png", "b.png")
    source = open_images([str(folder), str(tmp_path / "some.tar"), str(folder / "a.png")])
    assert isinstance(source, Stamped)
    stamps = [source.stamp(place) for place in range(len(source))]
    assert [stamp.name for stamp in stamps] == [source[place].name for place in range(len(source))]
    assert stamps[0].size == stamps[3].size == (folder / "a.png").stat().st_size
    assert stamps[3].modified == stamps[4].modified == (tmp_path / "some.tar").stat().st_mtime_ns
    os.utime(folder / "a.png", ns=(5, 5))
    assert source.stamp(0) == stamps[0]._replace(modified=5)
    (folder / "deep" / "b.png").unlink()
    (tmp_path / "some.tar").unlink()
    assert source.stamp(1)[1:] == source.stamp(4)[1:] == (-1, -1)
    assert source.stamp(2) == stamps[2]
