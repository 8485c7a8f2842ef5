"""Checking images, packing those that are worth it, and training on the shards."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.flows.commands import QUICK, Unveil


def test_check_pack_and_pretrain(photos: Path, tmp_path: Path, unveil: Unveil) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    original = sorted(folder.rglob("*.jpg"))[3]
    shutil.copy(original, folder / "a copy.jpg")
    (folder / "broken.jpg").write_bytes(b"junk")

    check = tmp_path / "check"
    answer = unveil("data", "check", folder, "--out", check, "--workers", 2)
    assert answer.status == 0
    assert "32 images, 31 can be read" in answer.out and "1  copies of the same file" in answer.out
    assert answer.out.startswith((check / "report.txt").read_text())
    report = json.loads((check / "report.json").read_text())
    assert report["to_leave_out"] == 2 and "broken.jpg" in (check / "leave_out.txt").read_text()
    with Image.open(check / "duplicates.png") as sheet:
        assert sheet.width > 300

    shards = tmp_path / "shards"
    command = (
        "data",
        "pack",
        folder,
        "--to",
        shards,
        "--leave-out",
        check / "leave_out.txt",
        "--samples-per-shard",
        8,
        "--workers",
        0,
    )
    packed = unveil(*command, "--short-side", 32)
    assert packed.status == 0 and "30 images, 0.00 GiB, in 4 tars: " in packed.out
    assert "left out 2 images" in packed.out
    assert "4 tars, 4 of them from before" in unveil(*command, "--short-side", 32).out
    assert "begun with other short_side" in unveil(*command, "--short-side", 40).complaint

    run = ("pretrain", f"{shards}/shard-{{000000..000003}}.tar", "--out", tmp_path / "run", *QUICK, "--steps", 1)
    assert unveil(*run).status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pack", "photos", "--to", "photos/shards"), "lies in photos, which is packed"),
        (("pack", "nothing", "--to", "shards"), "nothing does not exist"),
        (("pack", "photos", "--to", "shards", "--keep", "captions"), "holds no images with captions"),
        (("pack", "photos", "--to", "shards", "--leave-out", "no.txt"), "cannot read no.txt"),
        (("pack", "photos", "--to", "shards", "--workers", "-1"), "--workers is -1"),
        (("check", "photos", "--near", "40"), "--near is 40"),
        (("check", "photos", "--held-out", "nothing"), "nothing does not exist"),
    ],
)
def test_bad_input(
    photos: Path,
    tmp_path: Path,
    unveil: Unveil,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    answer = unveil("data", *arguments)
    assert answer.status == 1 and message in answer.complaint
    assert not (tmp_path / "shards").exists()
