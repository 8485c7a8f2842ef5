"""The learning rate of each step."""

import math


def learning_rate(step: int, *, peak: float, minimum: float, warmup_steps: int, total_steps: int) -> float:
    """Linear from 0 to `peak`, then half a cosine down to `minimum` (released code: the values of its schedule table).

    Args:
        step: steps done before this one, 0 for the first.
        warmup_steps: the first of them has rate 0, the last one `peak`, as in `numpy.linspace`.
    """
    if step < warmup_steps:
        # linspace with one point holds its start only.
        return peak * step / max(warmup_steps - 1, 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return minimum + 0.5 * (peak - minimum) * (1 + math.cos(math.pi * progress))
