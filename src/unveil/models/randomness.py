"""Random numbers that depend on a sample's number and on nothing else: not on the batch, the device or the rank."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def keyed_uniform(seed: int, sample_numbers: Int64[Tensor, "b"], count: int) -> Float[Tensor, "b {count}"]:
    """`count` numbers in [0, 1) for each sample: column j of sample n is a hash of (seed, n, j).

    The hash is splitmix64's finaliser (Steele, Lea and Flood, 2014) in wrapping int64 arithmetic, and 24 of its bits
    become the mantissa of a float32: bit-equal on every device.
    """
    state = _mix(torch.full((), _signed(seed), dtype=torch.int64, device=sample_numbers.device))
    state = _mix(state ^ sample_numbers)[:, None]
    columns = torch.arange(count, dtype=torch.int64, device=sample_numbers.device)
    bits = _shift_right(_mix(state ^ columns), 40)
    return bits.to(torch.float32) * 2.0**-24


def _signed(value: int) -> int:
    """The int64 that has the low 64 bits of `value`."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(value: Tensor, places: int) -> Tensor:
    """Logical shift: int64's own one copies the sign."""
    return (value >> places) & ((1 << (64 - places)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = value + _signed(_GOLDEN)
    value = (value ^ _shift_right(value, 30)) * _signed(_FIRST)
    value = (value ^ _shift_right(value, 27)) * _signed(_SECOND)
    return value ^ _shift_right(value, 31)
