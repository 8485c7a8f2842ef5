"""The loss against open_clip's ClipLoss: values and gradients, for one process and for two."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.processes import together
from unveil.engine import Parallel
from unveil.tasks.contrastive.loss import contrastive_loss

PAIRS, WIDTH = 6, 5
LOG_SCALE = 2.3


def towers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of all pairs, and the weights of two towers of one matrix each."""
    generator = torch.Generator().manual_seed(0)
    pixels, words = (torch.randn(PAIRS, 7, generator=generator) for _ in range(2))
    visual, text = (torch.randn(7, WIDTH, generator=generator).requires_grad_() for _ in range(2))
    return pixels, words, visual, text


def embed(inputs: Tensor, weights: Tensor) -> Tensor:
    return torch.nn.functional.normalize(inputs @ weights, dim=1)


def by_open_clip(rank: int = 0, world_size: int = 1, **how: bool) -> dict[str, Tensor]:
    """The mean loss and its gradients as open_clip's training has them: averaged over the processes."""
    from open_clip.loss import ClipLoss

    pixels, words, visual, text = towers()
    log_scale = torch.tensor(LOG_SCALE, requires_grad=True)
    share = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    criterion = ClipLoss(**how, rank=rank, world_size=world_size)
    loss = criterion(embed(pixels[share], visual), embed(words[share], text), log_scale.exp())
    loss.backward()
    found = [loss.detach(), visual.grad, text.grad, log_scale.grad]
    if world_size > 1:
        for value in found:
            torch.distributed.all_reduce(value)
            value.div_(world_size)
    return dict(zip(("loss", "visual", "text", "log_scale"), found, strict=True))


def by_us(rank: int = 0, world_size: int = 1, *, local: bool) -> dict[str, Tensor]:
    """The sums over all processes, divided by the pairs of the global batch: what the engine makes of them."""
    pixels, words, visual, text = towers()
    log_scale = torch.tensor(LOG_SCALE, requires_grad=True)
    share = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    loss = contrastive_loss(embed(pixels[share], visual), embed(words[share], text), log_scale.exp(), local=local)
    loss.backward()
    found = [loss.detach(), visual.grad, text.grad, log_scale.grad]
    for value in found:
        if world_size > 1:
            torch.distributed.all_reduce(value)
        value.div_(PAIRS)
    return dict(zip(("loss", "visual", "text", "log_scale"), found, strict=True))


def assert_equal(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
    for name, value in reference.items():
        torch.testing.assert_close(
            ours[name], value, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("local", [True, False])
def test_one_process(local: bool) -> None:
    assert_equal(by_us(local=local), by_open_clip())


def on_two_processes() -> dict[str, Any]:
    with Parallel.start("cpu") as parallel, warnings.catch_warnings():
        # open_clip gathers with what newer versions of torch call deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        here = {"rank": parallel.rank, "world_size": 2}
        found = {f"ours, local {local}": by_us(**here, local=local) for local in (True, False)}
        theirs = {
            f"open_clip, local {local}": by_open_clip(**here, local_loss=local, gather_with_grad=True)
            for local in (True, False)
        }
        return found | theirs


def test_two_processes_equal_open_clip_and_one_process() -> None:
    alone = by_us(local=True)
    for answers in together(2, on_two_processes):
        assert len(answers) == 4
        for found in answers.values():
            assert_equal(found, alone)


def test_half_precision_of_the_towers_does_not_reach_the_logits() -> None:
    pixels, words, visual, text = towers()
    images, texts = embed(pixels, visual), embed(words, text)
    exact = contrastive_loss(images, texts, torch.tensor(100.0), local=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrastive_loss(images, texts, torch.tensor(100.0), local=True), exact)
