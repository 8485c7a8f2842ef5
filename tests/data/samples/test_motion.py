"""Clips: the garments do what the label says, over the still background of their scene."""

from collections import Counter

import numpy as np
import pytest

from unveil.config import FashionScenes
from unveil.data.samples.composition import compose
from unveil.data.samples.motion import MOTION_NAMES, motion_label, motions
from unveil.data.samples.scenes import FashionSceneSource

SMALL = FashionScenes(size=64, scale=(0.3, 0.4))
OPPOSITE = {"left": "right", "up": "down", "clockwise": "counterclockwise", "approaching": "receding"}


def tracks(source: FashionSceneSource, number: int, frames: int) -> list[np.ndarray]:
    """Where each frame differs from the background: h x w, True on the garment."""
    background = np.asarray(source._draw_background(compose(source.config, number).background)).astype(int)
    clip = source.clip(number, frames)
    return [np.abs(frame - background).max(axis=-1) > 24 for frame in clip.frames.astype(int)]


def test_a_clip_is_frames_with_labels_and_a_caption() -> None:
    source = FashionSceneSource(SMALL)
    clip = source.clip(3, 5)
    assert clip.frames.shape == (5, 64, 64, 3) and clip.frames.dtype == np.uint8
    assert clip.label == source.scene(3).label
    assert clip.caption.startswith(source.scene(3).caption)
    name = MOTION_NAMES[clip.motion]
    verb = {"left": "moving ", "right": "moving ", "up": "moving ", "down": "moving "}.get(name, "")
    assert clip.caption.endswith(f"{verb}{name}")
    np.testing.assert_array_equal(clip.frames, FashionSceneSource(SMALL).clip(3, 5).frames)


def test_motions_are_balanced() -> None:
    labels = [motion_label("train", number) for number in range(800)]
    assert Counter(labels) == dict.fromkeys(range(8), 100)
    assert labels != [motion_label("test", number) for number in range(800)]


def test_garments_travel_and_grow_as_the_label_says() -> None:
    source = FashionSceneSource(SMALL)
    checked: Counter[str] = Counter()
    for number in range(120):
        name = MOTION_NAMES[motion_label("train", number)]
        masks = tracks(source, number, 9)
        edge = np.ones((64, 64), bool)
        edge[1:-1, 1:-1] = False
        # Only clips in which the garment is seen whole all the time, on a background of another colour.
        if any(mask.sum() < 60 or (mask & edge).any() for mask in masks):
            continue
        centres = np.array([[axis.mean() for axis in np.nonzero(mask)] for mask in masks])
        down, right = centres[-1] - centres[0]
        growth = masks[-1].sum() / masks[0].sum()
        checked[name] += 1
        if name in ("left", "right"):
            assert right * (1 if name == "right" else -1) > 10 and abs(down) < abs(right)
        elif name in ("up", "down"):
            assert down * (1 if name == "down" else -1) > 10 and abs(right) < abs(down)
        elif name == "approaching":
            assert growth > 1.8
        elif name == "receding":
            assert growth < 1 / 1.8
        else:
            assert np.hypot(down, right) < 14 and 0.75 < growth < 1.35
    assert set(checked) == set(MOTION_NAMES)


def test_turning_is_seen_in_the_pixels() -> None:
    """Angle of a trouser's long axis from second moments: rows grow downwards, so clockwise turns raise it."""
    source = FashionSceneSource(FashionScenes(size=96, scale=(0.6, 0.6)))
    checked: Counter[str] = Counter()
    for number in range(400):
        name = MOTION_NAMES[motion_label("train", number)]
        placement = compose(source.config, number).placements[0]
        if placement.label != 1 or not name.endswith("clockwise"):
            continue
        angles = []
        for mask in tracks(source, number, 9):
            rows, columns = np.nonzero(mask)
            covariance = np.cov(columns, rows)
            angles.append(0.5 * np.arctan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1]))
        steps = np.diff(np.unwrap(angles, period=np.pi))
        checked[name] += int(np.sign(np.median(steps)) == (1 if name == "clockwise" else -1))
        checked["all"] += 1
    assert checked["all"] >= 6
    assert checked["clockwise"] + checked["counterclockwise"] >= 0.85 * checked["all"]


def test_paths_are_smooth_and_centred_on_the_scene() -> None:
    for number in range(80):
        for path in motions("train", number, 2):
            points = np.array([path.at(time) for time in np.linspace(-0.5, 0.5, 101)])
            assert np.abs(np.diff(points[:, :2], axis=0)).max() < 0.02
            assert np.abs(points[:, :2].mean(axis=0)).max() < 0.01
            np.testing.assert_allclose(path.at(0.0)[3], 1.0)


@pytest.mark.parametrize(("name", "opposite"), OPPOSITE.items())
def test_the_order_of_the_frames_is_what_tells_opposites_apart(name: str, opposite: str) -> None:
    """Over many clips, the first frame of one motion has the same statistics as the last of its opposite."""

    def ends(wanted: str, time: float) -> np.ndarray:
        numbers = [n for n in range(6000) if MOTION_NAMES[motion_label("train", n)] == wanted]
        points = np.array([motions("train", n, 1)[0].at(time) for n in numbers])
        points[:, 2] = np.cos(points[:, 2])
        return points.mean(axis=0)

    np.testing.assert_allclose(ends(name, -0.5), ends(opposite, 0.5), atol=0.1)
