"""Small images and sources for the tests of this room."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unveil.data.sources.base import Sample, UnreadableSample


def make_photo(number: int, width: int = 24, height: int = 18) -> Image.Image:
    """A smooth picture that differs from number to number."""
    image = Image.linear_gradient("L").resize((width, height)).rotate(37 * number, Image.Resampling.BICUBIC)
    return Image.merge("RGB", [image, image.rotate(90), Image.new("L", (width, height), 40 + (29 * number) % 200)])


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


@pytest.fixture
def photo() -> Callable[..., Image.Image]:
    return make_photo


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    return encode


@pytest.fixture
def write_photos() -> Callable[[Path, list[str]], None]:
    """(folder, relative names): an image file for each."""

    def write(folder: Path, names: list[str]) -> None:
        for number, name in enumerate(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            format = {".png": "PNG", ".gif": "GIF"}.get(Path(name).suffix.lower(), "JPEG")
            (folder / name).write_bytes(encode(make_photo(number), format))

    return write


@pytest.fixture
def write_tar() -> Callable[[Path, dict[str, bytes]], None]:
    """(path, {member: content}): a tar."""

    def write(path: Path, members: dict[str, bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    return write


class NumberedSource:
    """Plain images whose colour tells their place; those in `bad` cannot be read."""

    def __init__(self, count: int, bad: frozenset[int] = frozenset()) -> None:
        self.count = count
        self.bad = bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.bad:
            raise UnreadableSample(f"image {index}", "made so")
        return Sample(Image.new("RGB", (6, 4), (index % 256, index // 256, 7)), f"image {index}", index % 3, index)

    def digest(self) -> dict[str, dict[str, int | str]]:
        return {"numbers": {"count": self.count, "sha256": str(self.count)}}


@pytest.fixture
def numbered() -> type[NumberedSource]:
    return NumberedSource
