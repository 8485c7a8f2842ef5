"""Masks per second on one core, and how many patches they hide.

uv run python benchmarks/masking.py
"""

import random
import time
from collections import Counter

from unveil.config import BlockMasking, RandomMasking
from unveil.pretext.masking import masking_function

CASES = (
    ("block-wise, 105 of 16 x 16", BlockMasking(count=105, min_block=16), (16, 16)),
    ("block-wise, 75 of 14 x 14", BlockMasking(count=75, min_block=16), (14, 14)),
    ("block-wise, 26 of 8 x 8", BlockMasking(count=26, min_block=4), (8, 8)),
    ("uniform, 75 % of 16 x 16", RandomMasking(ratio=0.75), (16, 16)),
)
MASKS = 5000


def main() -> None:
    for name, config, grid in CASES:
        masking, rng = masking_function(config), random.Random(0)
        masking(rng, grid)
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(MASKS):
                masking(rng, grid)
            best = min(best, time.perf_counter() - start)
        hidden = Counter(int(masking(rng, grid).sum()) for _ in range(MASKS))
        mean = sum(count * times for count, times in hidden.items()) / MASKS
        print(f"{name}: {MASKS / best:,.0f} masks/s; hidden {mean:.2f} on average, {min(hidden)} to {max(hidden)}")


if __name__ == "__main__":
    main()
