"""30 million samples behind one loader: memory, look-up, resume; and what packing and checking do in a second.

    uv run python benchmarks/data_at_scale.py [--samples 30000000] [--shards 3000] [--workers 0 1 4 8]

The index is simulated: tars that hold no bytes, with indices of real form beside them. A look-up is what comes before
the image itself is read: from the number to its place in the shuffled order, to its row and its name. Memory is
the resident set of each process after look-ups all over the set (what it shares with others counted in full), and the
part of it that is its own; torch, torchvision and timm are loaded, as in training.
"""

import argparse
import random
import resource
import statistics
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import timm  # noqa: F401
from loader import write_photos

from unveil.data.check.duplicates import near_pairs
from unveil.data.check.scan import scan_images
from unveil.data.order import sample_index
from unveil.data.pack import PackSettings, pack
from unveil.data.remote.cache import ByteCache
from unveil.data.sources.caption_text import LeftOut
from unveil.data.sources.folder import FolderSource
from unveil.data.sources.index_file import COLUMNS, HeldBytes, TarIndex, save_index
from unveil.data.sources.shards import ShardSource

NAME = 36
"""Characters of a member's name, as "21k/n01440764/n01440764_10026.JPEG" has."""
IMAGE_BYTES = 110_000


def simulate(folder: Path, samples: int, shards: int) -> list[Path]:
    """Tars of the right sizes without contents, and their indices."""
    each = samples // shards
    table = np.zeros(each, dtype=COLUMNS)
    table["size"] = IMAGE_BYTES
    table["offset"] = 512 + np.arange(each, dtype=np.uint64) * (IMAGE_BYTES // 512 + 2) * 512
    table["name_start"] = np.arange(each, dtype=np.uint64) * NAME
    table["name_size"] = NAME
    rows, end = HeldBytes(table.tobytes()), int(table["offset"][-1]) + IMAGE_BYTES
    paths = []
    for shard in range(shards):
        path = folder / f"{shard:05d}.tar"
        with path.open("wb") as file:
            file.truncate(end)
        names = "".join(f"{shard:05d}/{number:026d}.jpg" for number in range(each)).encode()
        assert len(names) == NAME * each
        index = TarIndex(each, rows, HeldBytes(names), f"{shard:064d}", f"{shard:064d}", "", LeftOut(), "")
        status = path.stat()
        save_index(folder / f"{shard:05d}.tar.index", (status.st_size, status.st_mtime_ns), index)
        paths.append(path)
    return paths


def memory() -> tuple[float, float]:
    """Resident set of this process, and what of it is its own, MiB."""
    lines = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    value = {name: int(text.split()[0]) / 1024 for name, text in lines.items() if "kB" in text}
    return value["Rss"], value["Private_Dirty"] + value["Private_Clean"]


def look_up(source: ShardSource, count: int, seed: int) -> list[float]:
    """Microseconds for each of `count` samples of a shuffled run: place, row and name."""
    times = []
    first = random.Random(seed).randrange(10**9)
    for number in range(first, first + count):
        start = time.perf_counter()
        source._find(sample_index(number, len(source), 0))
        times.append((time.perf_counter() - start) * 1e6)
    return times


def in_worker(source: ShardSource, count: int, seed: int, answers: object) -> None:
    times = look_up(source, count, seed)
    answers.put((*memory(), statistics.median(times)))  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=30_000_000)
    parser.add_argument("--shards", type=int, default=3_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 4, 8])
    parser.add_argument("--reads", type=int, default=100_000, help="look-ups of each process")
    parser.add_argument("--near", type=int, default=0, help="also search near duplicates among so many hashes")
    parser.add_argument("--images", type=int, default=0, help="also pack and check so many JPEGs, with one process")
    arguments = parser.parse_args()
    print(f"before anything is opened: {memory()[0]:,.0f} MiB resident")
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        paths = simulate(Path(name), arguments.samples, arguments.shards)
        on_disk = sum(path.with_suffix(".tar.index").stat().st_size for path in paths)
        print(
            f"simulated in {time.perf_counter() - start:.0f} s; the indices take {on_disk / 2**30:.2f} GiB on the disk"
        )
        start = time.perf_counter()
        source = ShardSource(paths)
        opened = time.perf_counter()
        source.digest()
        print(f"{len(source):,} samples opened in {opened - start:.2f} s", end=", ")
        print(f"digest for the resume {time.perf_counter() - opened:.2f} s; {memory()[0]:,.0f} MiB resident")
        for workers in arguments.workers:
            if workers == 0:
                times = look_up(source, arguments.reads, 0)
                resident, own, middle = *memory(), statistics.median(times)
                print(
                    f"0 workers: {resident:,.0f} MiB, its own {own:,.0f}; look-up {middle:.1f} us, "
                    f"99 of 100 within {statistics.quantiles(times, n=100)[-1]:.1f} us"
                )
                continue
            context = get_context("fork")
            answers = context.SimpleQueue()
            processes = [
                context.Process(target=in_worker, args=(source, arguments.reads, seed, answers))
                for seed in range(1, workers + 1)
            ]
            for process in processes:
                process.start()
            found = [answers.get() for _ in processes]
            for process in processes:
                process.join()
            resident, own, middle = (max(values) for values in zip(*found, strict=True))
            print(f"{workers} workers: each at most {resident:,.0f} MiB, its own {own:,.0f}; look-up {middle:.1f} us")
    if arguments.images:
        pack_and_check(arguments.images)
    if arguments.near:
        search_near(arguments.near)


def pack_and_check(count: int) -> None:
    """Images per second of processor time, of one process; and the cache for object storage."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photos(folder / "photos", count, 500, 375)
        source = FolderSource(folder / "photos")
        for what, settings in (("as they are", PackSettings()), ("to 256 px", PackSettings(short_side=256))):
            start = time.process_time()
            pack(source, folder / what, settings)
            print(f"packed {what}: {count / (time.process_time() - start):,.0f} images/s")
        start = time.process_time()
        scan_images(source)
        print(f"checked: {count / (time.process_time() - start):,.0f} images/s")
        cache, data = ByteCache(folder / "cache.sqlite", 2**30), bytes(IMAGE_BYTES)
        for what, use in (("put", lambda key: cache.put(key, data)), ("got", cache.get)):
            start = time.process_time()
            for number in range(1000):
                use(str(number))
            print(f"cache, 110 kB {what}: {(time.process_time() - start) * 1000:.0f} us")


def search_near(count: int) -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, (count, 4), dtype=np.uint64)
    for distance in (15, 11, 7):
        start = time.perf_counter()
        near_pairs(hashes, distance)
        print(f"near duplicates among {count:,} hashes, {distance} bits: {time.perf_counter() - start:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"at most {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
