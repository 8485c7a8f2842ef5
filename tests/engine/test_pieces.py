"""Tensors cut by rows into several files: joined they are what safetensors itself would have written."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from tests.engine.toy import CPU
from unveil.engine.pieces import Pieces, join, own_copies, write


def whole() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "weight": torch.randn(5, 3, 2),
        "bias": torch.randn(5),
        "half": torch.randn(4, 3).bfloat16(),
        "one row": torch.randn(1, 4),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False, True]),
        "nothing": torch.zeros(0, 3),
    }


def cut(folder: Path) -> list[Path]:
    """By hand, in the layout of torch: three processes hold two rows each, as far as there are any; the first holds
    what has none. The last rows come first, as the processes of several groups may share them out."""
    files = []
    for rank in range(3):
        rows = {
            name: value[2 * rank : 2 * rank + 2] if value.ndim else value
            for name, value in whole().items()
            if (len(value) > 2 * rank if value.ndim else rank == 0) or (name == "nothing" and rank == 0)
        }
        places = {
            name: {"saved_offsets": [2 * rank] + [0] * (row.ndim - 1) if row.ndim else []} for name, row in rows.items()
        }
        files.append(folder / f"part_{9 - rank}.safetensors")
        pieces = {name: value.contiguous() for name, value in rows.items()}
        save_file(pieces, files[-1], metadata={"DCP_SHARDING_INFO": json.dumps(places)})
    return sorted(files)


def assert_whole(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == whole().keys()
    for name, value in whole().items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_pieces_are_read_as_whole_tensors(tmp_path: Path) -> None:
    cut(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "of another state.safetensors")
    assert_whole(dict(Pieces(tmp_path, "part_*.safetensors")))


def test_joined_they_are_one_file_that_others_read(tmp_path: Path) -> None:
    join(cut(tmp_path), tmp_path / "whole.safetensors")
    assert_whole(load_file(tmp_path / "whole.safetensors"))
    assert_whole(dict(Pieces(tmp_path, "whole.safetensors")))


def test_what_is_written_torch_reads_and_the_other_way_round(tmp_path: Path) -> None:
    for name in ("ours", "torchs"):
        (tmp_path / name).mkdir()
    write(whole(), tmp_path / "ours" / "part.safetensors", CPU)
    found = {name: torch.zeros_like(value) for name, value in whole().items()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "ours")))
    assert_whole(found)
    assert_whole(load_file(tmp_path / "ours" / "part.safetensors"))
    dcp.save(whole(), storage_writer=dcp.HuggingFaceStorageWriter(str(tmp_path / "torchs"), save_distributed=True))
    assert_whole(dict(Pieces(tmp_path / "torchs", "*.safetensors")))


def test_equal_states_are_equal_files(tmp_path: Path) -> None:
    for count in range(10):
        write(whole(), tmp_path / f"{count}.safetensors", CPU)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_who_has_nothing_makes_no_file(tmp_path: Path) -> None:
    write({}, tmp_path / "part.safetensors", CPU)
    assert list(tmp_path.iterdir()) == []


def test_what_is_on_one_process_is_written_once_and_copied() -> None:
    state = whole() | {"turned": torch.arange(6.0).view(2, 3).T}
    assert own_copies(state, whole=False) == {}
    copies = own_copies(state, whole=True)
    state["bias"].zero_()
    assert torch.equal(copies["bias"], whole()["bias"])
    assert torch.equal(copies["turned"], state["turned"]) and copies["turned"].is_contiguous()


def test_tensors_of_another_shape_or_name_are_refused(tmp_path: Path) -> None:
    pieces = Pieces(cut(tmp_path)[0].parent, "part_*.safetensors")
    bias = torch.zeros(5)
    with pytest.raises(ValueError, match="weight"):
        pieces.fill({"bias": bias, "weight": torch.zeros(4, 3, 2)})
    with pytest.raises(RuntimeError, match="biased"):
        pieces.fill({"bias": bias, "biased": torch.zeros(5)})
    assert not bias.any(), "nothing is read before everything is known to fit"


def test_room_is_made_in_the_way_of_what_is_held(tmp_path: Path) -> None:
    cut(tmp_path)
    pieces = Pieces(tmp_path, "part_*.safetensors")
    like, other, scalar = (
        pieces.room(*given)
        for given in (("half", torch.zeros(4, 3, device="meta")), ("half", torch.zeros(3)), ("count", torch.zeros(())))
    )
    assert (like.device.type, like.dtype, like.shape) == ("meta", torch.bfloat16, (4, 3))
    assert (other.device.type, other.dtype, other.shape) == ("cpu", torch.bfloat16, (4, 3))
    assert (scalar.device.type, scalar.dtype, scalar.shape) == ("cpu", torch.int64, ())
