"""Images of any source as WebDataset tars with their offset indices, by many processes, going on where it was ended."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from unveil.config.errors import UnveilError
from unveil.data.decode import decode_image
from unveil.data.processes import in_processes
from unveil.data.sources.base import Encoded, EncodedSource, UnreadableSample
from unveil.data.sources.labelled import CLASSES_FILE
from unveil.data.sources.tar_index import read_tar_index

MANIFEST = "pack.json"
"""What is packed and how: the same command goes on, another one is refused."""
CONTENTS = "contents"
"""Folder of one .jsonl for each tar: what each sample was, and what was left out."""
LEFT_OUT_BY_LIST = "in the list of what to leave out"


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """What the tars look like."""

    samples_per_shard: int = 10_000
    short_side: int | None = None
    """Larger images are brought to this shorter side, pixels, as JPEG; others, and all where it is None, keep their
    bytes."""
    quality: int = 92
    """Of those JPEGs."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UnveilError(f"--samples-per-shard is {self.samples_per_shard}; give at least 1")
        if self.short_side is not None and self.short_side < 1:
            raise UnveilError(f"--short-side is {self.short_side}; give at least 1 pixel")
        if not 1 <= self.quality <= 95:
            raise UnveilError(f"--quality is {self.quality}; JPEG knows 1 to 95")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What a folder of shards holds now."""

    shards: int
    samples: int
    bytes: int
    left_out: dict[str, int]
    """Reason -> how many."""
    found: int
    """Shards that an earlier run had finished."""


def pack(
    source: EncodedSource,
    out: Path,
    settings: PackSettings,
    *,
    classes: tuple[str, ...] | None = None,
    leave_out: Collection[str] = (),
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write `out`/shard-000000.tar and so on.

    Sample n of the source gets the key n, nine digits, and shard n // samples_per_shard; its label becomes a .cls, a
    caption a .txt, several of them a .json. So shards depend on nothing but the source and the settings: each is
    written under another name, then renamed, and a run that was ended, by SIGKILL too, goes on with those that are
    missing. Whatever cannot be read is left out, and `out`/contents says so.

    Args:
        classes: names of the labels, for `out`/classes.txt.
        leave_out: names of samples.
        on_progress: called with samples done and in all.

    Raises:
        UnveilError: `out` is of another source or other settings, or cannot be written.
    """
    count, each = len(source), settings.samples_per_shard
    shards = range(-(-count // each))
    with _writing(out):
        _prepare(source, out, settings, leave_out, classes)
    missing = [number for number in shards if not _is_done(out, number)]
    work = _ShardWriter(source, out, settings, frozenset(leave_out))
    done = sum(min(each, count - number * each) for number in shards) - sum(
        min(each, count - number * each) for number in missing
    )
    for number, _ in in_processes(work, missing, workers):
        done += min(each, count - number * each)
        if on_progress is not None:
            on_progress(done, count)
    return _sum_up(out, shards, found=len(shards) - len(missing))


@dataclass(frozen=True)
class _ShardWriter:
    source: EncodedSource
    out: Path
    settings: PackSettings
    leave_out: frozenset[str]

    def __call__(self, number: int) -> None:
        """Write one shard."""
        path, each = _tar(self.out, number), self.settings.samples_per_shard
        temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
        lines = []
        with _writing(path):
            with open(temporary, "wb") as file:
                # Members without times and owners, so that the same samples give the same bytes.
                with tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for place in range(number * each, min((number + 1) * each, len(self.source))):
                        lines.append(self._add(tar, place))
                file.flush()
                os.fsync(file.fileno())
            # First what the shard holds: where the shard is there, this is there too.
            _write_text(_contents(self.out, number), "".join(json.dumps(line) + "\n" for line in lines))
            if any("key" in line for line in lines):
                os.replace(temporary, path)
                read_tar_index(os.fspath(path))
            else:
                temporary.unlink()

    def _add(self, tar: tarfile.TarFile, place: int) -> dict[str, str]:
        """The line of the contents that tells what became of a sample."""
        try:
            found = self.source.encoded(place)
            if found.name in self.leave_out:
                return {"from": found.name, "left out": LEFT_OUT_BY_LIST}
            data, suffix = encode(found, self.settings)
        except UnreadableSample as error:
            return {"from": error.name, "left out": error.reason}
        key = f"{place:09d}"
        _add_member(tar, key + suffix, data)
        if found.label is not None:
            _add_member(tar, f"{key}.cls", str(found.label).encode())
        if len(found.captions) == 1:
            _add_member(tar, f"{key}.txt", found.captions[0].encode())
        elif found.captions:
            _add_member(tar, f"{key}.json", json.dumps({"captions": found.captions}).encode())
        return {"key": key, "from": found.name}


def encode(found: Encoded, settings: PackSettings) -> tuple[bytes, str]:
    """An image's bytes and suffix in the shard.

    Raises:
        UnreadableSample: empty, or it should be made smaller and cannot be decoded.
    """
    suffix = os.path.splitext(found.name)[1].lower()
    if not found.data:
        raise UnreadableSample(found.name, "the file is empty (0 bytes)")
    if settings.short_side is None:
        return found.data, suffix
    # Twice the side: libjpeg's coarse reduction is followed by a fine one, and never reaches the wanted side itself.
    image = decode_image(found.data, found.name, 2 * settings.short_side)
    shorter = min(image.size)
    if shorter <= settings.short_side:
        return found.data, suffix
    width, height = (max(1, round(side * settings.short_side / shorter)) for side in image.size)
    stream = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0).save(
        stream, "JPEG", quality=settings.quality
    )
    return stream.getvalue(), ".jpg"


def read_leave_out(file: Path) -> frozenset[str]:
    """Names of samples, one a line, as `unveil data check` writes them.

    Raises:
        UnveilError: it cannot be read.
    """
    try:
        return frozenset(line for line in file.read_text(encoding="utf-8").split("\n") if line)
    except (OSError, UnicodeDecodeError) as error:
        raise UnveilError(f"cannot read {file} ({error}); give a text file with one name of an image a line") from None


def _prepare(
    source: EncodedSource,
    out: Path,
    settings: PackSettings,
    leave_out: Collection[str],
    classes: tuple[str, ...] | None,
) -> None:
    """A folder with a manifest, and without what an earlier run left half-written."""
    listed = hashlib.sha256("\n".join(sorted(leave_out)).encode()).hexdigest()
    manifest = {"images": len(source), **asdict(settings), "classes": classes and list(classes), "leave_out": listed}
    manifest["source"] = source.digest()
    file = out / MANIFEST
    if not file.exists():
        if out.exists() and any(not entry.match(f".{MANIFEST}.*.writing") for entry in out.iterdir()):
            raise UnveilError(f"{out} holds other files; give --to a new folder")
        out.mkdir(parents=True, exist_ok=True)
        # Before anything else: a folder with a manifest is known again, however little of the rest was written.
        _write_text(file, json.dumps(manifest, indent=2) + "\n")
    elif changed := _differences(_read_manifest(file), manifest):
        raise UnveilError(f"{out} was begun with other {changed}; give --to a new folder, or the old command")
    (out / CONTENTS).mkdir(exist_ok=True)
    if classes is not None:
        _write_text(out / CLASSES_FILE, "".join(f"{name}\n" for name in classes))
    for left in out.rglob(".*.writing"):
        left.unlink()


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnveilError(f"{file} cannot be read ({error}); give --to a new folder") from None
    return manifest if isinstance(manifest, dict) else {}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(name for name in new if json.dumps(old.get(name)) != json.dumps(new[name]))


def _is_done(out: Path, number: int) -> bool:
    if _tar(out, number).exists():
        return True
    contents = _contents(out, number)
    return contents.exists() and '"key"' not in contents.read_text(encoding="utf-8")


def _sum_up(out: Path, shards: range, found: int) -> Packed:
    samples = size = 0
    left_out: dict[str, int] = {}
    for number in shards:
        path = _tar(out, number)
        if path.exists():
            size += path.stat().st_size
            # A run may have been ended after the tar and before its index.
            samples += len(read_tar_index(os.fspath(path)))
        with open(_contents(out, number), encoding="utf-8") as lines:
            for line in lines:
                if (reason := json.loads(line).get("left out")) is not None:
                    left_out[reason] = left_out.get(reason, 0) + 1
    written = sum(_tar(out, number).exists() for number in shards)
    return Packed(shards=written, samples=samples, bytes=size, left_out=left_out, found=found)


def _tar(out: Path, number: int) -> Path:
    return out / f"shard-{number:06d}.tar"


def _contents(out: Path, number: int) -> Path:
    return out / CONTENTS / f"shard-{number:06d}.jsonl"


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _write_text(path: Path, text: str) -> None:
    """In one go: whoever reads it finds nothing or all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Inside the block `path` is written. Raises UnveilError where that fails."""
    try:
        yield
    except OSError as error:
        raise UnveilError(
            f"cannot write {path} ({error.strerror or error}); mend that and run the same command again"
        ) from error
