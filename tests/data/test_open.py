import os
from pathlib import Path

import pytest

from unveil.config import UnveilError
from unveil.data.sources.open import open_images


def short_names(paths: list[str]) -> list[str]:
    source = open_images(paths)
    return [source[index].name.rsplit("/", 1)[1] for index in range(len(source))]


@pytest.fixture
def data(tmp_path: Path, write_photos, write_tar, photo, encoded) -> Path:
    write_photos(tmp_path, ["photos/1.jpg", "photos/sub/2.jpg", "single.png"])
    for number in range(8, 12):
        write_tar(tmp_path / "shards" / f"{number:03d}.tar", {"x.jpg": encoded(photo(number), "JPEG")})
    return tmp_path


def test_folder_tar_image_and_patterns(data: Path) -> None:
    assert short_names([f"{data}/photos"]) == ["1.jpg", "2.jpg"]
    assert short_names([f"{data}/photos/sub/", f"{data}/single.png"]) == ["2.jpg", "single.png"]
    assert short_names([f"{data}/shards/009.tar"]) == ["009.tar:x.jpg"]
    tars = [f"{number:03d}.tar:x.jpg" for number in range(8, 12)]
    assert short_names([f"{data}/shards"]) == tars
    assert short_names([f"{data}/shards/{{008..011}}.tar"]) == tars
    assert short_names([f"{data}/shards/0*.tar"]) == tars
    assert short_names([f"{data}/{{photos,shards}}"]) == ["1.jpg", "2.jpg", *tars]
    assert short_names([f"{data}/shards/{{009,011}}.tar", f"{data}/photos/1.jpg"]) == [tars[1], tars[3], "1.jpg"]


def test_folder_with_images_and_tars(data: Path) -> None:
    assert sorted(short_names([str(data)])) == sorted(
        ["1.jpg", "2.jpg", "single.png", *(f"{number:03d}.tar:x.jpg" for number in range(8, 12))]
    )
    # The indices that were kept beside the tars are nobody's business.
    assert open_images([str(data)]).digest() == open_images([str(data)]).digest()


def test_a_name_with_braces_that_exists_is_no_pattern(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path, ["{a,b}/1.jpg", "[x].jpg"])
    assert short_names([f"{tmp_path}/{{a,b}}", f"{tmp_path}/[x].jpg"]) == ["1.jpg", "[x].jpg"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("photo", "photo does not exist; did you mean .*/photos?"),
        ("photso/sub", "did you mean .*/photos?"),
        ("photos/1.jpg/x", "1.jpg is a file, not a folder"),
        ("zzzzzzzzzz", "there is no zzzzzzzzzz in"),
        ("shards/{008..012}.tar", "there is no 012.tar in .* .from the pattern"),
        ("shards/flowers.tar", "there is no flowers.tar in"),
        ("photos/1.jpeg", "did you mean .*/1.jpg?"),
        ("shards/9*.tar", "nothing matches .*; check the pattern"),
        ("notes.txt", "neither a folder nor a tar nor an image"),
        ("all.tar.gz", "unpack it"),
        ("empty", "holds no image .no files"),
        ("dangling", "is a link to .*nowhere, which is not there"),
    ],
)
def test_what_cannot_be_opened(data: Path, path: str, message: str) -> None:
    (data / "notes.txt").touch()
    (data / "all.tar.gz").touch()
    (data / "empty").mkdir()
    (data / "dangling").symlink_to("nowhere")
    with pytest.raises(UnveilError, match=message.replace("?", r"\?")):
        open_images([os.path.join(data, path)])


def test_nothing_given() -> None:
    with pytest.raises(UnveilError, match="no images are given"):
        open_images([])


def test_progress_counts_up(data: Path) -> None:
    seen: list[int] = []
    open_images([str(data)], on_progress=seen.append)
    assert seen and max(seen) == 4
