"""Which of many fingerprints are alike, without comparing each with each."""

import numpy as np
from jaxtyping import Int64, UInt64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

WORDS = 4
"""Of 64 bits, in one hash."""
BLOCK = 1_000_000
"""Places that are compared with others at once."""

_ONES = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


def equal_groups(keys: np.ndarray) -> list[Int64[np.ndarray, "n"]]:
    """Places of equal keys, for each key that is there more than once; in order of their first place."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else np.zeros(0, int)
    groups = [group for group in np.split(order, starts[1:]) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def near_pairs(
    hashes: UInt64[np.ndarray, "n 4"], distance: int
) -> tuple[Int64[np.ndarray, "m 2"], Int64[np.ndarray, "m"]]:
    """All pairs of places whose hashes differ in at most `distance` bits, lower place first, and the number of bits.

    Two hashes that differ in d bits agree in at least one of d + 1 bands, so only those that do are compared (Norouzi,
    Punjani and Fleet, "Fast search in Hamming space with multi-index hashing", 2012).
    """
    in_word = -(-(distance + 1) // WORDS)
    width = 64 // in_word
    pairs: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    for word in range(WORDS):
        for band in range(in_word):
            keys = (hashes[:, word] >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
            pairs += _pairs_of_one_band(hashes, keys, distance)
    found = np.unique(np.concatenate(pairs), axis=0)
    return found, _bits_between(hashes[found[:, 0]], hashes[found[:, 1]])


def groups_of(pairs: Int64[np.ndarray, "m 2"], count: int) -> list[Int64[np.ndarray, "n"]]:
    """Places below `count` that pairs connect, directly or by way of others; in order of their first place."""
    if not len(pairs):
        return []
    links = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, component = connected_components(links, directed=False)
    return equal_groups(component)


def _pairs_of_one_band(hashes: np.ndarray, keys: np.ndarray, distance: int) -> list[np.ndarray]:
    """Of the places with equal keys, those that are near enough."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    pairs = []
    for start in range(0, len(keys), BLOCK):
        left, step = np.arange(start, min(start + BLOCK, len(keys))), 1
        while len(left):
            left = left[left + step < len(keys)]
            # Where these differ, all that are further apart do.
            left = left[ordered[left] == ordered[left + step]]
            first, second = order[left], order[left + step]
            near = _bits_between(hashes[first], hashes[second]) <= distance
            pairs.append(np.sort(np.stack([first[near], second[near]], axis=1), axis=1))
            step += 1
    return pairs


def _bits_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    differing = np.ascontiguousarray(first ^ second).view(np.uint8).reshape(len(first), 8 * WORDS)
    return _ONES[differing].sum(axis=1, dtype=np.int64)
