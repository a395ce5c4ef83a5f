"""The log of a running server: an append-only SQLite file in which each row has the hash of the row
before.

A decision is on disk before its reply is sent. Waiting decisions are committed together. A file
that has reached its limit is renamed, and the chain continues in a new file:

    decisions.sqlite                 the newest decisions
    decisions.000000012345.sqlite    those up to number 12,345
"""

import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock

from worldpm.errors import ConfigError, DataError
from worldpm.serving import decision_files
from worldpm.serving.decisions import (
    COLUMNS,
    TABLES,
    Decision,
    Record,
    SqlValues,
    hash_of,
    record_of,
)
from worldpm.storage.locks import try_lock

logger = logging.getLogger(__name__)

PRIVATE = 0o600
"""Mode of the files: only the owner can read and write them."""
RETRY_SECONDS = 2.0
"""Time from a failed write to the next attempt, even if no new decision arrives."""
UPKEEP_SECONDS = 3600.0
"""Time without decisions after which old files are removed."""
BUSY_SECONDS = 10.0
"""Time that a write waits for another process, for instance one that erases texts."""
ROTATION_SECONDS = 60.0
"""Time from a failed rotation to the next attempt."""
FILE_DAYS = 1
"""Days of decisions in a file, if files are removed by age."""


class Batch(NamedTuple):
    """Decisions of one request that wait to be written."""

    records: list[Record]
    done: Future[None]


class Retention(NamedTuple):
    """How long decisions are kept, and when a new file begins."""

    file_bytes: int | None = None
    """Size at which a new file begins; None for a single file."""
    days: float | None = None
    """Age at which an older file is removed; None keeps all files."""


KEEP_ALL = Retention()


class DecisionLog:
    """The log of a running server. Only one process can write it.

    Without `keep_texts`, it holds only digests and salts. A person who has a text can use them to
    prove that this text was scored.
    """

    def __init__(
        self, path: Path, *, keep_texts: bool = True, retention: Retention = KEEP_ALL
    ) -> None:
        # Resolve links, so that the lock belongs to the file itself
        self.path = path = path.resolve()
        self._keep_texts, self._retention = keep_texts, retention
        self._lock = _lock(path)
        self.repaired = _unclosed(path)
        self._has_failed = False
        self._next_rotation = 0.0

        try:
            end = decision_files.end_of_older(path)
            self._open(end)
            self._remove_old_files()
        except (sqlite3.Error, OSError, ValueError) as error:
            self._lock.release()
            raise ConfigError(
                f"{path}: cannot be written as a decision log ({error}). Name another file."
            ) from error
        except DataError:
            self._lock.release()
            raise

        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        # A daemon, so that a crash elsewhere does not wait for this thread forever
        self._writer = threading.Thread(target=self._write, name="decisions", daemon=True)
        self._writer.start()

    @property
    def can_write(self) -> bool:
        """False from a failed write until one succeeds. Writes are retried even without new
        decisions."""
        return not self._has_failed and self._writer.is_alive()

    def __len__(self) -> int:
        return self._end.number

    def append(self, decisions: Sequence[Decision]) -> Future[None]:
        """Write decisions. The returned future is done when they are on disk, or holds the error.

        Raises:
            ValueError: If a number is not finite. None of these decisions is written; other calls
                are unaffected.
        """
        done: Future[None] = Future()
        # Convert here, so that a wrong number fails this call and not the writer
        records = [record_of(decision, keep_texts=self._keep_texts) for decision in decisions]
        self._queue.put(Batch(records, done))
        return done

    def close(self) -> None:
        """Write the waiting decisions and merge the write-ahead log into the file.

        Further calls do nothing.
        """
        if not self._writer.is_alive():
            return
        # None stops the writer after all earlier entries
        self._queue.put(None)
        self._writer.join()
        self._connection.close()
        self._lock.release()

    def _open(self, end: decision_files.End) -> None:
        """Open the newest file. If it is new, its chain continues after `end`."""
        # Create the file before SQLite does, so that SQLite's other files get the same mode
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, PRIVATE))
        self.path.chmod(PRIVATE)
        self._inode = self.path.stat().st_ino
        # Opened in this thread and used in the writer's thread, never by both at once
        self._connection = sqlite3.connect(self.path, check_same_thread=False, timeout=BUSY_SECONDS)
        self._is_open = True
        try:
            # With a write-ahead log, other processes can read while the server writes
            self._connection.execute("PRAGMA journal_mode = WAL")
            # FULL syncs at each commit, so that decisions survive a power failure
            self._connection.execute("PRAGMA synchronous = FULL")
            decision_files.check_columns(self._connection, self.path)
            # One transaction, so that readers see all tables or none
            with self._connection:
                self._connection.executescript(f"BEGIN IMMEDIATE; {TABLES}")
                self._connection.execute(
                    "INSERT INTO beginning SELECT ?, ? WHERE NOT EXISTS (SELECT 1 FROM beginning)",
                    (end.number + 1, end.hash),
                )
            self._end = decision_files.end_of(self._connection)
            first = self._connection.execute("SELECT min(at) FROM decisions").fetchone()[0]
            self._first_at = datetime.fromisoformat(first) if first else None
        except (sqlite3.Error, DataError, ValueError):
            self._close_file()
            raise

    def _close_file(self) -> None:
        self._connection.close()
        self._is_open = False

    def _write(self) -> None:
        """Commit all waiting decisions at once, repeatedly, until the log is closed."""
        stopped = False
        while not stopped:
            # A sync takes milliseconds, so use one for all waiting decisions
            waiting = self._waiting()
            stopped = None in waiting
            # Skip batches whose request was cancelled; the others can no longer be cancelled
            batches = [
                batch
                for batch in waiting
                if batch is not None and batch.done.set_running_or_notify_cancel()
            ]

            try:
                self._commit([record for batch in batches for record in batch.records])
            # Catch any error, for instance a full disk: unlogged rewards must not be sent
            except Exception as error:
                self._has_failed = True
                for batch in batches:
                    batch.done.set_exception(error)
            else:
                self._has_failed = False
                for batch in batches:
                    batch.done.set_result(None)
                self._keep_within_limits(is_upkeep=not batches)

    def _waiting(self) -> list[Batch | None]:
        """The waiting batches; an empty list if it is time to retry a write, or for upkeep."""
        try:
            seconds = RETRY_SECONDS if self._has_failed else UPKEEP_SECONDS
            waiting = [self._queue.get(timeout=seconds)]
        except queue.Empty:
            return []
        while not self._queue.empty():
            waiting.append(self._queue.get())
        return waiting

    def _commit(self, records: Sequence[Record]) -> None:
        """Number and chain the rows, and write them in one transaction."""
        # A failed rotation closed the file
        if not self._is_open:
            self._open(self._end)
        # Check for removal: rows in a removed file would be lost with the process
        if self.path.stat().st_ino != self._inode:
            raise OSError("the file was removed or replaced")
        if not records:
            # Write the file's header, to test whether writing works
            self._connection.execute("PRAGMA user_version = 1")
            return

        number, before = self._end
        rows: list[SqlValues] = []
        texts: list[SqlValues] = []
        for values, record_texts in records:
            number += 1
            row = (number, *values, before)
            before = hash_of(row)
            rows.append((*row, before))
            texts += [(number, *text) for text in record_texts]

        with self._connection:
            marks = ", ".join("?" * len(COLUMNS))
            self._connection.executemany(f"INSERT INTO decisions VALUES ({marks})", rows)
            self._connection.executemany("INSERT INTO texts VALUES (?, ?, ?, ?)", texts)
        # Only after the commit, so that a failed commit leaves the chain unchanged
        self._end = decision_files.End(number, before)
        self._first_at = self._first_at or datetime.now(UTC)

    def _keep_within_limits(self, *, is_upkeep: bool) -> None:
        """Start a new file if the current one is full, and remove old files."""
        most_bytes, days = self._retention
        is_old = days is not None and self._age() > timedelta(days=FILE_DAYS)
        is_full = most_bytes is not None and self._bytes() >= most_bytes
        is_due = (is_old or is_full) and time.monotonic() >= self._next_rotation
        # Catch any error: the log then continues in the same file, and this thread must not end
        try:
            if self._first_at is not None and is_due:
                self._next_rotation = time.monotonic() + ROTATION_SECONDS
                self._put_aside()
            if is_upkeep or is_due:
                self._remove_old_files()
        except Exception:
            logger.exception("%s: cannot start a new file or remove old ones", self.path)
            # If the file is closed, the retry opens it again, even without a decision
            self._has_failed = not self._is_open

    def _age(self) -> timedelta:
        """Age of the file's first decision."""
        now = datetime.now(UTC)
        return now - (self._first_at or now)

    def _bytes(self) -> int:
        """Size of the file and its write-ahead log."""
        wal = self.path.with_name(self.path.name + "-wal")
        return self.path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)

    def _put_aside(self) -> None:
        """Rename the file, and continue in a new one, unless a reader has it open."""
        # Do not wait for readers, because decisions would wait too
        self._connection.execute("PRAGMA busy_timeout = 0")
        busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
        if busy:
            return

        self._close_file()
        # SQLite removes these with the last connection. If they exist, a reader has the file open,
        # and its files would mix with the new file's
        side = [self.path.with_name(self.path.name + end) for end in ("-wal", "-shm")]
        try:
            if not any(path.exists() for path in side):
                self.path.rename(decision_files.older_name(self.path, self._end.number))
                self._next_rotation = 0.0
        finally:
            self._open(self._end)

    def _remove_old_files(self) -> None:
        """Remove the files whose last decision is older than the retention time."""
        if self._retention.days is None:
            return
        oldest = datetime.now(UTC) - timedelta(days=self._retention.days)
        for path in decision_files.older(self.path):
            if decision_files.last_at(path) < oldest:
                path.unlink()


def _lock(path: Path) -> BaseFileLock:
    """A locked file beside the log, so that only one process writes the log."""
    try:
        lock = try_lock(path.with_name(path.name + ".lock"), mode=PRIVATE)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}). Name a file in an existing folder."
        ) from error

    if lock is None:
        raise ConfigError(
            f"{path}: another process is writing this decision log. Name another file."
        )
    return lock


def _unclosed(path: Path) -> str | None:
    """A message if a killed process left a write-ahead log; None otherwise.

    SQLite reads it when it opens the file. Complete commits stay; an incomplete last one is lost.
    """
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        return None

    size = f"{wal.stat().st_size:,} bytes of its write-ahead log"
    return f"{path}: was not closed. {size} are recovered, up to the last complete commit"
