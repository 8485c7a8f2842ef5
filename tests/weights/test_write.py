"""Writing weights: equal ones are equal files, and nothing of them or of what is noted is lost."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from unveil.config import UnveilError
from unveil.weights.write import write_weights

STATE = {"b.weight": torch.randn(3, 5), "a": torch.arange(7), "c": torch.randn(2).to(torch.bfloat16)}
METADATA = {f"note {number}": "x" * number for number in range(8)} | {
    "format": "pt",
    "größe": 'ein "Wort"\nund\tnoch \\ eins / \x01 \x7f \u2028 🦊',
    "empty": "",
}


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    for count in range(10):
        write_weights(tmp_path / f"{count}.safetensors", STATE, METADATA)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
    found = load_file(tmp_path / "0.safetensors")
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], value) for name, value in STATE.items())
    with safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata() == METADATA


@pytest.mark.parametrize("metadata", [{}, {"one": "entry"}])
def test_few_notes(metadata: dict[str, str], tmp_path: Path) -> None:
    write_weights(tmp_path / "x.safetensors", STATE, metadata)
    assert load_file(tmp_path / "x.safetensors").keys() == STATE.keys()
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert (file.metadata() or {}) == metadata


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnveilError, match="could not be written"):
        write_weights(tmp_path / "file" / "x.safetensors", STATE, METADATA)
