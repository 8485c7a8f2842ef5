"""Videos of a few grey frames, and video benchmarks made of them."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from tests.tasks.miniature_suites import write

STEP = 20
"""Grey values between two classes: compression shifts them a little."""


def grey(code: int) -> int:
    """In the middle of what `PaintedEmbedder(step=STEP)` takes for the code."""
    return STEP * code + STEP // 2


def save_video(path: Path, codes: Sequence[int], codec: str = "mpeg4", **options: str) -> None:
    """One frame for each code, 25 a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for code in codes:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey(code), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


UCF = ("ApplyEyeMakeup", "YoYo", "TaiChi", "BabyCrawling", "WallPushups", "Archery", "Biking", "Bowling", "Drumming")


def write_ucf101(root: Path) -> None:
    """Four test videos: classes 0, 1, 1, 2, of which the last is painted 4; one is for training."""
    tests = []
    for number, (label, code) in enumerate(((0, 0), (1, 1), (1, 1), (2, 4))):
        name = f"{UCF[label]}/v_{UCF[label]}_g01_c{number:02d}.avi"
        save_video(root / "UCF-101" / name, [4, 4, code, 4, 4])
        tests.append(name)
    save_video(root / "UCF-101/YoYo/v_YoYo_g08_c01.avi", [8])
    lists = root / "ucfTrainTestlist"
    write(lists / "testlist01.txt", "\r\n".join(tests) + "\r\n")
    write(lists / "trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 2\r\n")
    write(lists / "classInd.txt", "".join(f"{number} {name}\r\n" for number, name in enumerate(UCF, start=1)))


KINETICS = ("abseiling", "air drumming", "bowling", "crying", "dodgeball", "eating cake", "golf", "hula", "juggling")
CLIPS = (("abseiling", 0), ("air drumming", 6), ("bowling", 4))
"""Class and what is painted: right, right in fifth place (6, 7, 8, 0, 1), wrong."""


def write_kinetics(root: Path, *, flat: bool, size: int = 400) -> None:
    """In class folders, or side by side with the table."""
    folder = root / f"kinetics{size}"
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number, (name, code) in enumerate(CLIPS):
        clip = f"-id_{number}_0000{number}0_0000{number + 1}0.mp4"
        save_video(folder / "val" / ("" if flat else name) / clip, [code] * 3)
        rows.append(f"{name},-id_{number},{10 * number},{10 * (number + 1)},val")
    for name in KINETICS:
        if flat and name not in dict(CLIPS):
            rows.append(f"{name},gone_{KINETICS.index(name)},3,13,val")
        elif not flat:
            (folder / "val" / name).mkdir(exist_ok=True)
    if flat:
        write(folder / "annotations/val.csv", "\n".join(rows) + "\n")
