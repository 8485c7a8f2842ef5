"""Files that are decoded on the device: which of them, to what, and what becomes of damaged ones."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unveil.config import DataConfig, RandomResizedCrop, UnveilError
from unveil.data.crops import crop_box, resize_crop
from unveil.data.device_crops import TOLERANCE, Cut, DeviceCrops, collate_cuts, cut_out
from unveil.data.device_decoding import UndecodedCut, UndecodedJpegs, UndecodedSample, decode_on
from unveil.data.samples.photos import PHOTOS, photo_path
from unveil.data.sources.base import EncodedSource, UnreadableSample
from unveil.data.sources.folder import FolderSource

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos in the order of their names: two plain JPEGs, and what the device leaves to the workers."""
    with Image.open(photo_path(*PHOTOS[0])) as photo:
        small = photo.convert("RGB").resize((200, 150))
    small.save(tmp_path / "0_plain.jpg", quality=90)
    small.convert("L").save(tmp_path / "1_grey.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    small.save(tmp_path / "2_turned.jpg", exif=turned)
    small.convert("CMYK").save(tmp_path / "3_cmyk.jpg")
    small.save(tmp_path / "4_other.png")
    whole = (tmp_path / "0_plain.jpg").read_bytes()
    (tmp_path / "5_cut_off.jpg").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_plain_jpegs_are_left_undecoded(folder: Path) -> None:
    plain = FolderSource(folder)
    assert isinstance(plain, EncodedSource)
    source = UndecodedJpegs(plain)
    assert len(source) == 6 and source.digest() == plain.digest()
    for index in range(5):
        sample, decoded = source[index], plain[index]
        assert isinstance(sample, UndecodedSample) == (index < 2)
        assert (sample.name, sample.index, sample.image.size) == (decoded.name, index, decoded.image.size)
    with pytest.raises(UnreadableSample):
        source[5]


def test_crops_of_both_kinds_in_one_batch(folder: Path) -> None:
    """On the processor, whose JPEG library is Pillow's; a GPU's decoder has pixels of its own."""
    plain, source = FolderSource(folder), UndecodedJpegs(FolderSource(folder))
    cuts, expected = [], []
    for index in range(5):
        image = plain[index].image
        box = crop_box(image.size, RandomResizedCrop(), random.Random(index))
        cuts.append(cut_out(source[index], box, 64))
        expected.append(resize_crop(image, box, 64, index == 1))
    assert [type(cut) for cut in cuts] == [UndecodedCut, UndecodedCut, Cut, Cut, Cut]
    batch = collate_cuts(cuts) | {"flipped": torch.arange(5) == 1}
    found = DeviceCrops(CPU, 64)([batch])[0]
    assert found.keys() == {"image", "flipped"}
    assert (found["image"].int() - torch.stack(expected).int()).abs().max() <= TOLERANCE


def test_damage_that_only_decoding_shows() -> None:
    """The error names the file, and the way that replaces such samples."""
    with pytest.raises(UnveilError, match=r"hole\.jpg.*leave data\.decode_on=device out"):
        decode_on(CPU, [UndecodedCut(b"no image", (0, 0, 1, 1), "hole.jpg")])


def test_decoding_there_needs_resizing_there() -> None:
    with pytest.raises(UnveilError, match="add data.resize_on=device"):
        DataConfig(decode_on="device")


@pytest.mark.gpu
def test_a_gpu_decodes_nearly_the_same(folder: Path) -> None:
    plain, source = FolderSource(folder), UndecodedJpegs(FolderSource(folder))
    cut = cut_out(source[0], (0, 0, 200, 150), 64)
    assert isinstance(cut, UndecodedCut)
    found = decode_on(torch.device("cuda"), [cut])[0]
    expected = torch.from_numpy(np.array(plain[0].image)).permute(2, 0, 1)
    assert found.is_cuda and (found.cpu().float() - expected.float()).abs().mean() < 2.0
