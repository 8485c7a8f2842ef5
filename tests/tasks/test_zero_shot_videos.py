"""Frames of videos, and the video benchmarks on miniatures, against answers counted by hand."""

from pathlib import Path

import pytest
import torch

from tests.tasks.miniature_benchmarks import PaintedEmbedder
from tests.tasks.miniature_videos import KINETICS, STEP, grey, save_video, write_kinetics, write_ucf101
from unveil.build.clip_evaluation import evaluate_clip
from unveil.build.evaluation import ReadingSettings
from unveil.config import UnveilError
from unveil.data.sources.base import UnreadableSample
from unveil.engine import Parallel
from unveil.tasks.contrastive.suites.frames import read_frames
from unveil.tasks.contrastive.suites.layouts import open_zero_shot_suites
from unveil.tasks.contrastive.suites.names import TEMPLATES
from unveil.tasks.contrastive.suites.table import ZeroShotScore

NAMES = (
    *("Apply Eye Makeup", "Yo Yo", "Tai Chi", "Baby Crawling", "Wall Pushups", "Archery", "Biking", "Bowling"),
    "Drumming",
)


def score(root: Path, name: str, classes: tuple[str, ...], frames: int = 1) -> ZeroShotScore:
    (found,), _ = open_zero_shot_suites([name], root, frames=frames)
    embedder = PaintedEmbedder.knowing(classes, TEMPLATES[name], step=STEP)
    report = evaluate_clip(embedder, [found], {}, ReadingSettings(batch_size=2), Parallel(torch.device("cpu")))
    return report.scores[0]


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "mpeg4", {}),
        ("mp4", "mpeg4", {"bf": "2", "g": "5"}),
        ("avi", "mpeg4", {"g": "4"}),
        ("avi", "mpeg4", {"bf": "2", "g": "6"}),
        ("mkv", "mpeg4", {"bf": "2", "g": "3"}),
    ],
)
def test_the_frames_asked_for_are_those_that_come(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str]
) -> None:
    path = tmp_path / f"clip.{suffix}"
    save_video(path, range(12), codec, **options)
    for count, places in ((1, (6,)), (2, (3, 9)), (3, (2, 6, 10)), (5, (1, 3, 6, 8, 10))):
        # (2 k + 1) 12 / (2 count), rounded down: the middles of as many equal parts.
        frames = read_frames(str(path), count)
        found = [frame.resize((1, 1)).getpixel((0, 0)) for frame in frames]
        assert [pixel[0] // STEP for pixel in found] == list(places), found
        assert frames[0].mode == "RGB" and frames[0].size == (32, 32)


def test_a_short_video_gives_frames_twice(tmp_path: Path) -> None:
    save_video(tmp_path / "clip.mp4", [3])
    frames = read_frames(str(tmp_path / "clip.mp4"), 3)
    assert [round(frame.getpixel((0, 0))[0], -1) for frame in frames] == [grey(3)] * 3


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_file_that_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UnreadableSample, match="clip.mp4"):
        read_frames(str(tmp_path / "clip.mp4"), 1)


def test_a_sound_is_no_video(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "clip.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        container.mux(stream.encode(None))
    with pytest.raises(UnreadableSample, match="clip.wav"):
        read_frames(str(tmp_path / "clip.wav"), 1)


def test_ucf101_by_its_centre_frames(tmp_path: Path) -> None:
    write_ucf101(tmp_path)
    found = score(tmp_path, "ucf101", NAMES)
    assert found.images == 4 and found.score == found.top1 == pytest.approx(3 / 4)
    assert "over its first test list" in found.notes
    # Of five frames four are painted 4, so the mean of their features is nearest to that.
    averaged = score(tmp_path, "ucf101", NAMES, frames=5)
    assert averaged.top1 == 0.0 and averaged.notes[0].startswith("features averaged over 5 frames")


@pytest.mark.parametrize("flat", [False, True])
def test_kinetics_is_the_mean_of_top1_and_top5(tmp_path: Path, flat: bool) -> None:
    write_kinetics(tmp_path, flat=flat)
    found = score(tmp_path, "kinetics400", KINETICS)
    assert (found.top1, found.top5) == pytest.approx((1 / 3, 2 / 3))
    assert found.score == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert any("6 of its 9 videos are not there" in note for note in found.notes) == flat


def test_a_torn_video_is_left_out_and_named(tmp_path: Path) -> None:
    write_kinetics(tmp_path, flat=False)
    next((tmp_path / "kinetics400/val/bowling").iterdir()).write_bytes(b"torn")
    found = score(tmp_path, "kinetics400", KINETICS)
    assert found.images == 2 and found.top1 == pytest.approx(1 / 2) and len(found.unreadable) == 1


def test_layouts_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "UCF-101").mkdir()
    with pytest.raises(UnveilError, match="there is no ucfTrainTestlist/ in it or beside it"):
        open_zero_shot_suites(["ucf101"], tmp_path)
    (tmp_path / "ucfTrainTestlist").mkdir()
    with pytest.raises(UnveilError, match="the lists in .* cannot be read"):
        open_zero_shot_suites(["ucf101"], tmp_path)
    (tmp_path / "kinetics600").mkdir()
    with pytest.raises(UnveilError, match="there is no val/ in it"):
        open_zero_shot_suites(["kinetics600"], tmp_path)
    (tmp_path / "kinetics600/val").mkdir()
    with pytest.raises(UnveilError, match="val/ has no folders of videos"):
        open_zero_shot_suites(["kinetics600"], tmp_path)
    write_kinetics(tmp_path, flat=True)
    save_video(tmp_path / "kinetics400/val/stranger.mp4", [0])
    with pytest.raises(UnveilError, match="1 of its 4 videos are not in .*val.csv, stranger.mp4 for one"):
        open_zero_shot_suites(["kinetics400"], tmp_path)
    (tmp_path / "kinetics400/annotations/val.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UnveilError, match="is not Kinetics' table"):
        open_zero_shot_suites(["kinetics400"], tmp_path)
