"""Packing: what goes in comes out, once, whatever ends the run on the way."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil.config import UnveilError
from unveil.data.pack import MANIFEST, PackSettings, pack, read_leave_out
from unveil.data.sources.captions import open_captioned
from unveil.data.sources.labelled import open_labelled
from unveil.data.sources.open import open_images
from unveil.data.sources.shards import ShardSource


def members(shards: Path) -> dict[str, bytes]:
    """Content of all tars, read by another library than ours; fails on a name that is there twice."""
    found: dict[str, bytes] = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in found
                stream = tar.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


@pytest.fixture
def photos(tmp_path: Path, write_photos) -> Path:
    write_photos(tmp_path / "photos", [f"{'xyz'[number % 3]}/{number:02d}.jpg" for number in range(23)])
    return tmp_path / "photos"


@pytest.mark.parametrize("workers", [0, 3])
def test_every_file_is_packed_once_as_it_is(photos: Path, tmp_path: Path, workers: int) -> None:
    said: list[tuple[int, int]] = []
    packed = pack(
        open_images([str(photos)]),
        tmp_path / "shards",
        PackSettings(samples_per_shard=5),
        workers=workers,
        on_progress=lambda done, total: said.append((done, total)),
    )
    assert (packed.shards, packed.samples, packed.left_out, packed.found) == (5, 23, {}, 0)
    assert said[-1] == (23, 23)
    files = sorted(photos.rglob("*.jpg"))
    assert list(members(tmp_path / "shards").values()) == [file.read_bytes() for file in files]
    assert len(list((tmp_path / "shards").glob("*.tar.index"))) == 5
    lines = [
        json.loads(line)
        for file in sorted((tmp_path / "shards" / "contents").iterdir())
        for line in file.read_text().splitlines()
    ]
    assert lines == [{"key": f"{number:09d}", "from": str(file)} for number, file in enumerate(files)]


def test_labels_and_their_names_are_kept(photos: Path, tmp_path: Path) -> None:
    source, classes = open_labelled([str(photos)])
    pack(source, tmp_path / "shards", PackSettings(samples_per_shard=10), classes=classes)
    again, names = open_labelled([str(tmp_path / "shards")])
    assert names == ("x", "y", "z")
    assert [again[place].label for place in range(23)] == [source[place].label for place in range(23)]


def test_captions_are_kept(tmp_path: Path, write_photos) -> None:
    write_photos(tmp_path / "pairs", ["1.jpg", "2.png"])
    rows = ["path,caption", "1.jpg,a red thing", "1.jpg,a thing", "2.png,größer"]
    (tmp_path / "pairs" / "captions.csv").write_text("\n".join(rows))
    pack(open_captioned([str(tmp_path / "pairs")]), tmp_path / "shards", PackSettings())
    again = open_captioned([str(tmp_path / "shards")])
    assert [again[place].captions for place in range(2)] == [("a red thing", "a thing"), ("größer",)]
    # And from tars to tars.
    pack(again, tmp_path / "more", PackSettings())
    assert members(tmp_path / "more") == members(tmp_path / "shards")


def test_several_sources_are_merged_in_order(photos: Path, tmp_path: Path, write_tar, encoded, photo) -> None:
    write_tar(tmp_path / "a.tar", {"n.png": encoded(photo(50), "PNG")})
    pack(open_images([str(tmp_path / "a.tar"), str(photos)]), tmp_path / "shards", PackSettings())
    shards = ShardSource([tmp_path / "shards" / "shard-000000.tar"])
    assert len(shards) == 24 and np.array_equal(np.asarray(shards[0].image), np.asarray(photo(50)))


def test_short_side(tmp_path: Path, photo) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo(1, 400, 300).save(folder / "1.jpg")
    photo(2, 90, 500).save(folder / "2.png")
    photo(3, 40, 64).save(folder / "3.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    photo(4, 1600, 900).save(folder / "4.jpg", exif=turned)
    pack(open_images([str(folder)]), tmp_path / "shards", PackSettings(short_side=64))
    found = members(tmp_path / "shards")
    sizes = {name: Image.open(io.BytesIO(data)).size for name, data in found.items()}
    assert sizes == {
        "000000000.jpg": (85, 64),
        "000000001.jpg": (64, 356),
        "000000002.jpg": (40, 64),
        "000000003.jpg": (64, 114),
    }
    assert found["000000002.jpg"] == (folder / "3.jpg").read_bytes()
    ours = np.asarray(Image.open(io.BytesIO(found["000000000.jpg"])), dtype=float)
    whole = photo(1, 400, 300).resize((85, 64), Image.Resampling.BICUBIC)
    assert np.abs(ours - np.asarray(whole, dtype=float)).mean() < 4.0


def test_what_cannot_be_read_or_is_not_wanted_is_left_out_and_named(photos: Path, tmp_path: Path) -> None:
    (photos / "x" / "00.jpg").write_bytes(b"")
    (photos / "x" / "03.jpg").write_bytes(b"\xff\xd8\xff junk")
    (tmp_path / "list.txt").write_text(f"{photos}/z/02.jpg\n")
    packed = pack(
        open_images([str(photos)]),
        tmp_path / "shards",
        PackSettings(short_side=8, samples_per_shard=2),
        leave_out=read_leave_out(tmp_path / "list.txt"),
    )
    assert packed.samples == 20 and sum(packed.left_out.values()) == 3
    assert packed.left_out["the file is empty (0 bytes)"] == 1
    # A tar whose samples are all left out is not written, and not tried again.
    assert not (tmp_path / "shards" / "shard-000000.tar").exists()
    assert packed.shards == 11
    again = pack(
        open_images([str(photos)]),
        tmp_path / "shards",
        PackSettings(short_side=8, samples_per_shard=2),
        leave_out=[f"{photos}/z/02.jpg"],
    )
    assert again.found == 12 and again.samples == 20


def test_another_source_other_settings_and_a_folder_in_use_are_refused(photos: Path, tmp_path: Path) -> None:
    source, shards = open_images([str(photos)]), tmp_path / "shards"
    pack(source, shards, PackSettings())
    with pytest.raises(UnveilError, match="begun with other short_side"):
        pack(source, shards, PackSettings(short_side=9))
    (photos / "x" / "00.jpg").unlink()
    with pytest.raises(UnveilError, match="begun with other images, source"):
        pack(open_images([str(photos)]), shards, PackSettings())
    with pytest.raises(UnveilError, match="holds other files"):
        pack(source, photos, PackSettings())
    (shards / MANIFEST).write_text("{")
    with pytest.raises(UnveilError, match=r"pack.json cannot be read"):
        pack(source, shards, PackSettings())
    with pytest.raises(UnveilError, match="cannot write"):
        pack(source, photos / "y" / "01.jpg" / "shards", PackSettings())
    with pytest.raises(UnveilError, match="cannot read .*nothing.txt"):
        read_leave_out(tmp_path / "nothing.txt")


@pytest.mark.parametrize("settings", [{"samples_per_shard": 0}, {"short_side": 0}, {"quality": 96}])
def test_settings_that_cannot_be(settings: dict[str, int]) -> None:
    with pytest.raises(UnveilError, match=f"--{next(iter(settings)).replace('_', '-')} is"):
        PackSettings(**settings)


def test_killed_again_and_again_it_ends_with_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    # With two shards more than are waited for, it waits to be killed, however busy the machine is.
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from unveil.data import pack as packing\n"
        "from unveil.data.sources.open import open_images\n"
        "out, wanted, encode = Path(sys.argv[2]), int(sys.argv[3]), packing.encode\n"
        "def slowly(*given):\n"
        "    time.sleep(60 if len(list(out.glob('*.tar'))) > wanted + 1 else 0.02)\n"
        "    return encode(*given)\n"
        "packing.encode = slowly\n"
        "settings = packing.PackSettings(samples_per_shard=2, short_side=10)\n"
        "packing.pack(open_images([sys.argv[1]]), out, settings, workers=2)\n"
    )
    shards = tmp_path / "shards"
    for wanted in (1, 5):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(photos), str(shards), str(wanted)], start_new_session=True
        )
        deadline = time.monotonic() + 60
        while len(list(shards.glob("*.tar"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (shards / ".shard-000009.tar.1.writing").write_bytes(b"half")
    source, settings = open_images([str(photos)]), PackSettings(samples_per_shard=2, short_side=10)
    packed = pack(source, shards, settings)
    assert 5 <= packed.found < 12 and packed.samples == 23
    pack(source, tmp_path / "unbroken", settings)
    assert digests(shards) == digests(tmp_path / "unbroken")
    assert len(members(shards)) == 23


@pytest.mark.parametrize(
    "moment", ["shard-000001.tar", "shard-000001.tar.index", "shard-000001.jsonl", MANIFEST, "classes.txt"]
)
def test_killed_just_before_a_file_gets_its_name_nothing_is_left_of_it(
    photos: Path, tmp_path: Path, moment: str
) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from unveil.data.pack import PackSettings, pack\n"
        "from unveil.data.sources.labelled import open_labelled\n"
        "replace = os.replace\n"
        "def dying(old, new):\n"
        "    if os.path.basename(new) == sys.argv[3]:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(old, new)\n"
        "os.replace = dying\n"
        "source, classes = open_labelled([sys.argv[1]])\n"
        "pack(source, Path(sys.argv[2]), PackSettings(samples_per_shard=5), classes=classes)\n"
    )
    (source, classes), settings = open_labelled([str(photos)]), PackSettings(samples_per_shard=5)
    killed = subprocess.run([sys.executable, "-c", script, str(photos), str(tmp_path / "shards"), moment])
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "shards").rglob(f"*{moment}*.writing"))
    assert pack(source, tmp_path / "shards", settings, classes=classes).samples == 23
    pack(source, tmp_path / "unbroken", settings, classes=classes)
    assert digests(tmp_path / "shards") == digests(tmp_path / "unbroken")


def digests(shards: Path) -> dict[str, str]:
    """Of every file but the indices, which hold the time of the tar."""
    files = [file for file in shards.rglob("*") if file.is_file() and file.suffix != ".index"]
    return {str(file.relative_to(shards)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
