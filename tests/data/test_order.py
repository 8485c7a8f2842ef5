import random
from collections import Counter
from itertools import pairwise

import pytest

from unveil.data.order import _mix, replacement_index, sample_index, sample_rng


def test_mix_gives_the_published_sequence_of_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    assert [_mix((1234567 + turn * golden) % 2**64) for turn in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1025])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_epoch_visits_every_sample_once(count: int, epoch: int) -> None:
    indices = [sample_index(epoch * count + position, count, seed=3) for position in range(count)]
    assert sorted(indices) == list(range(count))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        return [sample_index(epoch * 500 + position, 500, seed) for position in range(500)]

    orders = [order(0, 0), order(1, 0), order(0, 1), order(1, 1), list(range(500))]
    for place, one in enumerate(orders):
        for other in orders[place + 1 :]:
            # Two unrelated permutations agree at one place on average.
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 8


def test_each_sample_is_as_likely_at_each_position() -> None:
    count, epochs = 5, 1000
    seen = Counter(
        (position, sample_index(epoch * count + position, count, seed=0))
        for epoch in range(epochs)
        for position in range(count)
    )
    expected = epochs / count
    chi_square = sum((seen[p, i] - expected) ** 2 / expected for p in range(count) for i in range(count))
    # (count - 1)^2 = 16 degrees of freedom: 39.3 is exceeded once in a thousand.
    assert chi_square < 39.3


def test_neighbours_are_torn_apart_in_a_large_set() -> None:
    count = 30_000_000
    indices = [sample_index(number, count, seed=0) for number in range(2000)]
    assert len(set(indices)) == 2000
    assert abs(sum(indices) / 2000 / count - 0.5) < 0.03
    assert min(abs(a - b) for a, b in pairwise(indices)) > 100


def test_order_is_the_one_that_its_name_stands_for() -> None:
    """Recorded; a change of these numbers needs a new ORDER_NAME, since it turns every resumed run into another."""
    assert [sample_index(number, 1000, seed=0) for number in (0, 1, 2, 999, 1000)] == [486, 983, 731, 548, 411]
    assert replacement_index(5, 1, 1000, seed=0) == 973
    assert [sample_rng(0, number).random() for number in (0, 1)] == [0.9904001588368627, 0.2782467457520842]


def test_generators_depend_on_seed_and_number_only() -> None:
    before = random.getstate()
    assert sample_rng(1, 10**12).random() == sample_rng(1, 10**12).random()
    draws = {sample_rng(seed, number).random() for seed in range(20) for number in range(50)}
    assert len(draws) == 1000
    assert random.getstate() == before


def test_replacements_differ_from_try_to_try() -> None:
    tries = [replacement_index(17, attempt, 1000, seed=0) for attempt in range(1, 50)]
    assert len(set(tries)) > 40 and all(0 <= index < 1000 for index in tries)
