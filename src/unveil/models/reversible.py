"""What training keeps of a run of columns, and how backward has the rest back.

All randomness comes in as numbers (`drop_path_noise`), so computing again gives the same; autocast is restored.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from unveil.config import UnveilError
from unveil.models.cells import Cells
from unveil.models.revcolv2_blocks import Column, Maps


def recomputed(
    column: Column,
    cells: tuple[Cells, ...],
    previous: Maps,
    stem: Float[Tensor, "b n c"] | None,
    drop_path_noise: Float[Tensor, "b blocks 2"] | None,
    finest: int,
) -> dict[int, Tensor]:
    """A column of which backward keeps what it takes alone, and computes the inside again: exact."""
    levels = tuple(previous)
    computed = tuple(level for level in column.order if level >= finest)

    def run(stem: Tensor | None, noise: Tensor | None, *maps: Tensor) -> tuple[Tensor, ...]:
        current = column(cells, dict(zip(levels, maps, strict=True)), stem, noise, finest)
        return tuple(current[level] for level in computed)

    found = checkpoint(run, stem, drop_path_noise, *previous.values(), use_reentrant=False, preserve_rng_state=False)
    return dict(zip(computed, found, strict=True))


# What torch.compiler.disable is, but without loading the compiler: seconds, of every command that never compiles.
@torch._disable_dynamo
def chained(
    columns: Sequence[Column],
    cells: tuple[Cells, ...],
    previous: Maps,
    stem: Float[Tensor, "b n c"] | None,
    drop_path_noise: Float[Tensor, "b columns blocks 2"] | None,
) -> dict[int, Tensor]:
    """Columns of which backward keeps the last one's maps alone, and inverts one after the other.

    Where the rest of the network is compiled, they run as they are.

    Raises:
        UnveilError: under autocast without `functions_in_fp32`, for rounding errors grow from column to column; with
            sharded parameters, which would have to be gathered in between.
    """
    config = columns[0].config
    parameters = [parameter for column in columns for parameter in column.parameters()]
    device = parameters[0].device.type
    if torch.is_autocast_enabled(device) and not config.functions_in_fp32:
        raise UnveilError(
            "model.reversible=chain cannot compute in 16 bits: rounding errors would outgrow the features; set "
            "model.functions_in_fp32=true, engine.precision=fp32 or model.reversible=column"
        )
    if _sharded(parameters):
        raise UnveilError("model.reversible=chain does not go with engine.parallel=fsdp; set model.reversible=column")
    levels = tuple(range(len(config.widths)))
    maps = [previous[level] for level in levels] if previous else [None] * len(levels)
    found = _Chain.apply(tuple(columns), cells, drop_path_noise, stem, *maps, *parameters)
    return dict(zip(levels, found, strict=True))


def _sharded(parameters: Sequence[Tensor]) -> bool:
    if not torch.distributed.is_initialized():
        return False
    # Loaded only where there are several processes: it takes a while to import.
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in parameters)


class _Chain(torch.autograd.Function):
    """Columns run without a graph; their parameters are inputs, so that their gradients go the usual way (DDP)."""

    @staticmethod
    def forward(
        ctx: Any,
        columns: tuple[Column, ...],
        cells: tuple[Cells, ...],
        noise: Tensor | None,
        stem: Tensor | None,
        *maps_and_parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        count = len(columns[0].levels)
        # Detached, or hooks of the columns' modules would take them for parts of a graph, of which there is none here.
        current = {level: one.detach() for level, one in enumerate(maps_and_parameters[:count]) if one is not None}
        entering = None if stem is None else stem.detach()
        with torch.autocast(next(columns[0].parameters()).device.type, enabled=False):
            for number, column in enumerate(columns):
                current = column(cells, current, entering, _of_column(noise, number))
        outputs = tuple(current[level] for level in range(count))
        ctx.columns, ctx.cells, ctx.starts_anew = columns, cells, maps_and_parameters[0] is None
        ctx.save_for_backward(noise, stem, *outputs)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        noise, stem, *outputs = ctx.saved_tensors
        current = dict(enumerate(outputs))
        gradients = {level: gradient for level, gradient in enumerate(outer) if gradient is not None}
        of_stem: Tensor | None = None
        of_parameters: dict[Tensor, Tensor] = {}
        with torch.autocast(outputs[0].device.type, enabled=False):
            for number, column in reversed(list(enumerate(ctx.columns))):
                step = _Inverse(column, ctx.cells, stem, _of_column(noise, number), current, gradients)
                current, gradients = step.previous, step.of_previous
                of_parameters |= step.of_parameters
                if step.of_stem is not None:
                    of_stem = step.of_stem if of_stem is None else of_stem + step.of_stem
        of_maps = [None if ctx.starts_anew else gradients.get(level) for level in range(len(outputs))]
        parameters = [parameter for column in ctx.columns for parameter in column.parameters()]
        return (None, None, None, of_stem, *of_maps, *(of_parameters.get(parameter) for parameter in parameters))


class _Inverse:
    """One column backwards: the maps of the column before, and the gradients of all that the column took."""

    def __init__(
        self,
        column: Column,
        cells: tuple[Cells, ...],
        stem: Tensor | None,
        noise: Tensor | None,
        current: dict[int, Tensor],
        gradients: dict[int, Tensor],
    ) -> None:
        """`gradients`: of `current`, by level; a level that nothing depends on has none."""
        self.previous: dict[int, Tensor] = {}
        self.of_previous: dict[int, Tensor] = {}
        self.of_stem: Tensor | None = None
        self.of_parameters: dict[Tensor, Tensor] = {}
        of_current = dict(gradients)
        bottom_up = column.direction == "bottom_up"
        of_finer, of_coarser = (of_current, self.of_previous) if bottom_up else (self.of_previous, of_current)
        for level in reversed(column.order):
            finer, coarser = column.neighbours(level, current, self.previous, stem)
            gradient = of_current.get(level)
            taken = [None if one is None else one.detach().requires_grad_() for one in (finer, coarser)]
            with torch.set_grad_enabled(gradient is not None):
                inner = column.inner(level, (taken[0], taken[1]), cells, noise)
            if len(column.gamma):
                scale = column.scale(level).detach()
                self.previous[level] = (current[level] - inner.detach()) / scale
            if gradient is None:
                continue
            learning = [parameter for parameter in column.levels[level].parameters() if parameter.requires_grad]
            inputs: list[Tensor] = [one for one in taken if one is not None]
            found = torch.autograd.grad(inner, [*inputs, *learning], gradient, allow_unused=True)
            of_inputs = iter(found[: len(inputs)])
            self.of_parameters |= {p: g for p, g in zip(learning, found[len(inputs) :], strict=True) if g is not None}
            if finer is not None:
                if level == 0:
                    self.of_stem = next(of_inputs)
                else:
                    _add(of_finer, level - 1, next(of_inputs))
            if coarser is not None:
                _add(of_coarser, level + 1, next(of_inputs))
            if len(column.gamma):
                _add(self.of_previous, level, gradient * scale)
                if column.gamma[level].requires_grad:
                    self.of_parameters[column.gamma[level]] = (gradient * self.previous[level]).sum(dim=(0, 1))


def invert(
    column: Column,
    cells: tuple[Cells, ...],
    stem: Float[Tensor, "b n c"] | None,
    drop_path_noise: Float[Tensor, "b blocks 2"] | None,
    current: Maps,
) -> dict[int, Tensor]:
    """The maps of the column before; empty for the first."""
    return _Inverse(column, cells, stem, drop_path_noise, dict(current), {}).previous


def _add(sums: dict[int, Tensor], level: int, gradient: Tensor | None) -> None:
    if gradient is not None:
        sums[level] = sums[level] + gradient if level in sums else gradient


def _of_column(noise: Tensor | None, number: int) -> Tensor | None:
    return None if noise is None else noise[:, number]
