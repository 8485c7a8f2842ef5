"""Writes fashion scenes out in the public formats that the readers of this package, and other tools, take."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from unveil.config import FashionScenes, UnveilError
from unveil.data.samples.coco import CocoFiles
from unveil.data.samples.garments import ASSET, CLASS_NAMES
from unveil.data.samples.motion import MOTION_NAMES
from unveil.data.samples.scenes import Clip, FashionSceneSource, Scene

Kind = Literal["folders", "coco", "masks", "captions", "video"]

SAMPLES_PER_TAR = 1000

PARTIAL = ".partial"
"""Folder inside OUT that everything is written to before it is moved to its place."""


def default_scenes(kind: Kind) -> FashionScenes:
    """Settings under which the scenes of this kind make a small task that a network can learn."""
    match kind:
        case "folders":
            return FashionScenes(count=2000, size=64)
        case "video":
            return FashionScenes(count=400, size=64, scale=(0.4, 0.7))
        case _:
            return FashionScenes(count=1000, size=224, garments=(1, 3), scale=(0.3, 0.6), out_of_focus=False)


def write_samples(
    out: Path,
    kind: Kind,
    config: FashionScenes,
    *,
    test_count: int | None = None,
    frames: int = 16,
    frames_per_second: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes `config.count` training and `test_count` test scenes (a fifth of it if left out) into the folder `out`.

        folders   {train,test}/<class>/000017.png
        coco      {train,test}/000017.png, annotations/{instances,captions}_{train,test}.json
        masks     {images,masks}/{train,test}/000017.png (0 = background), classes.txt
        captions  tars/{train,test}-000000.tar (WebDataset: png, txt, json), and
                  files/{train,test}/000017.png with files/{train,test}/captions.csv (path, caption)
        video     {train,test}/<motion>/000017.mp4 of `frames` frames,
                  {train,test}.csv (path label), labels.csv (id, name)

    Files are numbered by scene; a space in a class's name becomes "_" in its folder's. `config.split` is not used.
    `out` must be new or empty and is filled at the end, all at once. `progress` is called with scenes done and in all.

    Raises UnveilError when `out` holds files or cannot be written, or when video cannot be encoded.
    """
    config = replace(config, split="train")
    test = replace(config, split="test", count=max(1, config.count // 5) if test_count is None else test_count)
    sources = [FashionSceneSource(config), FashionSceneSource(test)]
    if kind == "video":
        _check_video(config, frames)
    partial = out / PARTIAL
    try:
        created = not out.exists()
        if out.exists() and not out.is_dir():
            raise UnveilError(f"{out} is a file: name a new folder")
        if not created and any(entry.name != PARTIAL for entry in out.iterdir()):
            raise UnveilError(f"{out} is not empty: name a new folder, or empty this one")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write(partial, kind, sources, frames, frames_per_second, progress)
            for entry in partial.iterdir():
                entry.rename(out / entry.name)
        finally:
            shutil.rmtree(partial)
            if created and not any(out.iterdir()):
                out.rmdir()
    except OSError as error:
        raise UnveilError(f"cannot write samples into {out}: {error}") from error


def _write(
    root: Path,
    kind: Kind,
    sources: list[FashionSceneSource],
    frames: int,
    frames_per_second: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    done, total = 0, sum(len(source) for source in sources)
    for source in sources:
        match kind:
            case "folders":
                steps = _write_folders(root, source)
            case "coco":
                steps = _write_coco(root, source)
            case "masks":
                steps = _write_masks(root, source)
            case "captions":
                steps = _write_captions(root, source)
            case "video":
                steps = _write_video(root, source, frames, frames_per_second)
        for _ in steps:
            done += 1
            if progress is not None:
                progress(done, total)
    settings = json.dumps(asdict(sources[0].config))
    rights = ASSET.with_name("README.md").read_text(encoding="utf-8")
    about = f"Fashion scenes, written by unveil as {kind}: garments dyed and pasted on photos."
    (root / "README.md").write_text(f"{about}\n\n    {settings}\n\n{rights}", encoding="utf-8")


def _scenes(source: FashionSceneSource) -> Iterator[tuple[int, Scene]]:
    for number in range(source.config.first, source.config.first + len(source)):
        yield number, source.scene(number)


def _folder_name(name: str) -> str:
    return name.replace(" ", "_")


def _save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _save_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_folders(root: Path, source: FashionSceneSource) -> Iterator[None]:
    for name in CLASS_NAMES:
        # All of them in both splits, however few scenes there are: readers number classes by their folders.
        (root / source.config.split / _folder_name(name)).mkdir(parents=True)
    for number, scene in _scenes(source):
        _save(root / source.config.split / _folder_name(CLASS_NAMES[scene.label]) / f"{number:06d}.png", scene.image)
        yield


def _write_coco(root: Path, source: FashionSceneSource) -> Iterator[None]:
    split = source.config.split
    files = CocoFiles(f"fashion scenes, {split}")
    for number, scene in _scenes(source):
        name = f"{number:06d}.png"
        _save(root / split / name, scene.image)
        files.add(number, name, scene)
        yield
    _save_json(root / "annotations" / f"instances_{split}.json", files.instances)
    _save_json(root / "annotations" / f"captions_{split}.json", files.captions)


def _write_masks(root: Path, source: FashionSceneSource) -> Iterator[None]:
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in ("background", *CLASS_NAMES)), encoding="utf-8")
    for number, scene in _scenes(source):
        for folder, image in (("images", scene.image), ("masks", scene.semantic_mask)):
            _save(root / folder / source.config.split / f"{number:06d}.png", image)
        yield


def _write_captions(root: Path, source: FashionSceneSource) -> Iterator[None]:
    split = source.config.split
    files, tars = root / "files" / split, root / "tars"
    files.mkdir(parents=True)
    tars.mkdir(exist_ok=True)
    rows = [("path", "caption")]
    scenes = _scenes(source)
    for shard, start in enumerate(range(0, len(source), SAMPLES_PER_TAR)):
        with tarfile.open(tars / f"{split}-{shard:06d}.tar", "w") as tar:
            for _ in range(start, min(start + SAMPLES_PER_TAR, len(source))):
                number, scene = next(scenes)
                picture = io.BytesIO()
                Image.fromarray(scene.image).save(picture, "PNG")
                path = files / f"{number:06d}.png"
                path.write_bytes(picture.getvalue())
                rows.append((path.name, scene.caption))
                about = json.dumps(_about(number, scene)).encode()
                for ending, content in (("png", picture.getvalue()), ("txt", scene.caption.encode()), ("json", about)):
                    member = tarfile.TarInfo(f"{number:06d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                yield
    _save_rows(files / "captions.csv", rows)


def _about(number: int, scene: Scene) -> dict[str, Any]:
    garments = [
        {"class": CLASS_NAMES[garment.label], "colour": garment.colour, "box": list(garment.box)}
        for garment in scene.garments
    ]
    return {"number": number, "caption": scene.caption, "label": scene.label, "garments": garments}


def _save_rows(path: Path, rows: list[tuple[str, str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def _write_video(root: Path, source: FashionSceneSource, frames: int, frames_per_second: int) -> Iterator[None]:
    split = source.config.split
    _save_rows(root / "labels.csv", [("id", "name"), *((str(label), name) for label, name in enumerate(MOTION_NAMES))])
    rows = []
    for number in range(source.config.first, source.config.first + len(source)):
        clip = source.clip(number, frames)
        path = Path(split) / MOTION_NAMES[clip.motion] / f"{number:06d}.mp4"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        _encode(root / path, clip, frames_per_second)
        rows.append((path.as_posix(), str(clip.motion)))
        yield
    _save_rows(root / f"{split}.csv", rows, delimiter=" ")


def _check_video(config: FashionScenes, frames: int) -> None:
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise UnveilError('writing video needs PyAV: pip install "unveil[video]"') from error
    if config.size % 2:
        raise UnveilError(f"H.264 video cannot have {config.size} x {config.size} pixels: choose an even size")
    if frames < 2:
        raise UnveilError(f"{frames} frames do not show a motion: ask for 2 or more")


def _encode(path: Path, clip: Clip, frames_per_second: int) -> None:
    import av

    size = clip.frames.shape[1]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options={"crf": "18", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for pixels in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
