"""`unveil sample-data`: the embedded fashion scenes as files in public formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unveil.config import FashionScenes


@dataclass(frozen=True)
class SampleData:
    """Write the embedded sample set in a public format, for trying things out without a download.

    Example: unveil sample-data scenes --as coco --size 128 --garments 3
    """

    out: Annotated[Path, tyro.conf.Positional]
    """New folder."""
    kind: Annotated[Literal["folders", "coco", "masks", "captions", "video"], tyro.conf.arg(name="as")] = "folders"
    """Class folders, COCO annotations, semantic masks, image-text pairs, or moving garments."""
    train: int = 1000
    """Training scenes."""
    test: int = 200
    """Test scenes; their garments are others."""
    size: int = 64
    """Side of a scene, pixels."""
    garments: int = 1
    """Most garments in a scene."""
    frames: int = 16
    """Of each video."""

    def run(self) -> int:
        from unveil.data.samples.writers import write_samples

        config = FashionScenes(size=self.size, count=self.train, garments=(1, self.garments))
        write_samples(self.out, self.kind, config, test_count=self.test, frames=self.frames)
        print(f"{self.train:,} training and {self.test:,} test scenes of {self.size} px as {self.kind} in {self.out}")
        return 0
