"""Batches brought to the device while it is still at work on those before them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from unveil.engine.task import Batch, move


def copied_ahead(steps: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """Each step's micro-batches on `device`, in order.

    On a GPU the copies of a step run on a stream of their own beside the arithmetic of the step before: out of pinned
    memory, where the loader lays batches. So two steps' batches are there at once. On a processor nothing is copied.
    """
    return _on_a_stream_of_their_own(steps, device) if device.type == "cuda" else steps


def _on_a_stream_of_their_own(steps: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    beside = torch.cuda.Stream(device)

    def copy_next() -> list[Batch] | None:
        with torch.cuda.stream(beside):
            batches = next(steps, None)
            return None if batches is None else [move(batch, device) for batch in batches]

    coming = copy_next()
    while coming is not None:
        batches, at_work = coming, torch.cuda.current_stream(device)
        at_work.wait_stream(beside)
        for value in (value for batch in batches for value in batch.values() if isinstance(value, Tensor)):
            # Its memory must not be given to a later copy as long as the arithmetic needs it.
            value.record_stream(at_work)
        coming = copy_next()
        yield batches
