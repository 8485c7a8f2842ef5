"""Every written format, read back by a reader that is not the writer's."""

import csv
import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from unveil.config import FashionScenes, UnveilError
from unveil.data.samples import writers
from unveil.data.samples.coco import run_lengths
from unveil.data.samples.garments import CLASS_NAMES
from unveil.data.samples.motion import MOTION_NAMES
from unveil.data.samples.scenes import FashionSceneSource
from unveil.data.samples.writers import default_scenes, write_samples

SEVERAL = FashionScenes(count=12, size=48, garments=(1, 3), scale=(0.3, 0.6), out_of_focus=False)


def scene_of(config: FashionScenes, split: str, number: int):
    return FashionSceneSource(replace(config, split=split)).scene(number)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_folders_are_read_by_torchvision(tmp_path: Path) -> None:
    config = FashionScenes(count=30, first=100)
    write_samples(tmp_path / "out", "folders", config, test_count=10)
    for split, count in (("train", 30), ("test", 10)):
        folder = ImageFolder(str(tmp_path / "out" / split))
        assert len(folder) == count
        assert sorted(folder.classes) == sorted(name.replace(" ", "_") for name in CLASS_NAMES)
        assert sorted(Path(path).stem for path, _ in folder.samples) == [f"{100 + n:06d}" for n in range(count)]
        for path, target in folder.samples:
            scene = scene_of(config, split, int(Path(path).stem))
            assert folder.classes[target].replace("_", " ") == CLASS_NAMES[scene.label]
            np.testing.assert_array_equal(pixels(Path(path)), scene.image)


def paint(counts: list[int], height: int, width: int) -> np.ndarray:
    """Run lengths back to a mask, one run after the other."""
    column, row, value = 0, 0, 0
    mask = np.zeros((height, width), bool)
    for length in counts:
        for _ in range(length):
            mask[row, column] = bool(value)
            row += 1
            if row == height:
                row, column = 0, column + 1
        value = 1 - value
    assert (row, column) == (0, width)
    return mask


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        (["001", "001"], [4, 2]),
        (["110", "100"], [0, 3, 3]),
        (["000", "000"], [6]),
        (["111", "111"], [0, 6]),
        (["010", "101"], [1, 2, 2, 1]),
    ],
)
def test_run_lengths_of_small_masks(rows: list[str], counts: list[int]) -> None:
    mask = np.array([[character == "1" for character in row] for row in rows])
    assert run_lengths(mask) == counts


def test_coco(tmp_path: Path) -> None:
    write_samples(tmp_path, "coco", SEVERAL, test_count=4)
    for split, count in (("train", 12), ("test", 4)):
        content = json.loads((tmp_path / "annotations" / f"instances_{split}.json").read_text())
        assert [(one["id"], one["name"]) for one in content["categories"]] == list(enumerate(CLASS_NAMES, 1))
        assert len(content["images"]) == count
        assert [one["id"] for one in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
        for image in content["images"]:
            scene = scene_of(SEVERAL, split, image["id"])
            assert (image["width"], image["height"]) == (48, 48)
            np.testing.assert_array_equal(pixels(tmp_path / split / image["file_name"]), scene.image)
            own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
            assert [one["category_id"] - 1 for one in own] == [garment.label for garment in scene.garments]
            for annotation, garment in zip(own, scene.garments, strict=True):
                mask = paint(annotation["segmentation"]["counts"], *annotation["segmentation"]["size"])
                np.testing.assert_array_equal(mask, garment.mask)
                assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
                left, top, width, height = annotation["bbox"]
                inside = mask[top : top + height, left : left + width]
                assert inside.sum() == mask.sum()
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        captions = json.loads((tmp_path / "annotations" / f"captions_{split}.json").read_text())
        assert captions["images"] == content["images"]
        for one in captions["annotations"]:
            assert one["caption"] == scene_of(SEVERAL, split, one["image_id"]).caption


def test_masks(tmp_path: Path) -> None:
    write_samples(tmp_path, "masks", SEVERAL, test_count=3)
    names = (tmp_path / "classes.txt").read_text().splitlines()
    assert names == ["background", *CLASS_NAMES]
    for split, count in (("train", 12), ("test", 3)):
        paths = sorted((tmp_path / "images" / split).iterdir())
        assert [path.name for path in paths] == [path.name for path in sorted((tmp_path / "masks" / split).iterdir())]
        assert len(paths) == count
        for path in paths:
            scene = scene_of(SEVERAL, split, int(path.stem))
            with Image.open(tmp_path / "masks" / split / path.name) as mask:
                assert mask.mode == "L" and mask.size == (48, 48)
                classes = {names[value] for value in np.unique(np.asarray(mask))}
            assert classes == {"background"} | {CLASS_NAMES[garment.label] for garment in scene.garments}
            np.testing.assert_array_equal(pixels(path), scene.image)


def test_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "SAMPLES_PER_TAR", 5)
    write_samples(tmp_path, "captions", SEVERAL, test_count=2)
    shards = sorted(path.name for path in (tmp_path / "tars").iterdir())
    assert shards == ["test-000000.tar", *(f"train-{shard:06d}.tar" for shard in range(3))]
    members: dict[str, bytes] = {}
    sizes = []
    for shard in shards[1:]:
        with tarfile.open(tmp_path / "tars" / shard) as tar:
            names = tar.getnames()
            sizes.append(len(names) // 3)
            # WebDataset takes neighbours with one stem for one sample.
            assert [Path(name).suffix for name in names] == [".png", ".txt", ".json"] * (len(names) // 3)
            members |= {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    assert sizes == [5, 5, 2] and len(members) == 36
    with (tmp_path / "files" / "train" / "captions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    for number, row in enumerate(rows):
        scene = scene_of(SEVERAL, "train", number)
        key = f"{number:06d}"
        assert row == {"path": f"{key}.png", "caption": scene.caption}
        np.testing.assert_array_equal(pixels(tmp_path / "files" / "train" / row["path"]), scene.image)
        with Image.open(io.BytesIO(members[f"{key}.png"])) as image:
            np.testing.assert_array_equal(np.asarray(image), scene.image)
        assert members[f"{key}.txt"].decode() == scene.caption
        about = json.loads(members[f"{key}.json"])
        assert about["label"] == scene.label
        assert [one["class"] for one in about["garments"]] == [CLASS_NAMES[one.label] for one in scene.garments]


def test_video_is_read_back(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs unveil[video]")
    config = FashionScenes(count=10, size=64)
    write_samples(tmp_path, "video", config, test_count=2, frames=6, frames_per_second=4)
    with (tmp_path / "labels.csv").open(newline="") as file:
        assert [(int(row["id"]), row["name"]) for row in csv.DictReader(file)] == list(enumerate(MOTION_NAMES))
    for split, count in (("train", 10), ("test", 2)):
        lines = (tmp_path / f"{split}.csv").read_text().splitlines()
        assert len(lines) == count
        for number, line in enumerate(lines):
            path, label = line.split(" ")
            assert Path(path).parts[:2] == (split, MOTION_NAMES[int(label)])
            with av.open(str(tmp_path / path)) as container:
                assert container.streams.video[0].average_rate == 4
                frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
            clip = FashionSceneSource(replace(config, split=split)).clip(number, 6)
            assert clip.motion == int(label)
            assert np.stack(frames).shape == (6, 64, 64, 3)
            errors = [np.abs(frame.astype(int) - clip.frames[place]).mean() for place, frame in enumerate(frames)]
            assert max(errors) < 12


def test_video_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "av" in sys.modules or __import__("importlib.util").util.find_spec("av"):
        with pytest.raises(UnveilError, match="even size"):
            write_samples(tmp_path / "out", "video", FashionScenes(count=1, size=33))
        with pytest.raises(UnveilError, match="2 or more"):
            write_samples(tmp_path / "out", "video", FashionScenes(count=1), frames=1)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnveilError, match=r'pip install "unveil\[video\]"'):
        write_samples(tmp_path / "out", "video", FashionScenes(count=1))
    assert not (tmp_path / "out").exists()


def test_progress_counts_every_scene(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    config = FashionScenes(count=10)
    write_samples(tmp_path, "folders", config, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 12) for done in range(1, 13)]
    text = (tmp_path / "README.md").read_text()
    assert "Fashion-MNIST" in text and "CC BY" in text


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UnveilError, match="not empty"):
        write_samples(tmp_path, "folders", FashionScenes(count=10))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UnveilError, match="is a file"):
        write_samples(tmp_path / "mine.txt", "folders", FashionScenes(count=10))


def test_nothing_is_left_when_writing_breaks_off(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path / "new", "folders", FashionScenes(count=10), progress=stop)
    assert not (tmp_path / "new").exists()

    def fill(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "old").mkdir()
    with pytest.raises(UnveilError, match="cannot write samples into .*No space left"):
        write_samples(tmp_path / "old", "folders", FashionScenes(count=10), progress=fill)
    assert list((tmp_path / "old").iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    torn = tmp_path / writers.PARTIAL / "train"
    torn.mkdir(parents=True)
    (torn / "torn.png").write_bytes(b"half")
    write_samples(tmp_path, "masks", SEVERAL, test_count=1)
    assert not (tmp_path / writers.PARTIAL).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "classes.txt", "images", "masks"]


@pytest.mark.parametrize("kind", ["folders", "coco", "masks", "captions", "video"])
def test_default_settings_are_valid(kind: writers.Kind) -> None:
    config = default_scenes(kind)
    assert FashionSceneSource(config).scene(0).image.shape == (config.size, config.size, 3)
    assert config.size % 2 == 0
