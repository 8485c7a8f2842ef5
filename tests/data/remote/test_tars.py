"""Shards in a store: the same samples as from the disk, though every third read fails."""

import os
import pickle
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest

from unveil.config import UnveilError
from unveil.data.loader import TrainingLoader
from unveil.data.remote import store
from unveil.data.sources.base import UnreadableSample
from unveil.data.sources.labelled import open_labelled
from unveil.data.sources.open import open_images
from unveil.data.sources.shards import ShardSource


@pytest.fixture
def tars(tmp_path: Path, write_tar, photo, encoded) -> list[Path]:
    """Three tars of five labelled images, with an index beside each but the last."""
    paths = [tmp_path / "tars" / f"{number:03d}.tar" for number in range(3)]
    for number, path in enumerate(paths):
        members = {}
        for place in range(number * 5, number * 5 + 5):
            members[f"{place}.png"] = encoded(photo(place), "PNG")
            members[f"{place}.cls"] = str(place % 4).encode()
        write_tar(path, members)
    ShardSource(paths[:2])
    return paths


def upload(system: fsspec.AbstractFileSystem, tars: list[Path]) -> None:
    for path in sorted(tars[0].parent.iterdir()):
        system.pipe_file(f"/shards/{path.name}", path.read_bytes())


def seen(source, workers: int = 0, steps: range = range(8)) -> list[tuple[list[int], bytes]]:
    """Sample numbers and pixels of steps of 3, of which a pass over 15 samples has 5."""
    loader = TrainingLoader(
        source,
        lambda sample, _: {"pixels": np.asarray(sample.image)},
        lambda rows: {"pixels": np.stack([row["pixels"] for row in rows])},
        seed=3,
        global_batch_size=3,
        micro_batch_size=3,
        workers=workers,
    )
    batches = [batch for step in loader.steps(steps.start, steps.stop) for batch in step]
    assert not loader.unreadable
    return [(batch["indices"].tolist(), batch["pixels"].tobytes()) for batch in batches]


@pytest.mark.parametrize("cache_gib", ["0", "1", "0.00005"])
@pytest.mark.parametrize("workers", [0, 2])
def test_failing_reads_lose_and_repeat_no_sample(
    flaky, tars: list[Path], monkeypatch: pytest.MonkeyPatch, cache_gib: str, workers: int
) -> None:
    monkeypatch.setenv("UNVEIL_CACHE_GIB", cache_gib)
    upload(flaky, tars)
    remote = open_images(["flaky://shards/{000..002}.tar"])
    assert len(remote) == 15
    epochs = range(10)
    expected = seen(ShardSource(tars), 0, epochs)
    assert seen(remote, workers, epochs) == expected
    # Each of the two passes has each sample once.
    places = [place for indices, _ in expected for place in indices]
    assert sorted(places[:15]) == sorted(places[15:]) == list(range(15))
    if not workers:
        # Those of other processes are not counted here.
        assert next(type(flaky).reads) > 15


def test_what_is_in_the_cache_is_not_read_again(flaky, tars: list[Path]) -> None:
    upload(flaky, tars)
    source = open_images(["flaky://shards"])
    first = [np.asarray(source[place].image) for place in range(15)]
    answered = type(flaky).answered
    again = open_images(["flaky://shards/*.tar"])
    assert all(np.array_equal(np.asarray(again[place].image), first[place]) for place in range(15))
    assert type(flaky).answered == answered


def test_labels_digests_stamps_and_copies(flaky, tars: list[Path]) -> None:
    upload(flaky, tars)
    source, classes = open_labelled(["flaky://shards/*.tar"])
    assert classes == ("0", "1", "2", "3")
    assert [source[place].label for place in range(15)] == [place % 4 for place in range(15)]
    shards = open_images(["flaky://shards/"])
    assert shards.digest() == ShardSource(tars).digest()
    assert shards.stamp(7).size == ShardSource(tars).stamp(7).size and shards.stamp(7).modified > 0
    copy = pickle.loads(pickle.dumps(shards))
    assert np.array_equal(np.asarray(copy[14].image), np.asarray(shards[14].image))


def test_a_changed_tar_is_not_taken_from_the_cache(flaky, tars: list[Path], write_tar, photo, encoded) -> None:
    upload(flaky, tars)
    open_images(["flaky://shards/002.tar"])[0]
    write_tar(tars[2], {"x.png": encoded(photo(50), "PNG")})
    upload(flaky, tars)
    changed = open_images(["flaky://shards/002.tar"])
    assert len(changed) == 1 and np.array_equal(np.asarray(changed[0].image), np.asarray(photo(50)))


def test_a_store_that_is_gone_ends_the_run_with_a_sentence(
    flaky, tars: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(flaky, tars)
    source = open_images(["flaky://shards/"])

    def broken(*_: object, **__: object) -> bytes:
        raise TimeoutError

    monkeypatch.setattr(type(flaky), "cat_file", broken)
    tries: list[float] = []
    monkeypatch.setattr(store.time, "sleep", tries.append)
    with pytest.raises(
        UnveilError, match=r"shards/000.tar: TimeoutError, 10 times in a row; when the store answers again"
    ):
        source[0]
    assert len(tries) == 9 and tries[8] > 10 * tries[0]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("flaky://shards/7.tar", "7.tar: there is no such file; check the address"),
        ("flaky://shards/*.zip", "nothing that ends in .tar matches"),
        ("flaky://nothing", "there is no .tar below flaky://nothing; .*, such as flaky://nothing/000.tar"),
        ("flaky://shards/junk.tar", "junk.tar is not a tar file"),
        ("flaky://shards/empty.tar", "empty.tar is empty"),
        ("nowhere://x/a.tar", "cannot be opened .*addresses are s3://"),
        ("gs://x/a.tar", r"pip install 'unveil\[gcs\]'"),
    ],
)
def test_bad_addresses(flaky, tars: list[Path], address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(flaky, tars)
    flaky.pipe_file("/shards/junk.tar", b"no tar" * 200)
    flaky.pipe_file("/shards/empty.tar", b"")
    if address.startswith("gs"):
        pytest.importorskip("s3fs")
        if "gcsfs" in __import__("sys").modules:
            pytest.skip("gcsfs is installed")
    with pytest.raises(UnveilError, match=message):
        open_images([address])


def test_a_cache_size_that_is_none(flaky, tars: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    upload(flaky, tars)
    monkeypatch.setenv("UNVEIL_CACHE_GIB", "lots")
    with pytest.raises(UnveilError, match="UNVEIL_CACHE_GIB is 'lots'"):
        open_images(["flaky://shards/"])[0]


def test_an_s3_server_that_fails_every_third_read(s3, tars: list[Path]) -> None:
    for path in sorted(tars[0].parent.iterdir()):
        s3(f"shards/{path.name}", path)
    expected = seen(ShardSource(tars), 0, range(10))
    for pattern in ("s3://bucket/shards/{000..002}.tar", "s3://bucket/shards/"):
        assert seen(open_images([pattern]), 2, range(10)) == expected
    with pytest.raises(UnveilError, match="no such file"):
        open_images(["s3://bucket/shards/9.tar"])


def serve(folder: Path, tars: list[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in tars[0].parent.iterdir():
        shutil.copy2(path, folder)


def test_a_web_server_that_fails_every_third_time(web, tars: list[Path]) -> None:
    serve(web.folder, tars)
    expected = seen(ShardSource(tars), 0, range(10))
    assert seen(open_images([web.address + "/{000..002}.tar"]), 2, range(10)) == expected


def test_a_tar_changed_on_a_web_server_is_not_taken_from_the_cache(web, tars: list[Path], photo) -> None:
    serve(web.folder, tars)
    address = [f"{web.address}/000.tar"]
    assert np.array_equal(np.asarray(open_images(address)[0].image), np.asarray(photo(0)))
    # As large as before, at another time: all that this server says of it.
    with tarfile.open(web.folder / "000.tar") as tar:
        first = tar.getmembers()[0]
    data = bytearray((web.folder / "000.tar").read_bytes())
    data[first.offset_data : first.offset_data + first.size] = bytes(first.size)
    (web.folder / "000.tar").write_bytes(data)
    os.utime(web.folder / "000.tar", (2_000_000_000, 2_000_000_000))
    changed = open_images(address)
    assert changed.stamp(0).modified == 2_000_000_000 * 10**9
    with pytest.raises(UnreadableSample):
        changed[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("9.tar", "9.tar: there is no such file; check the address"),
        ("secret/000.tar", r"secret/000.tar: the server refuses it \(HTTP 403\); check the address and your access"),
        ("whole/000.tar", "whole/000.tar: the server sends whole files only .* use one that answers Range requests"),
    ],
)
def test_web_addresses_that_cannot_be_read_are_told_at_once(
    web, tars: list[Path], monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    serve(web.folder / "whole", tars)
    tries: list[float] = []
    monkeypatch.setattr(store.time, "sleep", tries.append)
    with pytest.raises(UnveilError, match=message):
        open_images([f"{web.address}/{name}"])[0]
    assert len(tries) <= 2, "one 503 or two on the way, not ten tries"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:9/000.tar", "Cannot connect to host .*, 10 times in a row"),
        ("{web}/down/000.tar", "000.tar: the server answers HTTP 503, 10 times in a row; when the store answers again"),
    ],
)
def test_a_web_server_that_does_not_answer_is_asked_again(
    web, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    tries: list[float] = []
    monkeypatch.setattr(store.time, "sleep", tries.append)
    with pytest.raises(UnveilError, match=message):
        open_images([address.format(web=web.address)])
    assert len(tries) == 9
