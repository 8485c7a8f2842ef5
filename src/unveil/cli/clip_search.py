"""`unveil clip search`: images by what is on them, said in words."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from unveil.cli.model_options import (
    PICTURES,
    ModelOptions,
    Number,
    check_at_least_one,
    check_output,
    check_workers,
    left_out,
    memory_for,
)
from unveil.cli.predict import SHEET
from unveil.config import UnveilError

if TYPE_CHECKING:
    from unveil.build.image_index import IndexedImages
    from unveil.tasks.contrastive.embedder import Embedder

EMBEDDINGS = (".npz", ".parquet")
"""Suffixes of what `unveil embed` writes."""


class Hit(NamedTuple):
    """One image that was found."""

    name: str
    score: float
    """Cosine of image and text."""


@dataclass(frozen=True, kw_only=True)
class ClipSearch(ModelOptions):
    """Find images by text. The second search of a folder looks only at what is new in it.

    Example: unveil clip search photos/ "a red bicycle" --model runs/clip --sheet found.png
    """

    images: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
    """Images, or their features: a file that `unveil embed MODEL FOLDER --what clip` wrote."""
    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
    """What to look for."""
    model: Annotated[str, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """A CLIP: a run, a file of weights, or open_clip's MODEL/PRETRAINED or MODEL/FILE."""
    top_k: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 10
    """Images to find."""
    format: Annotated[Literal["table", "jsonl"], tyro.conf.arg(help_behavior_hint="")] = "table"
    """For people, or for programs: one JSON object an image."""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png", help_behavior_hint="")] = None
    """A picture of what is found (of the first 48)."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 32
    """Images per forward pass."""
    workers: Number = None
    """Processes that read images."""

    def run(self) -> int:
        from unveil.cli.terminal import log_on_terminal
        from unveil.tasks.contrastive.prompts import warn_of_long
        from unveil.tasks.contrastive.retrieval import nearest

        self._check()
        with log_on_terminal(0):
            model = self.load_clip(self.model)
            warn_of_long([self.text], model.context_length)
            indexed = self._embedded(model) if self.images.endswith(EMBEDDINGS) else self._indexed(model)
            query = model.encode_texts([self.text])[0]
        hits = [Hit(indexed.names[row], score) for row, score in nearest(query, indexed.features, self.top_k)]
        print(as_text(hits, self.format), end="", flush=True)
        new = f", {indexed.new:,} of them new" if indexed.new else ""
        searched = f"{len(indexed.names):,} images{new}"
        print(f"searched {searched}", file=sys.stderr)
        if indexed.unreadable:
            print(left_out(indexed.unreadable, len(indexed.names) + indexed.unreadable), file=sys.stderr)
        if self.sheet is not None:
            self._write_sheet(self.sheet, hits, f"{searched} · {self.model}")
        return 0

    def _check(self) -> None:
        """Raises UnveilError for options that cannot be."""
        check_at_least_one(top_k=self.top_k, batch_size=self.batch_size)
        check_workers(self.workers)
        check_output("sheet", self.sheet, PICTURES)
        if not self.text.strip():
            raise UnveilError("the text to look for is empty; say what is on the images, as in 'a red bicycle'")

    def _indexed(self, model: "Embedder") -> "IndexedImages":
        """The features of the folder, from the cache as far as they are there."""
        from unveil.build.image_index import index_folder, index_images
        from unveil.cli.terminal import bar, counting
        from unveil.data.sources.base import Stamped
        from unveil.data.sources.open import open_images
        from unveil.engine.disk import cache_folder

        with counting("images") as count:
            source = open_images([self.images], on_progress=count)
        assert isinstance(source, Stamped)
        with bar("embedding") as progress, memory_for(self.batch_size):
            return index_images(
                source,
                model,
                index_folder(cache_folder() / "search", model, [self.images]),
                batch_size=self.batch_size,
                workers=self.workers,
                on_progress=progress,
            )

    def _embedded(self, model: "Embedder") -> "IndexedImages":
        """Features that were written before.

        Raises:
            UnveilError: the file is something else, or another model's.
        """
        import torch

        from unveil.build.embedding_file import read_embedding
        from unveil.build.image_index import IndexedImages

        features, names, notes = read_embedding(Path(self.images).expanduser())
        again = f"write it again: unveil embed {self.model} FOLDER --what clip --out FILE"
        if notes.get("what") != "clip":
            raise UnveilError(f"{self.images} holds features that no text can be compared with; {again}")
        if notes.get("weights") != model.identity:
            raise UnveilError(f"{self.images} holds features of another model ({notes.get('model')}); {again}")
        return IndexedImages(names=names, features=torch.from_numpy(features.astype("float32")))

    def _write_sheet(self, sheet: Path, hits: Sequence[Hit], subtitle: str) -> None:
        from unveil.build.image_index import find_picture
        from unveil.visualize.figures import save_picture
        from unveil.visualize.search_sheet import Found, search_sheet

        found = [Found(hit.name.rsplit("/", 1)[-1], hit.score, find_picture(hit.name)) for hit in hits[:SHEET]]
        save_picture(search_sheet(self.text, subtitle, found), sheet)
        print(f"wrote {sheet}", file=sys.stderr)


def as_text(hits: Sequence[Hit], form: Literal["table", "jsonl"]) -> str:
    """All images that were found as lines of a format."""
    if form == "jsonl":
        return "".join(json.dumps({"file": name, "score": score}, ensure_ascii=False) + "\n" for name, score in hits)
    width = len(str(len(hits)))
    return "".join(f"{rank:>{width}}  {hit.score:6.3f}  {hit.name}\n" for rank, hit in enumerate(hits, start=1))
