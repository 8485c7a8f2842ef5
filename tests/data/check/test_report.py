"""From a folder with known faults to a report that names them, each once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unveil.config import UnveilError
from unveil.data.check.report import CheckReport, CheckSettings, compare
from unveil.data.check.scan import Scan, scan_images
from unveil.data.sources.open import open_images


def picture(number: int, side: int = 160) -> Image.Image:
    """Blobs, like no other number's."""
    pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(6):
        picture(number).save(place / f"{number}.png")
    (place / "copy of 1.png").write_bytes((place / "1.png").read_bytes())
    (place / "second copy of 1.png").write_bytes((place / "1.png").read_bytes())
    picture(2).resize((80, 80), Image.Resampling.LANCZOS).save(place / "like 2.jpg", quality=85)
    picture(9).save(place / "other.png")
    Image.new("RGB", (100, 100), "white").save(place / "white 1.png")
    Image.new("RGB", (101, 100), "white").save(place / "white 2.png")
    picture(10).resize((20, 30)).save(place / "small.png")
    picture(11).resize((500, 100)).save(place / "wide.png")
    (place / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (place / "zempty.png").write_bytes(b"")
    return place


def named(report: CheckReport, groups: list[list[int]]) -> list[list[str]]:
    return [[Path(report.names[place]).name for place in group] for group in groups]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_fault_is_found(folder: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.data.check.scan.CHUNK", 3)
    held_out = tmp_path / "test"
    held_out.mkdir()
    picture(3).save(held_out / "a.jpg", quality=80)
    (held_out / "b.png").write_bytes((folder / "4.png").read_bytes())
    picture(50).save(held_out / "c.png")
    scans: list[Scan] = [scan_images(open_images([str(place)]), workers=workers) for place in (folder, held_out)]
    report = compare(scans[0], CheckSettings(), scans[1])
    assert named(report, [list(report.unreadable)]) == [["broken.jpg", "zempty.png"]]
    assert "0 bytes" in report.unreadable[15]
    assert named(report, report.exact) == [["1.png", "copy of 1.png", "second copy of 1.png"]]
    assert named(report, report.near) == [["2.png", "like 2.jpg"]]
    assert {Path(report.names[place]).name: why for place, why in report.odd.items()} == {
        "small.png": "20 x 30 px",
        "wide.png": "500 x 100 px",
    }
    found = {Path(report.names[place]).name: Path(other).name for place, (other, _) in report.held_out.items()}
    assert found == {"3.png": "a.jpg", "4.png": "b.png"}
    left_out = {Path(name).name for name in report.to_leave_out()}
    assert left_out == {
        "broken.jpg",
        "zempty.png",
        "copy of 1.png",
        "second copy of 1.png",
        "like 2.jpg",
        "3.png",
        "4.png",
    }
    text, whole = report.as_text(), report.as_json()
    assert "16 images, 14 can be read, shorter side 20 to 160 px" in text
    assert "2  copies of the same file" in text and "7  to leave out" in text
    assert whole["images"] == 16 and len(whole["held_out"]) == 2 and len(whole["near_duplicates"]) == 1
    assert whole["held_out"][1]["bits"] == 0


def test_without_faults(tmp_path: Path) -> None:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    report = compare(scan_images(open_images([str(tmp_path)])), CheckSettings())
    assert report.to_leave_out() == [] and report.as_json()["odd_sizes"] == []


def test_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"junk")
    report = compare(scan_images(open_images([str(tmp_path)])), CheckSettings())
    assert len(report.unreadable) == 1 and report.as_text().startswith("1 images, 0 can be read\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"near": 32}, "--near is 32"), ({"smallest_side": 0}, "at least 1"), ({"largest_aspect": 0.5}, "at least 1")],
)
def test_settings_that_cannot_be(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        CheckSettings(**settings)
