"""`unveil embed`: features of all images of a folder in one file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from unveil.cli.model_options import (
    Files,
    ModelOptions,
    Name,
    Number,
    check_at_least_one,
    check_workers,
    left_out,
    memory_for,
)
from unveil.config import RevColV2Config, UnveilError

if TYPE_CHECKING:
    from unveil.build.embedding import Extract
    from unveil.build.image_batches import PlainView


class Extractor(NamedTuple):
    """What is embedded, and how."""

    extract: "Extract"
    view: "PlainView"
    shape: tuple[int, ...]
    """Of one image's features."""
    settings: dict[str, Any]
    """JSON values that describe it, for the file."""


@dataclass(frozen=True)
class Embed(ModelOptions):
    """Write features of images, with their paths; interrupted, the same command goes on.

    Example: unveil embed runs/mine photos/ --out photos.npz
    """

    model: Name
    """A run, a file of weights, timm/NAME, or open_clip's MODEL/PRETRAINED."""
    files: Files
    """Folders (searched to any depth), .tar shards, images, or patterns of them."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
    """New file, .npz or .parquet."""
    what: Annotated[Literal["mean", "cls", "patches", "clip"], tyro.conf.arg(help_behavior_hint="")] = "mean"
    """Mean of the patch tokens, the cls token, every patch token; or a CLIP's unit vectors, for unveil clip search."""
    half: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Write float16."""
    overwrite: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Replace FILE where it is there already."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 32
    """Images per forward pass."""
    workers: Number = None
    """Processes that read images."""

    def run(self) -> int:
        from unveil.build.embedding import embed
        from unveil.build.embedding_file import check_out
        from unveil.cli.terminal import bar, counting, log_on_terminal
        from unveil.data.sources.open import open_images

        check_at_least_one(batch_size=self.batch_size)
        check_workers(self.workers)
        check_out(self.out, overwrite=self.overwrite)
        with log_on_terminal(0):
            with counting("images") as count:
                source = open_images(self.files, on_progress=count)
            extractor = self._clip() if self.what == "clip" else self._backbone(self.what)
            with self._going_on(), bar("embedding") as progress, memory_for(self.batch_size):
                done = embed(
                    source,
                    extractor.extract,
                    self.out,
                    view=extractor.view,
                    shape=extractor.shape,
                    settings={"model": self.model, "what": self.what, **extractor.settings},
                    half=self.half,
                    batch_size=self.batch_size,
                    workers=self.workers,
                    overwrite=self.overwrite,
                    on_progress=progress,
                )
        size = " x ".join(map(str, (done.count, *done.shape)))
        print(f"wrote {self.out}: {self.what}, {size} {'float16' if self.half else 'float32'}")
        if done.unreadable:
            print(left_out(len(done.unreadable), len(source)), file=sys.stderr)
        return 0

    def _backbone(self, what: str) -> "Extractor":
        """Raises UnveilError where the model has no such features."""
        from unveil.build.embedding import weights_digest
        from unveil.build.image_batches import MiddleView

        model = self.load(self.model)
        if what == "cls" and isinstance(model.backbone.config, RevColV2Config):
            raise UnveilError(f"{self.model} is a RevColV2, which has no cls token; give --what mean, or patches")
        rows = columns = model.image_size // model.stride
        width = model.backbone.config.width
        return Extractor(
            lambda images: getattr(model.features(images, batch_size=self.batch_size), what),
            MiddleView(model.crop, model.image_size),
            (rows * columns, width) if what == "patches" else (width,),
            {
                "weights": weights_digest(model.backbone),
                "grid": [rows, columns],
                "normalization": model.normalization,
                "precision": model.precision.format,
            },
        )

    def _clip(self) -> "Extractor":
        """Raises UnveilError where the model is no CLIP."""
        from unveil.build.image_batches import PreparedView

        model = self.load_clip(self.model)
        view = PreparedView(model.transform, model.image_size)
        return Extractor(model.encode_images, view, (model.width,), {"weights": model.identity})

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            print(f"{self.out}.parts keeps what is done; the same command goes on from there", file=sys.stderr)
            raise
