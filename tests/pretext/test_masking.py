"""Masking: the released generator's statistics, any grid, errors that name both numbers."""

import pickle
import random
from collections import Counter

import pytest
import torch

from unveil.config import BlockMasking, RandomMasking, UnveilError
from unveil.pretext.masking import masking_function


def hidden_counts(config: BlockMasking, grid: tuple[int, int], draws: int) -> Counter[int]:
    masking, rng = masking_function(config), random.Random(0)
    return Counter(int(masking(rng, grid).sum()) for _ in range(draws))


def mean(counts: Counter[int]) -> float:
    return sum(hidden * times for hidden, times in counts.items()) / counts.total()


def test_block_statistics_of_the_released_generator() -> None:
    """Measured there over 20,000 masks: exactly 105 in 65.3 %, 104 in 24.0 %, least 94, mean 104.44."""
    counts = hidden_counts(BlockMasking(count=105, min_block=16), (16, 16), 20_000)
    assert counts[105] / 20_000 == pytest.approx(0.653, abs=0.012)
    assert counts[104] / 20_000 == pytest.approx(0.240, abs=0.012)
    assert mean(counts) == pytest.approx(104.44, abs=0.03)
    assert max(counts) == 105 and 89 <= min(counts) <= 97


@pytest.mark.parametrize(("count", "side", "smallest", "expected"), [(75, 14, 16, 74.47), (26, 8, 4, 25.96)])
def test_block_statistics_on_other_grids(count: int, side: int, smallest: int, expected: float) -> None:
    counts = hidden_counts(BlockMasking(count=count, min_block=smallest), (side, side), 5_000)
    assert mean(counts) == pytest.approx(expected, abs=0.05)


def test_blocks_are_contiguous_and_everywhere() -> None:
    """Hidden patches have hidden neighbours far more often than independent ones would, and no place is left out."""
    masking, rng = masking_function(BlockMasking(count=105, min_block=16)), random.Random(1)
    masks = torch.stack([masking(rng, (16, 16)) for _ in range(2_000)]).view(-1, 16, 16).float()
    pairs = (masks[:, :, 1:] * masks[:, :, :-1]).mean() / masks.mean()
    assert pairs > 0.7 and masks.mean(dim=0).min() > 0.02
    assert (masks.mean(dim=0) - masks.mean(dim=0).flip(0)).abs().max() < 0.06
    assert (masks.mean(dim=0) - masks.mean(dim=0).T).abs().max() < 0.06


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (1, 9), (2, 2), (3, 2), (4, 4), (7, 7), (5, 23), (40, 40)])
@pytest.mark.parametrize("config", [BlockMasking(ratio=0.4), BlockMasking(ratio=0.1), RandomMasking(ratio=0.2)])
def test_every_grid_hides_at_least_one_and_at_most_the_limit(grid: tuple[int, int], config) -> None:
    masking, rng = masking_function(config), random.Random(2)
    for _ in range(50):
        mask = masking(rng, grid)
        assert mask.shape == (grid[0] * grid[1],) and mask.dtype == torch.bool
        assert 1 <= mask.sum() <= masking.limit(grid) < grid[0] * grid[1]


def test_uniform_masking_hides_exactly_its_share_everywhere_alike() -> None:
    masking, rng = masking_function(RandomMasking(ratio=0.75)), random.Random(3)
    masks = torch.stack([masking(rng, (4, 4)) for _ in range(4_000)])
    assert (masks.sum(dim=1) == 12).all()
    assert (masks.float().mean(dim=0) - 0.75).abs().max() < 0.03


@pytest.mark.parametrize("config", [BlockMasking(), RandomMasking()])
def test_masks_depend_on_the_generator_alone_and_survive_pickling(config) -> None:
    masking = masking_function(config)
    copied = pickle.loads(pickle.dumps(masking))
    assert torch.equal(masking(random.Random(5), (8, 8)), copied(random.Random(5), (8, 8)))
    assert not torch.equal(masking(random.Random(5), (8, 8)), masking(random.Random(6), (8, 8)))


@pytest.mark.parametrize(
    ("config", "grid", "numbers"),
    [
        (BlockMasking(count=105), (8, 8), ("105", "64")),
        (BlockMasking(count=64), (8, 8), ("64", "64")),
        (RandomMasking(ratio=0.9), (2, 2), ("4", "4")),
        (BlockMasking(), (1, 1), ("1", "1")),
    ],
)
def test_more_hidden_than_there_are_names_both(config, grid: tuple[int, int], numbers: tuple[str, str]) -> None:
    masking = masking_function(config)
    for call in (lambda: masking.limit(grid), lambda: masking(random.Random(0), grid)):
        with pytest.raises(UnveilError, match=f"hides {numbers[0]} patches.* has {numbers[1]} "):
            call()


@pytest.mark.parametrize("grid", [(1, 7), (4, 40), (3, 3), (2, 2)])
@pytest.mark.parametrize("ratio", [0.4, 0.75, 0.9])
def test_narrow_grids_and_high_ratios_hide_nearly_what_is_asked(grid: tuple[int, int], ratio: float) -> None:
    masking = masking_function(BlockMasking(ratio=ratio))
    patches = grid[0] * grid[1]
    if round(ratio * patches) >= patches:
        with pytest.raises(UnveilError, match="must stay visible"):
            masking.limit(grid)
        return
    counts = hidden_counts(BlockMasking(ratio=ratio), grid, 300)
    assert min(counts) >= 0.75 * masking.limit(grid)
    assert max(counts) <= masking.limit(grid)


@pytest.mark.parametrize(("config", "grid"), [(BlockMasking(count=75, min_block=16, exact=True), (14, 14))])
def test_exact_block_masks_hide_what_is_asked(config: BlockMasking, grid: tuple[int, int]) -> None:
    """BEiT v2's released generator fills its masks up; the rectangles are those of the masks that are not."""
    assert hidden_counts(config, grid, 2_000).keys() == {75}
    loose, exact = masking_function(BlockMasking(count=75, min_block=16)), masking_function(config)
    for seed in range(50):
        rectangles, filled = (mask(random.Random(seed), grid) for mask in (loose, exact))
        assert not (rectangles & ~filled).any()
