"""How fast this very device multiplies matrices: what a step's arithmetic is compared with."""

import time

import torch

from unveil.engine.precision import DTYPES, Precision

SIZES = {"cpu": (512, 1024), "cuda": (4096, 8192, 12288)}
"""Of square matrices: the best rate of them is the device's."""

SECONDS = 0.3
"""For each size, at least."""


def matrix_rate(precision: Precision) -> float:
    """Floating-point operations a second of matrix products in this format: the best of some sizes and many calls."""
    device = precision.device
    dtype = DTYPES.get(precision.format, torch.float32)
    return max(_rate(size, dtype, device) for size in SIZES["cuda" if device.type == "cuda" else "cpu"])


def _rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    best, spent = float("inf"), 0.0
    torch.mm(left, right, out=out)
    while spent < SECONDS:
        wait_for(device)
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        wait_for(device)
        seconds = time.perf_counter() - began
        best, spent = min(best, seconds), spent + seconds
    return 2 * size**3 / best


def wait_for(device: torch.device) -> None:
    """Until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
