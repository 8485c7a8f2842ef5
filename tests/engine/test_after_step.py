"""What follows the weights: called once a step, told of skipped ones, its metrics logged."""

import torch
from torch import Tensor

from tests.engine.toy import CPU, Record, Regression, Steps, optimization, settings
from unveil.engine import Batch, train


class Overflowing(Regression):
    """The gradient of sample 13 overflows."""

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        loss, count = super().forward(batch)["loss"]
        loss = loss / 100
        if 13 in batch["sample_numbers"]:
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return {"loss": (loss, count)}


def test_it_is_called_after_every_step_and_told_of_skipped_ones() -> None:
    task, record = Overflowing(), Record()
    calls: list[tuple[bool, Tensor]] = []

    def after_step(updated: bool) -> dict[str, Tensor]:
        calls.append((updated, task.first.weight.detach().clone()))
        return {"calls": torch.tensor(len(calls))}

    train(
        task,
        Steps(micro_batch_size=4),
        optimization=optimization(4),
        settings=settings(precision="fp16", log_every=2),
        parallel=CPU,
        sinks=[record],
        after_step=after_step,
    )
    assert [updated for updated, _ in calls] == [True, False, True, True]
    assert torch.equal(calls[0][1], calls[1][1]), "the weights of a skipped step"
    assert not torch.equal(calls[1][1], calls[2][1]), "those after the step, not before it"
    assert [step for step, _ in record.rows] == [2, 4]
    assert record.values("calls") == [2.0, 4.0]
