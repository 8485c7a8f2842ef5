"""Copying ahead changes neither batches nor their order; on a processor it is nothing at all."""

from collections.abc import Iterator

import pytest
import torch

from unveil.engine.copies import copied_ahead
from unveil.engine.task import Batch


def steps(count: int) -> Iterator[list[Batch]]:
    for step in range(count):
        images = [torch.full((2, 3), 10 * step + number, dtype=torch.uint8) for number in range(2)]
        yield [
            {"image": image.pin_memory() if torch.cuda.is_available() else image, "names": [str(step)] * 2}
            for image in images
        ]


def test_on_a_processor_there_is_nothing_to_copy() -> None:
    batches = steps(3)
    assert copied_ahead(batches, torch.device("cpu")) is batches


@pytest.mark.gpu
def test_on_a_gpu_all_batches_come_in_order_on_the_device() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    found = []
    for micro_batches in copied_ahead(steps(5), device):
        # Work that is still going on when the next copies start.
        torch.randn(2000, 2000, device=device) @ torch.randn(2000, 2000, device=device)
        for batch in micro_batches:
            assert batch["image"].device == device and batch["names"] == [str(len(found) // 2)] * 2
            found.append(batch["image"] + 0)
    assert [image.unique().tolist() for image in found] == [
        [10 * step + number] for step in range(5) for number in range(2)
    ]


@pytest.mark.gpu
def test_nothing_to_copy_is_an_end() -> None:
    assert list(copied_ahead(steps(0), torch.device("cuda"))) == []
