"""Tensors cut by rows into several files: joined they are what safetensors itself would have written."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unveil.engine.pieces import Pieces, as_held, join, own_pieces


def whole() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "weight": torch.randn(5, 3, 2),
        "bias": torch.randn(5),
        "half": torch.randn(4, 3).bfloat16(),
        "one row": torch.randn(1, 4),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
    }


def cut(folder: Path) -> list[Path]:
    """By hand: three processes hold two rows each, as far as there are any; the first holds what has none."""
    files = []
    for rank in range(3):
        rows = {
            name: value[2 * rank : 2 * rank + 2] if value.ndim else value
            for name, value in whole().items()
            if (len(value) > 2 * rank if value.ndim else rank == 0)
        }
        save_file({name: value.contiguous() for name, value in rows.items()}, folder / f"part_{rank}.safetensors")
        files.append(folder / f"part_{rank}.safetensors")
    return files


def test_pieces_are_read_as_whole_tensors(tmp_path: Path) -> None:
    pieces = Pieces(cut(tmp_path))
    assert pieces.keys() == whole().keys() and len(pieces) == 6
    assert all(
        torch.equal(pieces[name], value) and pieces[name].dtype == value.dtype for name, value in whole().items()
    )


def test_joined_they_are_one_file_that_others_read(tmp_path: Path) -> None:
    join(cut(tmp_path), tmp_path / "whole.safetensors")
    loaded = load_file(tmp_path / "whole.safetensors")
    assert loaded.keys() == whole().keys()
    assert all(torch.equal(loaded[name], value) for name, value in whole().items())


def test_what_is_on_one_process_is_written_once_and_copied(tmp_path: Path) -> None:
    state = whole()
    assert own_pieces(state, whole=False) == {}
    copies = own_pieces(state, whole=True)
    state["bias"].zero_()
    assert torch.equal(copies["bias"], whole()["bias"])
    assert as_held(copies["bias"], state["bias"]) is copies["bias"]
