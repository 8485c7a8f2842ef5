"""The number format of the arithmetic. Parameters and optimizer state are fp32 always."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

Format = Literal["fp32", "bf16", "fp16"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """A format on a device."""

    format: Format
    device: torch.device

    @staticmethod
    def of(setting: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> "Precision":
        """The format asked for; "auto" is the fastest one that is safe on the device."""
        return Precision(fastest_precision(device) if setting == "auto" else setting, device)

    def autocast(self) -> AbstractContextManager:
        """Inside it, matrix products run in this format."""
        # Each weight is used once in a pass: a cache would only keep its 16-bit copy until the end of it.
        dtype, enabled = DTYPES.get(self.format), self.format != "fp32"
        return torch.autocast(self.device.type, dtype, enabled=enabled, cache_enabled=False)

    def gradient_scaler(self, window: int) -> torch.amp.GradScaler:
        """Dynamic loss scaling for fp16 from 2^16 on (released code), doubled after `window` steps without an overflow.

        With the other formats it does nothing.
        """
        return torch.amp.GradScaler(
            self.device.type, init_scale=2.0**16, growth_interval=window, enabled=self.format == "fp16"
        )


def fastest_precision(device: torch.device) -> Format:
    """bf16 where the device multiplies in it natively; else fp16 on a GPU and fp32 on a processor."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    return "bf16" if device.type == "cpu" and _processor_features() & {"avx512_bf16", "amx_bf16"} else "fp32"


def _processor_features() -> set[str]:
    # torch.cpu.get_capabilities is newer than the oldest torch that we accept.
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    return {word for line in lines if line.startswith("flags") for word in line.split()}
