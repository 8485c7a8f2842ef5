"""A bounded local copy of what was read from far away, shared by all processes of a machine."""

import logging
import sqlite3
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

PAGE = 16384
"""Bytes; what an entry takes is a multiple of it."""
PATIENCE = 5.0
"""Seconds that a process waits for another one that writes; then it goes without the cache."""
REFRESH = 60_000_000_000
"""Nanoseconds: that an entry was used is written down at most so often, since writers wait for one another."""

_SCHEMA = f"""
PRAGMA page_size={PAGE};
PRAGMA journal_mode=TRUNCATE;
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries
    (id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, size INTEGER NOT NULL, checksum INTEGER NOT NULL,
     used INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS by_use ON entries (used);
CREATE TABLE IF NOT EXISTS contents (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS total (size INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total);
COMMIT;
"""


@dataclass(frozen=True)
class ByteCache:
    """At most `limit` bytes in one SQLite file; what has not been used for longest goes first.

    SQLite makes each change whole or not at all, whatever process is killed, and lets processes take turns. A
    connection lives for one call: it must not be open when workers are forked. What cannot be read or written (a full
    disk, a damaged file) is as if it were not there.
    """

    file: Path
    limit: int

    def get(self, key: str) -> bytes | None:
        """What was put under the key, unless it had to go."""
        return self._use(lambda connection: _get(connection, key))

    def put(self, key: str, data: bytes) -> None:
        """Keep a copy, in the place of an older one. Nothing happens where it is larger than the whole cache."""
        if _space(data) <= self.limit:
            self._use(lambda connection: _put(connection, key, data, self.limit))

    def _use(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        connection = None
        try:
            new = not self.file.exists() or self.file.stat().st_size == 0
            self.file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.file, timeout=PATIENCE, isolation_level=None)
            # A killed process loses nothing by it; a power cut may, which the checksums tell.
            connection.execute("PRAGMA synchronous=OFF")
            if new:
                connection.executescript(_SCHEMA)
            return action(connection)
        except (sqlite3.OperationalError, OSError) as error:
            logger.info("%s: %s; going on without it", self.file, error)
        except sqlite3.DatabaseError as error:
            logger.warning("%s is damaged (%s) and is begun anew", self.file, error)
            self.file.unlink(missing_ok=True)
        finally:
            if connection is not None:
                connection.close()
        return None


def _get(connection: sqlite3.Connection, key: str) -> bytes | None:
    found = connection.execute(
        "SELECT id, checksum, used, data FROM entries JOIN contents USING (id) WHERE key = ?", (key,)
    ).fetchone()
    if found is None:
        return None
    number, checksum, used, data = found
    if zlib.crc32(data) != checksum:
        # After a power cut; SQLite looks after its own pages only.
        return None
    if time.time_ns() - used > REFRESH:
        connection.execute("UPDATE entries SET used = ? WHERE id = ?", (time.time_ns(), number))
    return data


def _put(connection: sqlite3.Connection, key: str, data: bytes, limit: int) -> None:
    size = _space(data)
    connection.execute("BEGIN IMMEDIATE")
    for number, old in connection.execute("SELECT id, size FROM entries WHERE key = ?", (key,)).fetchall():
        _remove(connection, number, old)
    (total,) = connection.execute("SELECT size FROM total").fetchone()
    while total + size > limit:
        number, old = connection.execute("SELECT id, size FROM entries ORDER BY used LIMIT 1").fetchone()
        _remove(connection, number, old)
        total -= old
    row = connection.execute(
        "INSERT INTO entries (key, size, checksum, used) VALUES (?, ?, ?, ?)",
        (key, size, zlib.crc32(data), time.time_ns()),
    )
    connection.execute("INSERT INTO contents VALUES (?, ?)", (row.lastrowid, data))
    connection.execute("UPDATE total SET size = size + ?", (size,))
    connection.execute("COMMIT")


def _space(data: bytes) -> int:
    return -(-len(data) // PAGE) * PAGE


def _remove(connection: sqlite3.Connection, number: int, size: int) -> None:
    connection.execute("DELETE FROM entries WHERE id = ?", (number,))
    connection.execute("DELETE FROM contents WHERE id = ?", (number,))
    connection.execute("UPDATE total SET size = size - ?", (size,))
