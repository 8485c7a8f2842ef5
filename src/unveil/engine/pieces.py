"""The tensors of a checkpoint, by torch.distributed.checkpoint: each process writes and reads its own rows only.

torch plans who writes what, and who reads which rows of which file. On the disk are safetensors files, one for each
process that has something to write, in whose headers it is said where in the whole their pieces begin, if that is not
at its first row: torch's layout for Hugging Face. Its usual one has a pickle for an index, which can run anything when
it is read.

Loaded only where a checkpoint is written or read, for torch's part of it takes seconds to import.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from unveil.config import UnveilError
from unveil.engine.parallel import Parallel, is_sharded

# torch says so whenever one process saves or loads.
warnings.filterwarnings("ignore", "torch.distributed is disabled")

PLACES, BEGINNING = "DCP_SHARDING_INFO", "saved_offsets"
"""What torch calls, in a file's header, the places of all its pieces and the beginning of one."""


def own_copies(state: Mapping[str, Tensor], *, whole: bool) -> dict[str, Tensor]:
    """What this process is to write of a state: copies in the memory of the processor, which training leaves alone.

    Of what is sharded its own rows; of the rest everything, if `whole`.
    """
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
        if whole or is_sharded(tensor)
    }


def write(state: Mapping[str, Tensor], file: Path, parallel: Parallel) -> None:
    """Write a state together. Each process calls it with what it has, and a file for its part; of what several have,
    one writes it. Who has nothing to write makes no file.

    Raises: on all processes what any of them raised.
    """
    with _as_raised():
        dcp.save(
            dict(state),
            storage_writer=_Writer(file, parallel.rank),
            process_group=parallel.group,
            no_dist=parallel.world_size == 1,
        )


class _Writer(dcp.HuggingFaceStorageWriter):
    """torch's, but from the tensors into the file: torch's puts that together in memory first, twice (torch 2.14)."""

    def __init__(self, file: Path, rank: int) -> None:
        super().__init__(str(file.parent), save_distributed=True)
        self._file = file
        self._rank = rank

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        # torch's would make the folder.
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        if plan.items:
            if not self._file.parent.exists():
                raise UnveilError(
                    f"process {self._rank} has a part of the checkpoint to write and does not find "
                    f"{self._file.parent}, which the first process has made: give --out a folder that all machines "
                    "share"
                )
            pieces: dict[str, Any] = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            places = {item.index.fqn: {BEGINNING: list(item.index.offset or ())} for item in plan.items}
            metadata = {"format": "pt"}
            # Where all begin at zero there is nothing to say; then equal states are equal files, byte for byte, which
            # they are not with two entries: safetensors writes those in any order.
            if any(any(place[BEGINNING]) for place in places.values()):
                metadata[PLACES] = json.dumps(places)
            save_file(pieces, self._file, metadata=metadata)
        nothing: Future[list[WriteResult]] = Future()
        nothing.set_result([])
        return nothing


class Pieces(Mapping[str, Tensor]):
    """A state in the files of a folder that `write`, or anybody else, has written: read when it is asked for.

    Args:
        files: their names, with * for the numbers of the processes.
    """

    def __init__(self, folder: Path, files: str) -> None:
        self._reader = dcp.HuggingFaceStorageReader(str(folder))
        self._reader.fs = _Some(files)
        self._tensors: dict[str, Any] = self._reader.read_metadata().state_dict_metadata

    def fill(self, state: Mapping[str, Tensor]) -> None:
        """Read into the tensors of `state`, into those that are sharded the rows that this process holds.

        Raises:
            ValueError, RuntimeError: one of them is not there, or has another shape.
        """
        with _as_raised():
            # Every process knows its rows and finds them by itself.
            dcp.load(dict(state), storage_reader=self._reader, no_dist=True)

    def room(self, name: str, held: Tensor) -> Tensor:
        """An empty tensor for one of them; if it has the shape of `held`, it lies and is sharded as that is.

        Scalars stay on the processor, where optimizers count their steps.
        """
        size, dtype = self._tensors[name].size, self._tensors[name].properties.dtype
        return torch.empty_like(held, dtype=dtype) if size and size == held.shape else torch.empty(size, dtype=dtype)

    def __getitem__(self, name: str) -> Tensor:
        whole = self.room(name, torch.empty(()))
        self.fill({name: whole})
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Some(FileSystem):
    """Of a folder the files of one state, where torch's reader takes all that are there."""

    def __init__(self, files: str) -> None:
        self._files = files

    def ls(self, path: Any) -> list[str]:
        return [str(file) for file in Path(path).glob(self._files)]


def join(parts: Sequence[Path], whole: Path) -> None:
    """Make one safetensors file of those with the rows, with no more than some rows of one tensor in memory at a time.

    torch's own way (`enable_consolidation`) fails at integers and makes scalars zero (torch 2.14).
    """
    entries: dict[str, dict[str, Any]] = {}
    rows: dict[str, list[tuple[list[int], Tensor]]] = {}
    for part in parts:
        file = safe_open(part, framework="pt")
        places = json.loads(file.metadata().get(PLACES, "{}"))
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            entries[name] = {"dtype": file.get_slice(name).get_dtype()}
            # Not read yet: the file is mapped into memory.
            piece = file.get_tensor(name)
            beginning = places[name][BEGINNING] if places else [0] * piece.ndim
            rows.setdefault(name, []).append((beginning, piece))
    end = 0
    for name, entry in entries.items():
        rows[name].sort(key=itemgetter(0))
        held = [piece for _, piece in rows[name]]
        start, end = end, end + sum(piece.nbytes for piece in held)
        entry["shape"] = [sum(map(len, held)), *held[0].shape[1:]] if held[0].ndim else []
        entry["data_offsets"] = [start, end]
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with whole.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in entries:
            for _, piece in rows[name]:
                out.write(piece.flatten().view(torch.uint8).numpy().data)


@contextmanager
def _as_raised() -> Iterator[None]:
    """What a process raised in one of torch's exchanges, without what torch wraps it in."""
    try:
        yield
    except dcp.CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
