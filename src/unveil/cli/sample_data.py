"""`unveil sample-data`: the embedded fashion scenes as files in public formats."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unveil.config import UnveilError

Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]


@dataclass(frozen=True)
class SampleData:
    """Write the embedded sample set in a public format, for trying things out without a download.

    Example: unveil sample-data scenes --as coco --size 128 --garments 3
    """

    out: Annotated[Path, tyro.conf.Positional]
    """New folder."""
    kind: Annotated[Literal["folders", "coco", "masks", "captions", "video"], tyro.conf.arg(name="as")] = "folders"
    """Class folders, COCO annotations, semantic masks, image-text pairs, or moving garments."""
    train: Number = None
    """Training scenes. Left out, as the other numbers: what suits the format."""
    test: Number = None
    """Test scenes; their garments are others. Left out: a fifth of the training scenes."""
    size: Number = None
    """Side of a scene, pixels."""
    garments: Number = None
    """Most garments in a scene."""
    frames: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """Of each video."""

    def run(self) -> int:
        from unveil.cli.terminal import bar
        from unveil.data.samples.writers import default_scenes, write_samples

        for name in ("train", "test", "size", "garments", "frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UnveilError(f"--{name} is {value}; give at least 1")
        scenes = default_scenes(self.kind)
        if self.train is not None:
            scenes = replace(scenes, count=self.train)
        if self.size is not None:
            scenes = replace(scenes, size=self.size)
        if self.garments is not None:
            scenes = replace(scenes, garments=(min(scenes.garments[0], self.garments), self.garments))
        test = max(1, scenes.count // 5) if self.test is None else self.test
        with bar("writing scenes") as progress:
            write_samples(self.out, self.kind, scenes, test_count=test, frames=self.frames, progress=progress)
        print(f"{scenes.count:,} training and {test:,} test scenes of {scenes.size} px as {self.kind} in {self.out}")
        return 0
