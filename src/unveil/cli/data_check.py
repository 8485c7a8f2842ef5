"""`unveil data check`: what is wrong with a set of images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from unveil.cli.model_options import Number, check_workers

if TYPE_CHECKING:
    from PIL import Image

    from unveil.data.check.report import CheckReport
    from unveil.data.sources.base import Source

SHEET_GROUPS = 40
"""Most groups of duplicates on the picture."""


@dataclass(frozen=True)
class DataCheck:
    """Look for unreadable files, duplicates, odd sizes, and overlap with a held-out set; changes nothing.

    Example: unveil data check photos/ --held-out test/ --out check
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE...", help_behavior_hint="")]
    """Folders, .tar shards, images, or patterns of them."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = Path("check")
    """For report.txt, report.json, leave_out.txt and duplicates.png."""
    held_out: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="SOURCE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """Images that must not be among them, such as a test set; may be given several times."""
    near: Annotated[int, tyro.conf.arg(metavar="BITS", help_behavior_hint="")] = 15
    """Of 256, in which the hashes of near duplicates differ at most."""
    smallest_side: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 32
    """Pixels; images with a smaller side are odd."""
    largest_aspect: Annotated[float, tyro.conf.arg(metavar="RATIO", help_behavior_hint="")] = 4.0
    """Longer side over shorter; images with more are odd."""
    workers: Number = None
    """Processes. Left out: one for each core."""

    def run(self) -> int:
        from unveil.cli.terminal import bar, counting, log_on_terminal
        from unveil.data.check.report import CheckSettings, compare
        from unveil.data.check.scan import scan_images
        from unveil.data.processes import usual_workers
        from unveil.data.sources.base import EncodedSource
        from unveil.data.sources.open import open_images
        from unveil.engine.disk import needing_space

        check_workers(self.workers)
        settings = CheckSettings(near=self.near, smallest_side=self.smallest_side, largest_aspect=self.largest_aspect)
        workers = usual_workers() if self.workers is None else self.workers
        with log_on_terminal(0):
            scans = []
            for paths in filter(None, (self.images, self.held_out)):
                with counting("images") as count:
                    source = open_images(paths, on_progress=count)
                assert isinstance(source, EncodedSource)
                with bar("reading") as progress:
                    scans.append((source, scan_images(source, workers=workers, on_progress=progress)))
        (source, scan), *others = scans
        report = compare(scan, settings, others[0][1] if others else None)
        text = report.as_text()
        print(text)
        with needing_space(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "report.txt").write_text(text + "\n", encoding="utf-8")
            (self.out / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
            listed = "".join(f"{name}\n" for name in report.to_leave_out())
            (self.out / "leave_out.txt").write_text(listed, encoding="utf-8")
            if report.exact or report.near:
                self._save_sheet(report, source)
        print(f"{self.out}: report.txt, report.json, leave_out.txt (for unveil data pack --leave-out)", end="")
        print(", duplicates.png" if report.exact or report.near else "")
        return 0

    def _save_sheet(self, report: "CheckReport", source: "Source") -> None:
        from unveil.data.sources.base import UnreadableSample
        from unveil.visualize.duplicate_sheet import ACROSS, Copies, duplicate_sheet

        def show(place: int) -> tuple[str, "Image.Image | None"]:
            width, height = report.sizes[place].tolist()
            try:
                picture = source[place].image
            except UnreadableSample:
                picture = None
            return f"{Path(report.names[place]).name}, {width} x {height}", picture

        # The near ones first: they are the ones to judge.
        groups = [("near duplicates", group) for group in report.near] + [
            ("same file", group) for group in report.exact
        ]
        copies = [
            Copies(f"{what}, {len(group):,}: {report.names[group[0]]}", [show(place) for place in group[:ACROSS]])
            for what, group in groups[:SHEET_GROUPS]
        ]
        duplicate_sheet(copies).save(self.out / "duplicates.png")
