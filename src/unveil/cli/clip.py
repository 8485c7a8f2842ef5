"""`unveil clip`: images and texts in one space."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from unveil.cli.clip_eval import ClipEval
from unveil.cli.clip_search import ClipSearch
from unveil.cli.clip_train import ClipTrain


@dataclass(frozen=True)
class Clip:
    """Train a CLIP, measure it zero-shot, find images by text.

    Example: unveil clip train pairs/ --vision-init runs/mine
    """

    what: (
        Annotated[ClipTrain, tyro.conf.subcommand(name="train")]
        | Annotated[ClipEval, tyro.conf.subcommand(name="eval")]
        | Annotated[ClipSearch, tyro.conf.subcommand(name="search")]
    )
    """What to do with it."""

    def run(self) -> int:
        return self.what.run()
