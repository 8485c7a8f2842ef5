"""GPUs to plan for, from their makers' data sheets."""

import difflib
from dataclasses import dataclass

from unveil.config import UnveilError

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory_gib: float
    """What torch reports as the device's total, which is a little less than the name says."""
    tera_flops: float
    """Dense 16-bit matrix products with sums in 32 bits, 10^12 a second."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("t4", 14.6, 65.0),
        Gpu("v100-32gb", 31.7, 125.0),
        Gpu("rtx-3090", 23.6, 71.0),
        Gpu("rtx-4090", 23.5, 165.0),
        Gpu("l4", 22.0, 121.0),
        Gpu("l40s", 44.4, 362.0),
        Gpu("a100-40gb", 39.4, 312.0),
        Gpu("a100-80gb", 79.1, 312.0),
        Gpu("h100-80gb", 79.1, 989.0),
        Gpu("h200", 139.8, 989.0),
    )
}

RESERVED_GIB = 1.0
"""Of each GPU: its context, its libraries' work spaces, gaps between torch's blocks."""


def gpu_named(name: str) -> Gpu:
    """Raises UnveilError, with the nearest name, where there is none."""
    if name in GPUS:
        return GPUS[name]
    near = difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.4)
    hint = f"perhaps you meant {near[0]}; " if near else ""
    raise UnveilError(f"no GPU is called {name!r} here; {hint}there are {', '.join(GPUS)}")
