"""`unveil quickstart`: see in minutes whether masked pre-training helps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unveil.config import UnveilError


@dataclass(frozen=True)
class Quickstart:
    """Pre-train a small network in minutes on a CPU and compare it with the same network from scratch.

    Example: unveil quickstart --out runs/quickstart
    """

    model: Literal["vit", "revcolv2"] = "vit"
    """vit: a teacher's features of hidden patches (EVA). revcolv2: hidden pixels (a reconstruction of RevColV2)."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder for report.html, report.json and the run. Left out: runs/quickstart, with the model where it is no ViT."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Your own images, FOLDER/<class>/<image>, in place of the embedded ones."""
    chapters: Literal["images", "all"] = "images"
    """all: then also captions, a CLIP, zero-shot classification and search by text; about 3 minutes more."""
    set: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE", help_behavior_hint=""), tyro.conf.UseAppendAction
    ] = ()
    """Another setting, as often as needed: --set pretrain.optimization.epochs=4"""

    def run(self) -> int:
        from rich.console import Console
        from rich.table import Table

        from unveil.config.override import override
        from unveil.engine import Parallel
        from unveil.quickstart import clip_table, table, tell, write_report
        from unveil.recipes.quickstart import quickstart, quickstart_columns

        config = override(quickstart() if self.model == "vit" else quickstart_columns(), self.set)
        out = self.out or Path("runs") / ("quickstart" if self.model == "vit" else f"quickstart_{self.model}")
        console = Console()
        if self.data is not None and not self.data.is_dir():
            raise UnveilError(f"{self.data} is not a folder; give one that holds a folder of images for each class")
        with Parallel.start() as parallel:
            if parallel.world_size > 1:
                raise UnveilError("the quickstart runs in one process; start it without torchrun")
            with StoryProgress() as progress:
                story = tell(
                    config,
                    data=self.data,
                    out=out,
                    parallel=parallel,
                    progress=progress,
                    captions=self.chapters == "all",
                )
        pages = write_report(story, out)
        tables = [
            ("Linear probe on frozen features (test accuracy)", *table(story.report["linear_probe"])),
            ("kNN on frozen features (test accuracy)", *table(story.report["knn"])),
            ("Fine-tuning (test accuracy)", *table(story.report["finetune"])),
        ]
        if story.searches:
            tables.append(("A CLIP from images and captions (test images)", *clip_table(story.report["clip"])))
        for title, header, rows in tables:
            shown = Table(title=title, title_justify="left")
            for column in header:
                shown.add_column(column, justify="right" if column else "left")
            for row in rows:
                shown.add_row(*row)
            console.print(shown)
        console.print(f"{story.report['seconds']:.0f} s. Pictures: {pages}", soft_wrap=True)
        if story.searches:
            query, run = story.searches[0].query, out / "clip" / "pretrained_0"
            console.print(f'Search by text: unveil clip search FOLDER "{query}" --model {run}', soft_wrap=True)
        recipe = "" if self.model == "vit" else "--recipe revcolv2_small_cpu "
        console.print(f"Now on your own photos: unveil pretrain PHOTOS {recipe}--out runs/mine", soft_wrap=True)
        return 0


class StoryProgress:
    """The whole story as one bar with the time left; plain lines where there is no terminal."""

    def __enter__(self) -> "StoryProgress":
        import time

        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._now = time.monotonic
        self._began = self._said = time.monotonic()
        self._chapter = ""
        console = Console()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<22}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=console,
            )
            self._task = self._bar.add_task("", total=1.0, left="")
            self._bar.start()
        return self

    def __call__(self, chapter: str, share: float) -> None:
        now = self._now()
        elapsed = now - self._began
        left = f"about {_minutes(elapsed / share - elapsed)} left" if share > 0.02 and elapsed > 5 else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=share, description=chapter, left=left)
        elif chapter != self._chapter or now - self._said > 15:
            print(f"{share:4.0%}  {chapter}" + (f", {left}" if left else ""), flush=True)
            self._said = now
        self._chapter = chapter

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
