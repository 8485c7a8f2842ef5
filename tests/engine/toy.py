"""A task that takes microseconds: regression with a small MLP on samples that are pure functions of their numbers."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unveil.config import AdamWConfig, EngineConfig, OptimizationConfig
from unveil.engine import Batch, Parallel

CPU = Parallel(torch.device("cpu"))


class Regression(nn.Module):
    """y = sum of x; the loss counts a number of outputs that varies from sample to sample."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.first = nn.Linear(4, width)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, 3)

    def forward(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        predicted = self.last(self.norm(torch.relu(self.first(batch["x"] + self.cls_token[0]))))
        errors = (predicted.float() - batch["y"]).square() * batch["weight"]
        return {
            "loss": (errors.sum(), batch["weight"].sum()),
            "samples": (predicted.new_tensor(float(len(batch["x"]))), torch.ones(())),
        }

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        loss, count = self(batch)["loss"]
        return {"sum": loss, "count": count}

    def compute(self, state: dict[str, Tensor]) -> dict[str, float]:
        return {"error": (state["sum"] / state["count"]).item()}

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        named = dict(self.named_parameters())
        return [
            [(name, parameter) for name, parameter in named.items() if name.startswith(prefix)]
            for prefix in ("cls_token", "first", ("norm", "last"))
        ]

    def shard_units(self) -> list[nn.Module]:
        return [self.first]

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}

    def compile_(self) -> None:
        self.compile()


def batch_of(numbers: range) -> Batch:
    """The samples with these numbers. Samples 12 to 15 count nothing: one process's whole share of a step of 8."""
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    x = torch.stack([torch.randn(4, generator=generator) for generator in generators])
    weight = torch.stack([(torch.rand(3, generator=generator) < 0.6).float() for generator in generators])
    weight *= torch.tensor([[not 12 <= number < 16] for number in numbers])
    return {
        "x": x,
        "y": x.sum(dim=1, keepdim=True).expand(-1, 3) + torch.arange(3.0),
        "weight": weight,
        "sample_numbers": torch.tensor(list(numbers)),
        "names": [f"sample {number}" for number in numbers],
    }


class Steps:
    """`steps` of the loop: the global batch cut among processes, then into micro-batches."""

    def __init__(self, global_batch_size: int = 8, micro_batch_size: int = 8, parallel: Parallel = CPU) -> None:
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.parallel = parallel

    def __call__(self, first: int, last: int) -> Iterator[list[Batch]]:
        share = self.global_batch_size // self.parallel.world_size
        for step in range(first, last):
            start = step * self.global_batch_size + self.parallel.rank * share
            yield [
                batch_of(range(at, min(at + self.micro_batch_size, start + share)))
                for at in range(start, start + share, self.micro_batch_size)
            ]


class Record:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def start(self, step: int, total: int) -> None:
        self.rows = [row for row in self.rows if row[0] <= step]

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append((step, metrics))

    def close(self) -> None:
        pass

    def values(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.rows]


def optimization(steps: int = 6, **changes) -> OptimizationConfig:
    given = {
        "optimizer": AdamWConfig(learning_rate=1e-2),
        "global_batch_size": 8,
        "steps": steps,
        "warmup_steps": 2,
        "min_learning_rate": 1e-4,
    } | changes
    return OptimizationConfig(**given)


def settings(**changes) -> EngineConfig:
    return EngineConfig(**({"precision": "fp32", "log_every": 1, "checkpoint_every": 3} | changes))
