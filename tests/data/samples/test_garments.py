"""The shipped garments: which they are, how they are cut out, how they are dyed."""

import ast
import colorsys
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil.config import UnveilError
from unveil.data.samples import garments, photos


def stored(split: str) -> np.ndarray:
    with np.load(garments.ASSET, allow_pickle=False) as file:
        return file[split]


def test_train_and_test_hold_ten_balanced_classes_and_share_no_garment() -> None:
    train, test = stored("train"), stored("test")
    assert (train.shape, test.shape) == ((10, 1000, 28, 28), (10, 200, 28, 28))
    assert train.dtype == test.dtype == np.uint8
    seen = {picture.tobytes() for picture in train.reshape(-1, 784)}
    assert not any(picture.tobytes() in seen for picture in test.reshape(-1, 784))


def test_classes_are_in_fashion_mnist_order() -> None:
    """Facts about garments, not about the file: trousers and dresses are tall, shoes are wide, boots are taller."""
    cover = (stored("train") > 40).mean(axis=1)
    tall = cover.max(axis=2).sum(axis=1) / cover.max(axis=1).sum(axis=1)
    names = dict(zip(garments.CLASS_NAMES, tall, strict=True))
    assert names["trouser"] > 1.5 and names["dress"] > 1.4
    assert names["sneaker"] < 0.6 and names["sneaker"] < names["ankle boot"] < 1.1
    # Fashion-MNIST's 6 is a shirt and its 2 a pullover: both have long sleeves, a t-shirt (0) has no forearms.
    forearms = cover[:, 18:26, 3:7].mean(axis=(1, 2))
    assert forearms[2] > 2 * forearms[0] and forearms[4] > 2 * forearms[0]


def test_assets_stay_small_and_carry_their_licence() -> None:
    folder = garments.ASSET.parent
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 6 * 2**20
    assert "Zalando" in (folder / "LICENSE").read_text()


def test_the_script_that_made_the_file_follows_its_rule(tmp_path: Path) -> None:
    """A made-up Fashion-MNIST in which pixel 0 counts the pictures of a class in the order of the split."""
    import gzip

    rng = np.random.default_rng(0)
    for prefix, per_class in (("train", 1010), ("t10k", 205)):
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
        images = np.zeros((len(labels), 28, 28), np.uint8)
        for label in range(10):
            images[labels == label, 0, 0] = np.arange(per_class) % 251
            images[labels == label, 0, 1] = label
        for name, header, content in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            with gzip.open(tmp_path / f"{prefix}-{name}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(bytes(header) + content.tobytes())
    script = tmp_path / "make_fashion_subset.py"
    script.write_text((garments.ASSET.parent / script.name).read_text())
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    with np.load(tmp_path / "garments.npz") as made:
        for split, per_class in (("train", 1000), ("test", 200)):
            assert made[split].shape == (10, per_class, 28, 28)
            np.testing.assert_array_equal(made[split][:, :, 0, 0], np.tile(np.arange(per_class) % 251, (10, 1)))
            np.testing.assert_array_equal(made[split][:, :, 0, 1], np.repeat(np.arange(10), per_class).reshape(10, -1))


def test_cutting_out_keeps_dark_prints_and_drops_background_noise() -> None:
    picture = np.zeros((1, 1, 28, 28), np.uint8)
    picture[0, 0, 6:22, 8:20] = 120
    picture[0, 0, 12:14, 12:16] = 20
    picture[0, 0, 2, 2] = 5
    picture[0, 0, 6:22, 20] = 60
    cut = garments.cut_out(picture)
    alpha, shade = cut.alpha[0, 0], cut.shade[0, 0]
    assert alpha[2, 2] == 0 and alpha[0].max() == 0
    assert (alpha[6:22, 8:20] == 255).all()
    assert shade[13, 13] < 60 < 240 < shade[8, 10]
    # Half covered along the outline, and no darker there than inside.
    assert 100 < alpha[10, 20] < 200
    assert shade[10, 20] > 240


def test_dyes_are_told_apart_by_hue_or_lightness() -> None:
    colours = [colorsys.rgb_to_hsv(*(value / 255 for value in rgb)) for rgb in garments.COLOURS.values()]
    for position, (hue, saturation, value) in enumerate(colours):
        for other_hue, other_saturation, other_value in colours[:position]:
            around = abs(hue - other_hue)
            differs = min(around, 1 - around) > 0.06
            assert differs or abs(saturation - other_saturation) > 0.25 or abs(value - other_value) > 0.25


@pytest.mark.parametrize("colour", garments.COLOUR_NAMES)
def test_dyed_cloth_has_the_colour_and_the_shade(colour: str) -> None:
    cloth = np.asarray(garments.dyed(Image.fromarray(np.array([[255, 128, 0]], np.uint8)), colour)).astype(float)
    rgb = np.array(garments.COLOURS[colour])
    np.testing.assert_array_equal(cloth[0, 0], rgb)
    np.testing.assert_allclose(cloth[0, 1], 0.65 * rgb, atol=1)
    np.testing.assert_allclose(cloth[0, 2], 0.3 * rgb, atol=0.5)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "garments.npz"
    broken.write_bytes(garments.ASSET.read_bytes()[:1000])
    monkeypatch.setattr(garments, "ASSET", broken)
    for content in (broken.read_bytes(), b"", b"text"):
        broken.write_bytes(content)
        with pytest.raises(UnveilError, match=r"garments\.npz.*reinstall"):
            garments.load_garments.__wrapped__("train")


def test_photos_are_files_inside_the_wheels_and_are_in_colour() -> None:
    for photo in photos.PHOTOS:
        with Image.open(photos.photo_path(*photo)) as image:
            channels = np.asarray(image.convert("RGB")).astype(int)
            assert min(image.size) >= 300
            assert np.abs(channels[..., 0] - channels[..., 2]).mean() > 5


def test_a_missing_photo_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(UnveilError, match="skimage/data/nothing.png is missing: reinstall"):
        photos.photo_path("skimage", "data/nothing.png")
    with pytest.raises(UnveilError, match="no_such_package"):
        photos.photo_path("no_such_package", "photo.png")


def test_a_crop_is_the_part_of_the_photo_that_was_asked_for() -> None:
    with Image.open(photos.photo_path("skimage", "data/astronaut.png")) as file:
        astronaut = file.convert("RGB")
    number = photos.PHOTOS.index(("skimage", "data/astronaut.png"))
    crop = photos.photo_crop(number, 0.25, 0.5, 1.0, False, 64, False)
    # 512 pixels: a crop of 128 whose left edge is at 0.5 x (512 - 128) = 192, at the bottom.
    expected = astronaut.crop((192, 384, 320, 512)).reduce(2)
    assert np.abs(np.asarray(crop).astype(int) - np.asarray(expected)).mean() < 1.5
    mirrored = photos.photo_crop(number, 0.25, 0.5, 1.0, True, 64, False)
    np.testing.assert_array_equal(np.asarray(mirrored), np.asarray(crop)[:, ::-1])


@pytest.mark.parametrize("size", [28, 224])
def test_out_of_focus_takes_the_detail_and_leaves_the_colours(size: int) -> None:
    for number in range(len(photos.PHOTOS)):
        sharp, soft = (
            np.asarray(photos.photo_crop(number, 0.6, 0.5, 0.5, False, size, blur)).astype(float)
            for blur in (False, True)
        )
        detail = [np.abs(np.diff(image, axis=1)).mean() for image in (sharp, soft)]
        assert detail[1] < 0.75 * detail[0]
        np.testing.assert_allclose(sharp.mean(axis=(0, 1)), soft.mean(axis=(0, 1)), atol=6)


def test_importing_reads_no_asset_and_no_heavy_package() -> None:
    code = (
        "import sys; from unveil.data.samples import scenes, writers; from unveil.data.samples.garments import"
        " load_garments; print(load_garments.cache_info().currsize,"
        " sorted({'torch', 'skimage', 'sklearn', 'scipy', 'av'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.split(maxsplit=1)[0] == "0"
    assert ast.literal_eval(output.split(maxsplit=1)[1]) == []
