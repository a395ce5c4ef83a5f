"""The log of a running server: an append-only SQLite file whose rows carry the hash of the row
before.

A decision is on the disk before its reply is sent. Decisions that wait together are committed
together. A file that has grown to its limit is put aside, and the chain goes on in a new one:

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
"""Mode of the files: the owner alone reads and writes them."""
RETRY_SECONDS = 2.0
"""Time after a failed write until the next is tried, without a decision if none comes."""
UPKEEP_SECONDS = 3600.0
"""Time after which old files are looked for, if no decision comes."""
BUSY_SECONDS = 10.0
"""Time that a write waits for another process, such as one that erases."""
ROTATION_SECONDS = 60.0
"""Time after a failed rotation until the next is tried."""
FILE_DAYS = 1
"""Days of decisions in a file, where files are removed by age."""


class Batch(NamedTuple):
    """Decisions of one request that wait to be written."""

    records: list[Record]
    done: Future[None]


class Retention(NamedTuple):
    """How much of a log is kept, and in which files."""

    file_bytes: int | None = None
    """Size at which a file is put aside; None for a single file."""
    days: float | None = None
    """Age at which a file that was put aside is removed; None keeps all."""


KEEP_ALL = Retention()


class DecisionLog:
    """The log of a running server. Only one process can write it.

    Without `keep_texts`, it holds digests and salts alone: who has a text can show that it is the
    one that was judged.
    """

    def __init__(
        self, path: Path, *, keep_texts: bool = True, retention: Retention = KEEP_ALL
    ) -> None:
        # The lock must be of the file itself, whatever link leads to it
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
                f"{path}: cannot be written as a decision log ({error}); name another file"
            ) from error
        except DataError:
            self._lock.release()
            raise

        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        # A daemon, so that a crash elsewhere does not wait for it forever
        self._writer = threading.Thread(target=self._write, name="decisions", daemon=True)
        self._writer.start()

    @property
    def can_write(self) -> bool:
        """False from a failed write until one succeeds; it is tried again without decisions."""
        return not self._has_failed and self._writer.is_alive()

    def __len__(self) -> int:
        return self._end.number

    def append(self, decisions: Sequence[Decision]) -> Future[None]:
        """A future that is done when the decisions are on the disk, or holds the error.

        Raises:
            ValueError: If a number is not finite. None of these decisions is written; other calls
                are unaffected.
        """
        done: Future[None] = Future()
        # Converted here, so that a wrong number fails the call and not the writer
        records = [record_of(decision, keep_texts=self._keep_texts) for decision in decisions]
        self._queue.put(Batch(records, done))
        return done

    def close(self) -> None:
        """Write the waiting decisions and merge the write-ahead log into the file.

        Further calls do nothing.
        """
        if not self._writer.is_alive():
            return
        # None ends the writer after all that was put before
        self._queue.put(None)
        self._writer.join()
        self._connection.close()
        self._lock.release()

    def _open(self, end: decision_files.End) -> None:
        """Open the newest file; a new one goes on after `end`."""
        # Made before SQLite makes it: its other files get the same mode
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, PRIVATE))
        self.path.chmod(PRIVATE)
        self._inode = self.path.stat().st_ino
        # Opened in one thread and used in the writer's, never in two at once
        self._connection = sqlite3.connect(self.path, check_same_thread=False, timeout=BUSY_SECONDS)
        self._is_open = True
        try:
            # With a write-ahead log, others can read while the server writes
            self._connection.execute("PRAGMA journal_mode = WAL")
            # FULL syncs the log at each commit: a decision outlives a power failure
            self._connection.execute("PRAGMA synchronous = FULL")
            decision_files.check_columns(self._connection, self.path)
            self._connection.executescript(TABLES)
            with self._connection:
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
        """Commit all waiting decisions at once, again and again, until the log is closed."""
        stopped = False
        while not stopped:
            # A sync takes milliseconds: one for all that wait, instead of one for each
            waiting = self._waiting()
            stopped = None in waiting
            # Skips batches whose request was cancelled; the others cannot be cancelled any more
            batches = [
                batch
                for batch in waiting
                if batch is not None and batch.done.set_running_or_notify_cancel()
            ]

            try:
                self._commit([record for batch in batches for record in batch.records])
            # Any error, for instance a full disk: rewards that are not logged must not be sent
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
        # Closed by a rotation that failed
        if not self._is_open:
            self._open(self._end)
        # A file that somebody removed would take the rows, and be gone with the process
        if self.path.stat().st_ino != self._inode:
            raise OSError("the file was removed or replaced")
        if not records:
            # A write of the file's header, to see whether writing works
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
        # Only after the commit, so that a failed one leaves the chain as it was
        self._end = decision_files.End(number, before)
        self._first_at = self._first_at or datetime.now(UTC)

    def _keep_within_limits(self, *, is_upkeep: bool) -> None:
        """Put a full file aside, and remove old ones."""
        most_bytes, days = self._retention
        is_old = days is not None and self._age() > timedelta(days=FILE_DAYS)
        is_full = most_bytes is not None and self._bytes() >= most_bytes
        is_due = (is_old or is_full) and time.monotonic() >= self._next_rotation
        # Any error: a file that cannot be put aside is written on, and this thread must not end
        try:
            if self._first_at is not None and is_due:
                self._next_rotation = time.monotonic() + ROTATION_SECONDS
                self._put_aside()
            if is_upkeep or is_due:
                self._remove_old_files()
        except Exception:
            logger.exception("%s: cannot be put aside, or old files not removed", self.path)
            # A closed file is opened again without a decision
            self._has_failed = not self._is_open

    def _age(self) -> timedelta:
        """Age of the first decision of the file."""
        now = datetime.now(UTC)
        return now - (self._first_at or now)

    def _bytes(self) -> int:
        """Size of the file and its write-ahead log."""
        wal = self.path.with_name(self.path.name + "-wal")
        return self.path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)

    def _put_aside(self) -> None:
        """Rename the file, and go on in a new one, unless a reader has it open."""
        # Without a wait for readers: decisions wait meanwhile
        self._connection.execute("PRAGMA busy_timeout = 0")
        busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
        if busy:
            return

        self._close_file()
        # SQLite removes them with the last connection; a reader's would mix with the new file's
        side = [self.path.with_name(self.path.name + end) for end in ("-wal", "-shm")]
        try:
            if not any(path.exists() for path in side):
                self.path.rename(decision_files.older_name(self.path, self._end.number))
                self._next_rotation = 0.0
        finally:
            self._open(self._end)

    def _remove_old_files(self) -> None:
        """Remove the files whose last decision is older than the days that are kept."""
        if self._retention.days is None:
            return
        oldest = datetime.now(UTC) - timedelta(days=self._retention.days)
        for path in decision_files.older(self.path):
            if decision_files.last_at(path) < oldest:
                path.unlink()


def _lock(path: Path) -> BaseFileLock:
    """A locked file beside the log, so that no second process writes it."""
    try:
        lock = try_lock(path.with_name(path.name + ".lock"), mode=PRIVATE)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); name a file in a folder that is there"
        ) from error

    if lock is None:
        raise ConfigError(
            f"{path}: another process is writing this decision log; name another file"
        )
    return lock


def _unclosed(path: Path) -> str | None:
    """A message if a killed process left a write-ahead log.

    SQLite reads it again when it opens the file: whole commits stay, a torn last one does not.
    """
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        return None

    size = f"{wal.stat().st_size:,} bytes of its write-ahead log"
    return f"{path}: was not closed; {size} are read again, up to the last whole commit"
