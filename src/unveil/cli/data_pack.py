"""`unveil data pack`: folders, tables and tars as WebDataset shards."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from unveil.cli.model_options import Number, check_workers
from unveil.config import UnveilError

if TYPE_CHECKING:
    from unveil.data.sources.base import EncodedSource


@dataclass(frozen=True)
class DataPack:
    """Write images as WebDataset tars with their index; ended, even killed, the same command goes on.

    Example: unveil data pack photos/ more/ --to shards --short-side 320
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER...", help_behavior_hint="")]
    """Folders, tars, tables, or patterns of them; joined in order."""
    to: Annotated[Path, tyro.conf.arg(metavar="SHARDS", help_behavior_hint="")]
    """New folder."""
    keep: Annotated[Literal["images", "labels", "captions"], tyro.conf.arg(help_behavior_hint="")] = "images"
    """What goes with the images: nothing; labels of class folders, tables, tars; captions of tables, tars, COCO."""
    short_side: Number = None
    """Bring larger images to this shorter side, pixels, as JPEG. Left out: every file as it is."""
    quality: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 92
    """Of those JPEGs."""
    samples_per_shard: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 10_000
    """Images in one tar."""
    leave_out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Names of images, one a line: the leave_out.txt of unveil data check."""
    workers: Number = None
    """Processes. Left out: one for each core."""

    def run(self) -> int:
        from unveil.cli.terminal import bar, counting, log_on_terminal
        from unveil.data.pack import PackSettings, pack, read_leave_out
        from unveil.data.processes import usual_workers

        check_workers(self.workers)
        settings = PackSettings(
            samples_per_shard=self.samples_per_shard, short_side=self.short_side, quality=self.quality
        )
        self._check_folder()
        leave_out = frozenset() if self.leave_out is None else read_leave_out(self.leave_out)
        with log_on_terminal(0):
            with counting("images") as count:
                source, classes = self._open(count)
            kind = "" if classes is None else f" of {len(classes):,} classes"
            print(f"{len(source):,} images{kind} from {', '.join(self.images)}", flush=True)
            with bar("packing") as progress:
                packed = pack(
                    source,
                    self.to,
                    settings,
                    classes=classes,
                    leave_out=leave_out,
                    workers=usual_workers() if self.workers is None else self.workers,
                    on_progress=progress,
                )
        before = f", {packed.found:,} of them from before" if packed.found else ""
        print(
            f"{packed.samples:,} images, {packed.bytes / 2**30:.2f} GiB, in {packed.shards:,} tars{before}: {self.to}"
        )
        left_out = sum(packed.left_out.values())
        if left_out:
            most = sorted(packed.left_out.items(), key=lambda item: -item[1])[:3]
            reasons = "; ".join(f"{count:,} {reason}" for reason, count in most)
            print(f"left out {left_out:,} images ({reasons}); {self.to}/contents names them")
        return 0

    def _open(self, count: Callable[[int], None] | None) -> tuple["EncodedSource", tuple[str, ...] | None]:
        """The images, and the names of their labels."""
        from unveil.data.sources.base import EncodedSource
        from unveil.data.sources.captions import open_captioned
        from unveil.data.sources.labelled import open_labelled
        from unveil.data.sources.open import open_images

        classes = None
        if self.keep == "labels":
            source, classes = open_labelled(self.images, on_progress=count)
        elif self.keep == "captions":
            source = open_captioned(self.images, on_progress=count)
        else:
            source = open_images(self.images, on_progress=count)
        assert isinstance(source, EncodedSource)
        return source, classes

    def _check_folder(self) -> None:
        """Raises UnveilError where the shards would lie among the images, and be found there the next time."""
        out = os.path.realpath(self.to)
        for path in self.images:
            folder = os.path.realpath(os.path.expanduser(path))
            if os.path.commonpath([out, folder]) == folder:
                raise UnveilError(f"--to {self.to} lies in {path}, which is packed; give a folder elsewhere")
