"""Finding what is alike, against comparing each with each; and how far the hash of a changed photo moves."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from unveil.data.check.duplicates import equal_groups, groups_of, near_pairs
from unveil.data.check.fingerprint import FREQUENCIES, SIDE, fingerprint, perceptual_hash
from unveil.data.check.report import CheckSettings
from unveil.data.samples.photos import PHOTOS, photo_path
from unveil.data.sources.base import Encoded, UnreadableSample


def bits_between(first: np.ndarray, second: np.ndarray) -> int:
    return sum((int(one) ^ int(other)).bit_count() for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("distance", [0, 3, 7, 15, 31])
@pytest.mark.parametrize("block", [7, 10_000])
def test_near_pairs_are_those_of_comparing_all(distance: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.data.check.duplicates.BLOCK", block)
    rng = np.random.default_rng(distance)
    centres = rng.integers(0, 2, (12, 256))
    hashes = np.repeat(centres, 10, axis=0)
    for row in hashes[12:]:
        row[rng.choice(256, rng.integers(0, 25), replace=False)] ^= 1
    words = np.packbits(hashes.astype(np.uint8), axis=1, bitorder="little").view("<u8")
    expected = {
        (first, second): bits
        for first in range(120)
        for second in range(first + 1, 120)
        if (bits := int((hashes[first] != hashes[second]).sum())) <= distance
    }
    pairs, bits = near_pairs(words, distance)
    assert {tuple(pair): int(bit) for pair, bit in zip(pairs.tolist(), bits, strict=True)} == expected
    assert expected


def test_groups() -> None:
    assert [group.tolist() for group in equal_groups(np.array([5, 3, 5, 1, 3, 5]))] == [[0, 2, 5], [1, 4]]
    assert equal_groups(np.zeros(0, dtype=np.int64)) == []
    pairs = np.array([[4, 6], [0, 9], [2, 6]])
    assert [group.tolist() for group in groups_of(pairs, 10)] == [[0, 9], [2, 4, 6]]
    assert groups_of(np.zeros((0, 2), dtype=np.int64), 10) == []


def test_the_hash_by_the_formula_of_the_cosine_transform() -> None:
    grey = np.random.default_rng(0).uniform(0, 255, (SIDE, SIDE)).astype(np.float32)
    places = np.arange(SIDE)
    basis = np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * (places + 0.5) / SIDE)
    basis[0] /= np.sqrt(2)
    low = (basis @ grey @ basis.T).reshape(-1)
    bits = low > np.median(low[1:])
    expected = [
        sum(int(bit) << place for place, bit in enumerate(bits[word : word + 64])) for word in range(0, 256, 64)
    ]
    assert perceptual_hash(grey).tolist() == expected


def encoded(image: Image.Image, name: str = "x.jpg", **options: int) -> Encoded:
    stream = io.BytesIO()
    image.save(stream, "PNG" if name.endswith("png") else "JPEG", **options)
    return Encoded(stream.getvalue(), name)


def test_changed_photos_stay_near_and_others_are_far() -> None:
    settings = CheckSettings()
    hashes = []
    for photo in PHOTOS[:4]:
        with Image.open(photo_path(*photo)) as opened:
            image = opened.convert("RGB")
        image.thumbnail((400, 400))
        original = fingerprint(encoded(image, quality=95))
        hashes.append(original["hash"])
        assert (original["width"], original["height"]) == image.size
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        for changed in (
            encoded(image, quality=60),
            encoded(image, "x.png"),
            encoded(half, quality=85),
            encoded(ImageEnhance.Brightness(image).enhance(1.1), quality=90),
        ):
            row = fingerprint(changed)
            assert bits_between(row["hash"], original["hash"]) <= settings.near
            assert row["content"] != original["content"]
    assert all(
        bits_between(hashes[first], hashes[second]) > 4 * settings.near for first in range(4) for second in range(first)
    )


def test_one_tone_is_plain_and_what_is_no_image_is_an_error() -> None:
    assert fingerprint(encoded(Image.new("RGB", (300, 200), (200, 10, 10))))["plain"]
    with pytest.raises(UnreadableSample, match="not an image"):
        fingerprint(Encoded(b"junk", "x.jpg"))
