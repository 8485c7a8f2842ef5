"""What becomes of captions in training: how many are cut off, and whether a batch holds one of them twice."""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from unveil.tasks.contrastive.tokens import Tokenizer

logger = logging.getLogger(__name__)

Steps = Callable[[int, int], Iterator[list[dict[str, Any]]]]

FIRST_STEPS = 100
"""Looked through for repeated captions; afterwards one step in as many."""


class CaptionWatch:
    """A loader's `steps`, looked at on their way; what they yield is left as it is.

    One warning names a caption that stands in a global batch more than once, and the share of such pairs: the loss
    takes their images for wrong although they are right. At the end the captions that were cut off are logged.

    Args:
        steps: (start, stop) -> micro-batches of each step, made by `CaptionedCollate`.
        gather: gives the values of all processes by rank; every process calls it at the same steps.
        warn_of_repeats: False where it is known that there are few different captions.
    """

    def __init__(
        self,
        steps: Steps,
        tokenizer: Tokenizer,
        gather: Callable[[Any], list[Any]],
        *,
        warn_of_repeats: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.seen = 0
        """Captions of this process so far."""
        self.cut = 0
        """Of them, those longer than the context."""
        self._steps = steps
        self._gather = gather
        self._warned = not warn_of_repeats

    def steps(self, start: int, stop: int) -> Generator[list[dict[str, Any]], None, None]:
        """As the loader's."""
        try:
            with closing(self._steps(start, stop)) as steps:  # type: ignore[type-var]
                for step, batches in enumerate(steps, start=start):
                    self.seen += sum(len(batch["cut"]) for batch in batches)
                    self.cut += sum(int(batch["cut"].sum()) for batch in batches)
                    if not self._warned and (step < start + FIRST_STEPS or step % FIRST_STEPS == 0):
                        self._look_for_repeats(step, batches)
                    yield batches
        finally:
            if self.cut:
                share, length = self.cut / self.seen, self.tokenizer.context_length
                logger.warning(
                    "%s of %s captions (%.2f %%) had more than %d tokens and were cut off there",
                    f"{self.cut:,}",
                    f"{self.seen:,}",
                    100 * share,
                    length,
                )

    def _look_for_repeats(self, step: int, batches: list[dict[str, Any]]) -> None:
        own = torch.cat([batch["caption_id"] for batch in batches])
        everyones = torch.cat(self._gather(own))
        repeated = repeated_captions(everyones)
        if not repeated.any():
            return
        self._warned = True
        most = everyones.mode().values
        tokens = torch.cat([batch["tokens"] for batch in batches])[own == most]
        texts = self._gather(self.tokenizer.decode(tokens[0]) if len(tokens) else None)
        logger.warning(
            "in step %d %.1f %% of the pairs share their caption with another one of the batch, most of all “%s” (%d "
            "of %d); the loss takes each for wrong, so give more varied captions or a smaller batch",
            step + 1,
            100 * repeated.float().mean().item(),
            next(text for text in texts if text is not None),
            int((everyones == most).sum()),
            len(everyones),
        )


def repeated_captions(caption_ids: Int64[Tensor, "b"]) -> Bool[Tensor, "b"]:
    """True where another row has the same caption."""
    _, places, counts = caption_ids.unique(return_inverse=True, return_counts=True)
    return counts[places] > 1
