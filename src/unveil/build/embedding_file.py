"""The parts of an embedding, and the .npz or .parquet that they are joined into without being held in memory."""

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from unveil.config import UnveilError
from unveil.data.sources.missing import missing_path

SUFFIXES = (".npz", ".parquet")

ROW_GROUP_BYTES = 32 * 2**20
"""Of features in one row group of a .parquet."""

_DAY = (1980, 1, 1, 0, 0, 0)
"""Of every entry of a zip, so that the same features give the same bytes."""


@dataclass(frozen=True)
class Part:
    """One file of features in the folder of parts: whole, or not there."""

    folder: Path
    number: int

    @property
    def file(self) -> Path:
        return self.folder / f"part_{self.number:06d}.npz"

    def save(self, features: np.ndarray, names: list[str], unreadable: dict[str, str], *, stop: int) -> None:
        """Write it under another name first. `stop`: place in the source after its last image."""
        temporary = self.folder / f".writing_{self.number:06d}"
        with temporary.open("wb") as file:
            paths, said = np.array(names, dtype=np.str_), np.array(json.dumps(unreadable))
            np.savez(file, features=features, paths=paths, unreadable=said, stop=np.array(stop))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.file)

    def features(self) -> np.ndarray:
        return self._read("features")

    def paths(self) -> np.ndarray:
        return self._read("paths")

    def stop(self) -> int:
        return int(self._read("stop"))

    def unreadable(self) -> dict[str, str]:
        """Name and reason."""
        return json.loads(str(self._read("unreadable")))

    def _read(self, name: str) -> np.ndarray:
        try:
            with np.load(self.file, allow_pickle=False) as content:
                return content[name]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UnveilError(f"{self.file} is damaged ({error}); delete it and run the same command again") from error


def check_out(out: Path, *, overwrite: bool) -> None:
    """Find out, before any work is done, whether `out` can be written.

    Raises:
        UnveilError: another suffix, something there already, or a package that is missing.
    """
    if out.suffix not in SUFFIXES:
        raise UnveilError(f"{out} must end in {' or '.join(SUFFIXES)}, which says in what form to write")
    if out.is_dir():
        raise UnveilError(f"{out} is a folder; give the name of a file")
    if out.exists() and not overwrite:
        raise UnveilError(f"{out} is there already; give --overwrite, or another name")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UnveilError(
                f'{out} needs the package pyarrow: pip install "unveil[parquet]", or write a .npz'
            ) from error


def write_joined(
    out: Path, parts: Sequence[Part], *, shape: tuple[int, ...], dtype: type[np.floating], notes: dict[str, Any]
) -> int:
    """Join all parts under another name, then rename; the number of images.

    Args:
        shape: of one image's features.
        notes: JSON values that the file says about itself.
    """
    temporary = out.with_name(f".{out.name}.writing")
    counts = [len(part.paths()) for part in parts]
    try:
        if out.suffix == ".npz":
            _write_npz(temporary, parts, (sum(counts), *shape), np.dtype(dtype), notes)
        else:
            _write_parquet(temporary, parts, shape, np.dtype(dtype), notes)
        os.replace(temporary, out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return sum(counts)


def read_embedding(file: Path) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """Features (images, ...), names, and what the file says about itself: what `write_joined` wrote.

    Raises:
        UnveilError: not there, damaged, something else than such a file, or a package that is missing.
    """
    if not file.is_file():
        raise UnveilError(missing_path(str(file)))
    read = _read_npz if file.suffix == ".npz" else _read_parquet
    try:
        return read(file)
    except ImportError as error:
        raise UnveilError(f'{file} needs the package pyarrow: pip install "unveil[parquet]"') from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UnveilError(
            f"{file} is no embedding of `unveil embed`, or is damaged ({error}); write it again"
        ) from error


def _read_npz(file: Path) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    with np.load(file, allow_pickle=False) as content:
        return content["features"], content["paths"].tolist(), json.loads(str(content["notes"]))


def _read_parquet(file: Path) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    kind, values = table.schema.field("features").type, table["features"].combine_chunks()
    shape = []
    while pyarrow.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind, values = kind.value_type, values.flatten()
    notes = (table.schema.metadata or {})[b"unveil"]
    return values.to_numpy().reshape(len(table), *shape), table["path"].to_pylist(), json.loads(notes)


def _write_npz(
    file: Path, parts: Sequence[Part], shape: tuple[int, ...], dtype: np.dtype, notes: dict[str, Any]
) -> None:
    """Arrays `features`, `paths` (text) and `notes` (JSON), none of which needs a pickle."""
    widest = max(part.paths().dtype.itemsize for part in parts) // np.dtype("U1").itemsize
    text = np.dtype(f"U{max(widest, 1)}")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_array(archive, "features", shape, dtype, (part.features() for part in parts))
        _write_array(archive, "paths", shape[:1], text, (part.paths().astype(text) for part in parts))
        said = np.array(json.dumps(notes))
        _write_array(archive, "notes", (), said.dtype, iter([said]))


def _write_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, pieces: Iterator[np.ndarray]
) -> None:
    with archive.open(zipfile.ZipInfo(f"{name}.npy", _DAY), "w", force_zip64=True) as entry:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        stream: IO[bytes] = entry
        np.lib.format.write_array_header_1_0(stream, header)
        for piece in pieces:
            stream.write(np.ascontiguousarray(piece).tobytes())


def _write_parquet(
    file: Path, parts: Sequence[Part], shape: tuple[int, ...], dtype: np.dtype, notes: dict[str, Any]
) -> None:
    """Columns `path` and `features`, lists of fixed length; `notes` are in the schema's metadata under "unveil"."""
    import pyarrow
    import pyarrow.parquet

    kind = pyarrow.from_numpy_dtype(dtype)
    for length in reversed(shape):
        kind = pyarrow.list_(kind, length)
    schema = pyarrow.schema([("path", pyarrow.string()), ("features", kind)], metadata={"unveil": json.dumps(notes)})
    rows = max(1, ROW_GROUP_BYTES // (dtype.itemsize * int(np.prod(shape))))
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for features, names in _regrouped(parts, rows):
            values = pyarrow.array(features.reshape(-1))
            for length in reversed(shape):
                values = pyarrow.FixedSizeListArray.from_arrays(values, length)
            paths = pyarrow.array(names.tolist(), pyarrow.string())
            writer.write_table(pyarrow.Table.from_arrays([paths, values], schema=schema))


def _regrouped(parts: Sequence[Part], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features and paths in groups of `rows` (the last has what is left), however long the parts are."""
    features, paths = parts[0].features(), parts[0].paths()
    for part in parts[1:]:
        features, paths = np.concatenate([features, part.features()]), np.concatenate([paths, part.paths()])
        while len(paths) >= rows:
            yield features[:rows], paths[:rows]
            features, paths = features[rows:], paths[rows:]
    for start in range(0, len(paths), rows):
        yield features[start : start + rows], paths[start : start + rows]
