"""Decisions kept for good: an append-only SQLite file in which every row carries the hash of the
one before.

A row is written, and on the disk, before its answer leaves. Rows that wait together are committed
together.
"""

import fcntl
import hashlib
import json
import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any, NamedTuple

from worldpm.errors import ConfigError, DataError

Json = dict[str, Any]
FIRST = "0" * 64
"""What the first row has as the hash of the one before."""
TABLE = """
CREATE TABLE IF NOT EXISTS decisions (
  number INTEGER PRIMARY KEY, at TEXT NOT NULL, route TEXT NOT NULL, client TEXT,
  model TEXT NOT NULL, template TEXT, settings TEXT NOT NULL, inputs TEXT NOT NULL,
  rewards TEXT NOT NULL, probabilities TEXT NOT NULL, milliseconds REAL NOT NULL,
  before TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON decisions
  BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON decisions
  BEGIN SELECT RAISE(ABORT, 'decisions are never deleted'); END;
"""
COLUMNS = (
    "number",
    "at",
    "route",
    "client",
    "model",
    "template",
    "settings",
    "inputs",
    "rewards",
    "probabilities",
    "milliseconds",
    "before",
)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was asked, by whom, of which model, and what it said."""

    at: str
    """UTC, ISO 8601."""
    route: str
    client: str | None
    """The name of the API key."""
    model: str
    """SHA-256 that stands for the weights."""
    template: str | None
    settings: Json
    inputs: Json
    """The prompt and responses, or `{"sha256": ...}` of them."""
    rewards: Sequence[float]
    probabilities: Sequence[float]
    """That the best is preferred to each response; 0.5 for itself."""
    milliseconds: float


class Verdict(NamedTuple):
    """What a look at a whole log found."""

    decisions: int
    broken: int | None
    """The first row that does not fit the chain."""
    what: str
    head: str
    """Hash of the last row; kept elsewhere, it shows later whether rows at the end are missing."""


class DecisionLog:
    """The log of a running server; one process writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path)
        self.repaired = _torn(path)
        self._connection = _connect(path)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")  # others may read meanwhile
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.executescript(TABLE)
            last = self._connection.execute(
                "SELECT number, hash FROM decisions ORDER BY number DESC LIMIT 1"
            ).fetchone()
        except sqlite3.Error as error:
            self._connection.close()
            self._lock.close()
            raise ConfigError(
                f"{path}: cannot be written as a decision log ({error}); name another file"
            ) from error
        self._number: int = last[0] if last else 0
        self._hash: str = last[1] if last else FIRST
        self._queue: queue.SimpleQueue[tuple[Sequence[Json], Future[None]] | None] = (
            queue.SimpleQueue()
        )
        self._writer = threading.Thread(target=self._write, name="decisions", daemon=True)
        self._writer.start()

    def __len__(self) -> int:
        return self._number

    def append(self, decisions: Sequence[Decision]) -> Future[None]:
        """Done when the decisions are on the disk; a failure to write them is its exception.

        Raises:
            ValueError: If one holds a number that is not finite; then none of them is written, and
                no others suffer.
        """
        done: Future[None] = Future()
        self._queue.put(([_values(decision) for decision in decisions], done))
        return done

    def close(self) -> None:
        """Write what waits, and fold the write-ahead log into the file; once is enough."""
        if not self._writer.is_alive():
            return
        self._queue.put(None)
        self._writer.join()
        self._connection.close()
        self._lock.close()

    def _write(self) -> None:
        stopped = False
        while not stopped:
            waiting = [self._queue.get()]
            while not self._queue.empty():
                waiting.append(self._queue.get())
            work = [
                one for one in waiting if one is not None and one[1].set_running_or_notify_cancel()
            ]
            stopped = None in waiting
            try:
                self._commit([values for decisions, _ in work for values in decisions])
            except (
                Exception
            ) as error:  # a full disk, say: nobody gets an answer that is not written
                for _, done in work:
                    done.set_exception(error)
            else:
                for _, done in work:
                    done.set_result(None)

    def _commit(self, decisions: Sequence[Json]) -> None:
        number, before, rows = self._number, self._hash, []
        for values in decisions:
            number += 1
            row = tuple({"number": number, **values, "before": before}[name] for name in COLUMNS)
            before = _hash(row)
            rows.append((*row, before))
        with self._connection:
            marks = ", ".join("?" * (len(COLUMNS) + 1))
            self._connection.executemany(f"INSERT INTO decisions VALUES ({marks})", rows)
        self._number, self._hash = number, before


def _values(decision: Decision) -> Json:
    """The columns of a decision but for its place in the chain."""
    values = {column.name: getattr(decision, column.name) for column in fields(decision)}
    for name in ("settings", "inputs", "rewards", "probabilities"):
        values[name] = (
            None
            if values[name] is None
            else json.dumps(values[name], ensure_ascii=False, allow_nan=False)
        )
    return values


def _hash(row: Sequence[Any]) -> str:
    """SHA-256 of a row, the hash before it included."""
    return hashlib.sha256(json.dumps(list(row), ensure_ascii=False).encode()).hexdigest()


def _lock(path: Path) -> IO[bytes]:
    """A file beside the log that its writer holds."""
    try:
        file = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); name a file in a folder that is there"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"{path}: another process is writing this decision log; name another file"
        ) from None
    return file


def _torn(path: Path) -> str | None:
    """What a killed process left in the write-ahead log: whole commits in it are kept, a torn last
    one is not."""
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        return None
    left = f"{wal.stat().st_size:,} bytes of its write-ahead log"
    return f"{path}: was not closed; {left} are read again, up to the last whole commit"


def _connect(path: Path, *, write: bool = True) -> sqlite3.Connection:
    if not write and not path.is_file():
        raise ConfigError(f"{path}: no such file; `worldpm serve --log` writes one")
    try:
        return sqlite3.connect(path, check_same_thread=False, timeout=1.0)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: cannot be opened ({error})") from error


def rows(path: Path) -> Iterator[Json]:
    """Every row in order, as it was written, with its `hash`.

    Raises:
        ConfigError: If there is no such file.
        DataError: If it is not a decision log, or a server is writing it.
    """
    with closing(_connect(path, write=False)) as connection:
        try:
            for row in connection.execute(
                f"SELECT {', '.join((*COLUMNS, 'hash'))} FROM decisions ORDER BY number"
            ):
                yield dict(zip((*COLUMNS, "hash"), row, strict=True))
        except sqlite3.Error as error:
            raise DataError(path, f"not a decision log that can be read ({error})") from error


def verify(path: Path) -> Verdict:
    """Whether every row is as it was written and none is missing between two."""
    before, count = FIRST, 0
    for row in rows(path):
        count += 1
        values = [row[name] for name in COLUMNS]
        if row["number"] != count:
            return Verdict(count, count, f"row {count} is missing", before)
        if row["before"] != before:
            return Verdict(count, count, f"row {count} does not follow the one before it", before)
        if _hash(values) != row["hash"]:
            return Verdict(count, count, f"row {count} was altered", before)
        before = row["hash"]
    return Verdict(count, None, "whole", before)
