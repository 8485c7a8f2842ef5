from pathlib import Path

import pytest
import torch

from unveil.engine import Precision, fastest_precision
from unveil.engine.precision import _processor_features

CPU = torch.device("cpu")


def test_formats_of_matrix_products() -> None:
    a = torch.randn(4, 4)
    for setting, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        precision = Precision.of(setting, CPU)
        with precision.autocast():
            assert (a @ a).dtype == dtype
        assert precision.gradient_scaler(500).is_enabled() == (setting == "fp16")


def test_the_processors_own_list_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's answer, where it has one, is that of the operating system."""
    listing = Path("/proc/cpuinfo")
    if not listing.exists() or "flags" not in listing.read_text():
        pytest.skip("no list of processor features here")
    expected = "bf16" if {"avx512_bf16", "amx_bf16"} & set(listing.read_text().split()) else "fp32"
    assert fastest_precision(CPU) == Precision.of("auto", CPU).format == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fastest_precision(CPU) == expected
    assert "sse2" in _processor_features() or "fp" in _processor_features()


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_gpus_have_bf16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fastest_precision(torch.device("cuda")) == expected
