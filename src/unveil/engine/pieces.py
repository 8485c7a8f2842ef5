"""Tensors that lie in pieces: on several processes while they are trained, in several files while they are not.

A process writes the rows that it holds into a safetensors file of its own, so nothing is gathered anywhere; and since
rows are dealt out in the order of the ranks, the files in their order hold a tensor from its first row to its last.
Whoever reads takes what it needs: other numbers of processes, and other ways of dividing, need no conversion.

torch.distributed.checkpoint does the same and more, but its index is a pickle, which can run anything when it is read.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds some rows of it only. Where no tensor is so, torch's module for them is not loaded."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own_pieces(state: Mapping[str, Tensor], *, whole: bool) -> dict[str, Tensor]:
    """What this process is to write of a state: copies in the memory of the processor, which training leaves alone.

    Of what is sharded its own rows, if it is in the first group that has them; of the rest everything, if `whole`.
    """
    pieces: dict[str, Any] = {}
    for name, tensor in state.items():
        if not is_sharded(tensor):
            pieces[name] = tensor.detach() if whole else None
        elif _in_first_group(tensor):
            rows = cast(Any, tensor.detach()).to_local()
            # Fewer rows than processes leave some with none.
            pieces[name] = rows if len(rows) else None
    return {name: piece.to("cpu", copy=True).contiguous() for name, piece in pieces.items() if piece is not None}


def as_held(whole: Tensor, held: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds, in the way that it holds `held`."""
    if not is_sharded(held) or whole.shape != held.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Every process has the whole and takes its rows: nothing is sent. A copy, lest the rows keep the whole in memory.
    local: Any = held
    return distribute_tensor(whole.to(local.device), local.device_mesh, local.placements, src_data_rank=None).clone()


def _in_first_group(sharded: Any) -> bool:
    """Whether this process is one of the first that divide the tensor among themselves; other groups have the same."""
    places = zip(sharded.device_mesh.get_coordinate(), sharded.placements, strict=True)
    return all(place == 0 for place, placement in places if placement.is_replicate())


class Pieces(Mapping[str, Tensor]):
    """The tensors in files that `own_pieces` were written to: read, and joined row by row, when they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files: dict[str, list[Any]] = {}
        for path in files:
            file = safe_open(path, framework="pt")
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                self._files.setdefault(name, []).append(file)

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file in self._files[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def join(parts: Sequence[Path], whole: Path) -> None:
    """Make one safetensors file of those with the pieces, with no more than one piece in memory at a time."""
    entries: dict[str, dict[str, Any]] = {}
    bytes_of: dict[str, list[tuple[Path, int, int]]] = {}
    for path in parts:
        header, data = _header(path)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            bytes_of.setdefault(name, []).append((path, data + start, end - start))
            if name in entries:
                entries[name]["shape"][0] += entry["shape"][0]
            else:
                entries[name] = {"dtype": entry["dtype"], "shape": entry["shape"]}
    end = 0
    for name, entry in entries.items():
        start, end = end, end + sum(length for _, _, length in bytes_of[name])
        entry["data_offsets"] = [start, end]
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with whole.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in entries:
            for path, start, length in bytes_of[name]:
                with path.open("rb") as part:
                    part.seek(start)
                    file.write(part.read(length))


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and where their bytes begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length
