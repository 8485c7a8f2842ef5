import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from unveil.data import decode
from unveil.data.decode import decode_image
from unveil.data.sources.base import UnreadableSample


def reason(file: str | bytes) -> str:
    with pytest.raises(UnreadableSample) as raised:
        decode_image(file, "the name")
    assert raised.value.name == "the name"
    return raised.value.reason


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_as_they_were(format: str, photo, encoded) -> None:
    image = photo(1)
    decoded = decode_image(encoded(image, format), "x")
    assert decoded.mode == "RGB" and np.array_equal(np.asarray(decoded), np.asarray(image))


def test_path_and_bytes_are_the_same(tmp_path: Path, photo, encoded) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(2), "JPEG"))
    decoded = decode_image(str(tmp_path / "a.jpg"), "x")
    (tmp_path / "a.jpg").unlink()
    assert np.array_equal(
        np.asarray(decoded.resize((8, 8))), np.asarray(decode_image(encoded(photo(2), "JPEG"), "x").resize((8, 8)))
    )


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(format: str, orientation: int, photo) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    options = {"lossless": True} if format == "WEBP" else {}
    photo(5, 40, 24).save(stream, format, exif=exif, **options)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(stream.getvalue())))
    decoded = decode_image(stream.getvalue(), "x")
    assert decoded.size == ((24, 40) if orientation > 4 else (40, 24))
    assert np.array_equal(np.asarray(decoded), np.asarray(expected))


def test_damaged_exif_does_not_cost_the_image(photo, encoded) -> None:
    data = encoded(photo(0), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff garbage")
    assert decode_image(data, "x").size == (24, 18)


def test_cmyk(encoded) -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = decode_image(data, "x").getpixel((8, 8))
    assert red > 240 and green < 15 and blue < 15


def test_greyscale_and_bitmap(encoded) -> None:
    assert decode_image(encoded(Image.new("L", (3, 3), 77), "PNG"), "x").getpixel((1, 1)) == (77, 77, 77)
    assert decode_image(encoded(Image.new("1", (3, 3), 1), "PNG"), "x").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_more_bits_are_scaled_by_the_bit_depth(format: str, bits: int, encoded) -> None:
    most = 2**bits - 1
    values = np.array([[0, most // 4, most // 2, most]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values), format), "x"))
    assert np.array_equal(decoded[0, :, 0], np.round(values[0] * (255 / most)))
    assert (decoded == decoded[..., :1]).all()


def test_32_bits_and_floats(encoded) -> None:
    def grey(values: np.ndarray) -> list[int]:
        return np.asarray(decode_image(encoded(Image.fromarray(values), "TIFF"), "x"))[0, :, 0].tolist()

    assert grey(np.array([[0, 600_000, 1_000_000]], dtype=np.int32)) == [0, 153, 255]
    assert grey(np.array([[0, 0.5, 0.8]], dtype=np.float32)) == [0, 128, 204]
    assert grey(np.array([[-1.0, 0.0, 3.0]], dtype=np.float32)) == [0, 64, 255]
    assert "finite" in reason(encoded(Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32)), "TIFF"))


def test_transparency_shows_white(encoded) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    decoded = decode_image(encoded(palette, "PNG", transparency=bytes([0, 255])), "x")
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]
    half = decode_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG"), "x").getpixel((0, 0))
    assert half == (127, 127, 127)
    assert decode_image(encoded(Image.new("LA", (1, 1), (9, 0)), "PNG"), "x").getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(Image.new("RGBA", (1, 1), (9, 8, 7, 255)), "PNG"), "x").getpixel((0, 0)) == (9, 8, 7)
    key = encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG", transparency=(9, 8, 7))
    assert decode_image(key, "x").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    stream = io.BytesIO()
    frames[0].save(
        stream, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    assert decode_image(stream.getvalue(), "x").getpixel((4, 4)) == (200, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_one_pixel(format: str, encoded) -> None:
    assert decode_image(encoded(Image.new("RGB", (1, 1), (255, 255, 255)), format), "x").getpixel((0, 0)) == (255,) * 3


def test_a_jpeg_with_a_30000_pixel_side_is_decoded_smaller(encoded) -> None:
    data = encoded(Image.new("L", (30_000, 3_400), 90), "JPEG")
    decoded = decode_image(data, "x")
    assert decoded.size == (15_000, 1_700) and decoded.getpixel((9_000, 900)) == (90, 90, 90)


def test_too_large_others_are_refused_before_they_take_memory(encoded, photo, monkeypatch) -> None:
    for width, height in ((30_000, 30_000), (30_000, 3_400)):
        assert "100,000,000" in reason(png_header(width, height))
    monkeypatch.setattr(decode, "PIXEL_LIMIT", 10_000)
    assert decode_image(encoded(photo(0, 200, 100), "JPEG"), "x").size == (100, 50)
    assert "200 x 100" in reason(encoded(photo(0, 200, 100), "JPEG", progressive=True))
    assert "pixels" in reason(encoded(photo(0, 1000, 800), "JPEG"))


@pytest.mark.parametrize(
    ("shortest_side", "size"),
    [(None, (1000, 800)), (401, (1000, 800)), (400, (500, 400)), (150, (250, 200)), (10, (125, 100))],
)
def test_jpegs_can_be_decoded_just_large_enough(
    shortest_side: int | None, size: tuple[int, int], photo, encoded
) -> None:
    data = encoded(photo(4, 1000, 800), "JPEG", quality=95)
    decoded = decode_image(data, "x", shortest_side)
    assert decoded.size == size
    whole = np.asarray(decode_image(data, "x").resize((50, 40), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(whole - np.asarray(decoded.resize((50, 40), Image.Resampling.BICUBIC))).mean() < 1.0


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert reason(str(tmp_path / "empty.jpg")) == "the file is empty (0 bytes)" == reason(b"")
    assert reason(b"<html>not found</html>") == "not an image"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n") == "not an image"
    assert reason(str(tmp_path / "gone.jpg")) == "No such file or directory"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_cut_off_files_are_unreadable(format: str, photo, encoded) -> None:
    data = encoded(photo(3, 64, 48), format)
    for keep in (4, len(data) // 4, len(data) // 2):
        assert reason(data[:keep])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_damaged_bytes_give_an_image_or_a_reason_and_no_warning(format: str, photo, encoded) -> None:
    data = encoded(photo(3, 64, 48), format)
    rng = random.Random(format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(rng.randint(1, 12)):
                damaged[rng.randrange(len(data) if rng.random() < 0.5 else 100)] = rng.randrange(256)
            try:
                assert decode_image(bytes(damaged), "x").mode == "RGB"
            except UnreadableSample as failure:
                assert failure.reason
