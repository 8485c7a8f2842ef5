"""The bounded copy on this machine: what it holds, what goes first, and several processes at once."""

import multiprocessing
import random
import sqlite3
from pathlib import Path

import pytest

from unveil.data.remote import cache as caching
from unveil.data.remote.cache import PAGE, ByteCache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ByteCache:
    monkeypatch.setattr(caching, "REFRESH", 0)
    return ByteCache(tmp_path / "deep" / "cache.sqlite", 3 * PAGE)


def test_what_was_used_last_stays(cache: ByteCache) -> None:
    assert cache.get("a") is None
    for key in "abc":
        cache.put(key, key.encode() * 100)
    assert cache.get("a") == b"a" * 100
    cache.put("d", b"d")
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    cache.put("e", b"e" * (2 * PAGE))
    assert [cache.get(key) is not None for key in "acde"] == [False, False, True, True]
    cache.put("too large", b"x" * (3 * PAGE + 1))
    assert cache.get("too large") is None and cache.get("d") == b"d"
    cache.put("d", b"another")
    assert cache.get("d") == b"another"


def test_the_file_does_not_grow_beyond_the_limit(tmp_path: Path) -> None:
    cache = ByteCache(tmp_path / "cache.sqlite", 64 * PAGE)
    rng = random.Random(0)
    for number in range(400):
        cache.put(str(number), rng.randbytes(rng.randrange(1, 5 * PAGE)))
    assert cache.file.stat().st_size <= 1.2 * 64 * PAGE + 20 * PAGE


def test_damaged_files_and_contents_are_begun_anew(cache: ByteCache, caplog: pytest.LogCaptureFixture) -> None:
    cache.put("a", b"whole")
    with sqlite3.connect(cache.file) as connection:
        connection.execute("UPDATE contents SET data = ?", (b"other",))
    connection.close()
    assert cache.get("a") is None
    cache.file.write_bytes(b"not a database at all" * 1000)
    assert cache.get("a") is None and "is damaged" in caplog.text
    cache.put("a", b"again")
    assert cache.get("a") == b"again"


def test_a_place_that_cannot_be_written_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ByteCache(tmp_path / "file" / "cache.sqlite", 10 * PAGE)
    cache.put("a", b"1")
    assert cache.get("a") is None


def test_several_processes_at_once_one_of_them_killed(tmp_path: Path) -> None:
    cache = ByteCache(tmp_path / "cache.sqlite", 20 * PAGE)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def use(seed: int) -> None:
        rng = random.Random(seed)
        wrong = 0
        for _ in range(150):
            key = rng.randrange(40)
            found = cache.get(str(key))
            if found is None:
                cache.put(str(key), bytes([key]) * (100 + key))
            else:
                wrong += found != bytes([key]) * (100 + key)
        answers.put(wrong)

    def use_for_ever() -> None:
        for number in range(10**9):
            cache.put(str(number % 40), bytes([number % 40]) * (100 + number % 40))

    victim = context.Process(target=use_for_ever)
    processes = [context.Process(target=use, args=(seed,)) for seed in range(3)]
    for process in (victim, *processes):
        process.start()
    wrong = [answers.get()]
    victim.kill()
    wrong += [answers.get() for _ in processes[1:]]
    for process in (victim, *processes):
        process.join()
    assert wrong == [0, 0, 0]
    with sqlite3.connect(cache.file) as connection:
        (total,) = connection.execute("SELECT size FROM total").fetchone()
        counted, entries = connection.execute("SELECT sum(size), count(*) FROM entries").fetchone()
        assert total == counted <= 20 * PAGE and entries == 20
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
