"""Frames of a video file, by their places in it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from unveil.config import UnveilError
from unveil.data.sources.base import Sample, UnreadableSample
from unveil.tasks.contrastive.suites.sources import digest_of

if TYPE_CHECKING:
    from av.container import InputContainer


@dataclass(frozen=True)
class VideoSample(Sample):
    """A video; `image` is the first of its frames."""

    frames: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class VideoSource:
    """Video files with their labels. A sample has `frames` frames, the middles of as many equal parts of the video.

    One frame is that in the centre, which is how the paper's numbers were measured.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    frames: int = 1

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> VideoSample:
        """Raises UnreadableSample where the file cannot be decoded."""
        path = self.paths[index]
        frames = read_frames(path, self.frames)
        return VideoSample(frames[0], path, self.labels[index], index, frames=frames)

    def digest(self) -> dict[str, dict[str, Any]]:
        pairs = zip(self.paths, self.labels, strict=True)
        return digest_of("videos", len(self), *(repr(pair).encode() for pair in pairs))


def read_frames(path: str, count: int) -> tuple[Image.Image, ...]:
    """The frames in the middle of `count` equal parts of a video, RGB; shorter videos give some of theirs twice.

    Raises:
        UnreadableSample: not a video, cut off, or without frames.
        UnveilError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UnveilError("videos are read by PyAV, which is not installed: pip install 'unveil[video]'") from None
    try:
        with av.open(path) as container:
            packets = _packets(container)
        if not packets:
            raise UnreadableSample(path, "it holds no video frame")
        places = [(2 * part + 1) * len(packets) // (2 * count) for part in range(count)]
        with av.open(path) as container:
            found = _decoded(container, packets, sorted(set(places)))
        return tuple(found[place] for place in places)
    except IndexError:
        raise UnreadableSample(path, "it holds no video") from None
    except KeyError:
        raise UnreadableSample(path, "it is cut off") from None
    except (av.FFmpegError, OSError) as error:
        raise UnreadableSample(path, str(error)) from None


class _Packet(NamedTuple):
    """One compressed frame; times are in the stream's time base, and None where the container keeps none."""

    shown: int | None
    decoded: int | None
    is_key: bool


def _packets(container: "InputContainer") -> list[_Packet]:
    """In the order in which the frames are shown, as far as that is known. Nothing is decoded."""
    found = [
        _Packet(packet.pts, packet.dts, packet.is_keyframe)
        for packet in container.demux(container.streams.video[0])
        if packet.size
    ]
    return sorted(found, key=lambda packet: packet.shown or 0) if _is_timed(found) else found


def _is_timed(packets: list[_Packet]) -> bool:
    return all(packet.shown is not None and packet.decoded is not None for packet in packets)


def _decoded(container: "InputContainer", packets: list[_Packet], places: list[int]) -> dict[int, Image.Image]:
    """The frames at these places, which rise."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    timed = _is_timed(packets)
    if timed:
        # The last key frame that is shown no later: one that is only decoded no later lacks what some frames build on.
        key = next((packet for packet in packets[places[0] :: -1] if packet.is_key), packets[0])
        assert key.decoded is not None
        container.seek(key.decoded, stream=stream)
    found: dict[int, Image.Image] = {}
    waiting = list(places)
    for number, frame in enumerate(container.decode(stream)):
        shown = packets[waiting[0]].shown
        early = frame.pts is None or frame.pts < shown if timed and shown is not None else number < waiting[0]
        if early:
            continue
        found[waiting.pop(0)] = frame.to_image()
        if not waiting:
            break
    return found
