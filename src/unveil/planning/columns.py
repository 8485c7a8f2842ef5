"""What RevColV2 (reconstruction) costs, level by level: see `unveil.planning.cost` for what is counted.

As `unveil.models.revcolv2` computes it: of hidden units no cell, from the junction on all cells, and of the top-down
columns only the levels on which the task depends; those of "chain", which inverts whole columns, all forward.
"""

from dataclasses import dataclass, replace
from typing import Literal

from unveil.config import RevColV2Config, ViTConfig
from unveil.planning.cost import FULL, Cost, Storage, block, linear, norm

Reads = Literal["levels", "top", "bottom_up"]
"""See `unveil.models.revcolv2.Need`."""


def columns(
    config: RevColV2Config,
    storage: Storage,
    *,
    reads: Reads = "levels",
    mask_tokens: bool = False,
    hidden: int = 0,
) -> Cost:
    """The network without a head, for one image.

    Args:
        hidden: mask units that the bottom-up columns do not see.
    """
    functions = FULL if config.functions_in_fp32 else storage
    units = config.grid[0] * config.grid[1]
    held, whole = _cells(config, units - hidden), _cells(config, units)
    patch = 3 * config.patch_size**2
    total = linear(
        held[0],
        patch,
        config.widths[0],
        gradient_to_input=False,
        saved=storage.number * held[0] * patch,
    ) + norm(config.widths[0], held[0])
    if mask_tokens:
        tokens = sum(config.widths)
        total += Cost(parameters=tokens, learned=tokens)
    upward = [
        _column(config, functions, "bottom_up", held, whole, first=number == 0)
        for number in range(config.bottom_up_columns)
    ]
    finest = _finest(config, reads)
    chained = config.reversible == "chain" and reads == "top"
    downward = [_column(config, functions, "top_down", whole, whole, finest=level, chained=chained) for level in finest]
    # The stem's map, which every bottom-up column takes.
    total += Cost(saved=4 * held[0] * config.widths[0])
    total += sum((one.frozen for one in downward), Cost())
    return total + _kept(config, upward, [one for one in downward if one.levels])


@dataclass(frozen=True)
class _Column:
    """One column, and the maps before and after it."""

    levels: tuple[Cost, ...]
    """Those on which the task depends."""
    frozen: Cost
    """The others, which do not learn."""
    entering: int
    """Bytes of the maps of the column before."""
    leaving: int
    """Bytes of its own maps."""

    @property
    def cost(self) -> Cost:
        """Of the levels on which the task depends."""
        return sum(self.levels, Cost())


def _kept(config: RevColV2Config, upward: list[_Column], downward: list[_Column]) -> Cost:
    """All columns, with what backward needs of them as `reversible` says.

    In the end the last column's maps are kept by whoever reads them, or by nobody.
    """
    total = sum((one.cost for one in [*upward, *downward]), Cost())
    entering = sum(one.entering for one in [*upward, *downward])
    match config.reversible:
        case "off":
            return replace(total, saved=total.saved + entering)
        case "column":
            inside = max(one.cost.saved for one in [*upward, *downward])
            return replace(total, saved=entering, recomputed=inside)
        case "chain":
            halves = [half[-1].leaving for half in (upward, downward) if half]
            level = max(level.saved for one in [*upward, *downward] for level in one.levels)
            return replace(total, saved=sum(halves), recomputed=level)


def _column(
    config: RevColV2Config,
    storage: Storage,
    direction: Literal["bottom_up", "top_down"],
    held: tuple[int, ...],
    whole: tuple[int, ...],
    *,
    first: bool = False,
    finest: int = 0,
    chained: bool = False,
) -> _Column:
    """One of a half's columns.

    Args:
        held: cells that it has, by level; `whole`: all that there are.
        finest: level on which the task depends.
        chained: the finer levels are computed, too, without gradients.
    """
    count = len(config.widths)
    every = [
        _level(config, storage, level, held, whole, down=level > 0, up=level < count - 1 and not first, gamma=not first)
        for level in range(count)
    ]
    maps = [4 * cells * width for cells, width in zip(held, config.widths, strict=True)]
    # F of a level takes of the column before the next finer level, too.
    taken = 0 if direction == "bottom_up" else max(0, finest - 1)
    frozen = Cost(
        parameters=sum(level.parameters for level in every[:finest]),
        forward=sum(level.forward for level in every[:finest]) if chained else 0,
    )
    return _Column(
        levels=tuple(every[finest:]),
        frozen=frozen,
        entering=0 if first or finest >= count else sum(maps[taken:]),
        leaving=sum(maps if chained else maps[finest:]),
    )


def _level(
    config: RevColV2Config,
    storage: Storage,
    level: int,
    held: tuple[int, ...],
    whole: tuple[int, ...],
    *,
    down: bool,
    up: bool,
    gamma: bool,
) -> Cost:
    """F of a level, and its gamma."""
    width, cells, number = config.widths[level], held[level], storage.number
    # A map goes into a product as it is, and in 16 bits as a copy.
    cast = 0 if number == 4 else number
    total = Cost(parameters=width, learned=width) if gamma else Cost()
    if down:
        inside = 4 * config.widths[level - 1]
        total += linear(cells, inside, width, saved=number * cells * inside) + norm(width, cells)
    if up:
        coarser, inside = held[level + 1], config.widths[level + 1]
        total += linear(coarser, inside, width, saved=cast * coarser * inside) + norm(width, coarser)
    one = (
        _convolution_block(config, storage, width, cells, whole[level])
        if config.kinds[level] == "convolution"
        else block(_transformer(config, width), cells, storage)
    )
    return sum([one] * config.layers[level], total)


def _convolution_block(config: RevColV2Config, storage: Storage, width: int, cells: int, whole: int) -> Cost:
    """The depthwise convolution runs over the whole map, with zeros where cells are hidden; the rest on held cells."""
    number, hidden_width = storage.number, config.mlp_ratio * width
    kernel = width * config.kernel_size**2
    once = 2 * whole * kernel
    convolution = Cost(
        parameters=kernel + width,
        learned=kernel + width,
        matrices=kernel,
        forward=once,
        backward=2 * once,
        saved=number * whole * width,
    )
    mlp = linear(cells, width, hidden_width, saved=number * cells * width)
    mlp += linear(cells, hidden_width, width, saved=2 * number * cells * hidden_width)
    total = convolution + norm(width, cells) + mlp
    if config.layer_scale is not None:
        total += Cost(parameters=width, learned=width, saved=number * cells * width)
    return total


def _transformer(config: RevColV2Config, width: int) -> ViTConfig:
    """Whose block it is: see `unveil.models.revcolv2_blocks`."""
    return ViTConfig(
        width=width,
        depth=1,
        heads=width // config.head_width,
        mlp_width=config.mlp_ratio * width,
        qkv_bias="all",
        norm_epsilon=config.norm_epsilon,
    )


def largest_column(config: RevColV2Config) -> int:
    """Parameters of a column, which sharding gathers as a whole; the first has fewer."""
    cells = _cells(config, 1)
    return _column(config, FULL, "top_down", cells, cells).cost.parameters


def widest_map(config: RevColV2Config) -> int:
    """Numbers of the largest hidden map of an MLP, for one image."""
    cells = _cells(config, config.grid[0] * config.grid[1])
    return max(config.mlp_ratio * width * count for width, count in zip(config.widths, cells, strict=True))


def _cells(config: RevColV2Config, units: int) -> tuple[int, ...]:
    """Of so many mask units, by level."""
    return tuple(units * (config.mask_unit // stride) ** 2 for stride in config.strides)


def _finest(config: RevColV2Config, reads: Reads) -> list[int]:
    """The finest level that each top-down column computes; one beyond the coarsest where it computes none."""
    last, top = config.top_down_columns - 1, len(config.widths) - 1
    match reads:
        case "levels":
            return [0] * (last + 1)
        case "top":
            return [max(0, top - (last - number)) for number in range(last + 1)]
        case "bottom_up":
            return [top + 1] * (last + 1)
