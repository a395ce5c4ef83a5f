"""The files of a decision log: reading, checking, and erasing texts."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from worldpm.errors import ConfigError, DataError
from worldpm.serving.decisions import (
    COLUMNS,
    HASH_BEFORE_FIRST,
    DecisionRow,
    StoredText,
    digest_of,
    hash_of,
    json_text,
    row_of,
)


class End(NamedTuple):
    """The last decision of a chain."""

    number: int
    hash: str


ERASED_AT_ONCE = 500
"""Number of decisions whose texts are erased in one transaction."""
NOTHING = End(0, HASH_BEFORE_FIRST)
"""The end of a chain without decisions."""


@dataclass(frozen=True)
class Selection:
    """Conditions for the decisions to read or erase. All conditions that are set must hold."""

    since: datetime | None = None
    until: datetime | None = None
    """The first moment that is not selected."""
    key: str | None = None
    """Name of an API key."""
    id: str | None = None
    """Id of a reply or a request."""

    def where(self) -> tuple[str, dict[str, str]]:
        """The conditions as SQL, and its values."""
        conditions = {
            "at >= :since": _in_utc(self.since),
            "at < :until": _in_utc(self.until),
            "key = :key": self.key,
            "(reply = :id OR request = :id)": self.id,
        }
        asked = [condition for condition, value in conditions.items() if value is not None]
        values = dict(zip(("since", "until", "key", "id"), conditions.values(), strict=True))
        given = {name: value for name, value in values.items() if value is not None}
        return " AND ".join(asked) or "TRUE", given


EVERYTHING = Selection()
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, msgspec.MsgspecError)
"""Errors of a row whose columns were altered."""


class LogCheck(NamedTuple):
    """Result of checking a whole log."""

    decisions: int
    """Number of rows that were read."""
    broken: int | None
    """Number of the first row that does not fit the chain; None if all fit."""
    finding: str
    """`whole`, or the fault of the first row that does not fit."""
    head: str
    """Hash of the last row that fits.

    If you keep it outside the log, it shows later whether rows at the end are missing.
    """
    first: int = 1
    """Number of the first row; above 1 if old files were removed."""
    without_texts: int = 0
    """Number of rows without texts, which were erased or never stored."""
    before_first: str = HASH_BEFORE_FIRST
    """Hash of the row before the first row."""


def older(path: Path) -> list[Path]:
    """The older files of a log, oldest first."""
    pattern = re.compile(re.escape(path.stem) + r"\.\d{12}" + re.escape(path.suffix))
    return sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))


def older_name(path: Path, number: int) -> Path:
    """The name of an older file; `number` is that of its last decision."""
    return path.with_name(f"{path.stem}.{number:012d}{path.suffix}")


def files_of(path: Path) -> list[Path]:
    """All files of a log, oldest first.

    Raises:
        ConfigError: If the log has no files.
    """
    files = older(path) if path.parent.is_dir() else []
    # After the rename of a full file, the next may not exist yet, or have no tables yet
    if path.is_file() and not (files and _is_new(path)):
        return [*files, path]
    if not files:
        raise ConfigError(f"{path}: no such file. Write one with `worldpm serve --log`.")
    return files


def rows(path: Path, selection: Selection = EVERYTHING) -> Iterator[DecisionRow]:
    """The selected rows of all files, in order.

    Raises:
        ConfigError: If the file does not exist.
        DataError: If a file is not a decision log, or if a row was altered and cannot be read.
    """
    for file in files_of(path):
        for values, texts in _stored(file, selection):
            try:
                yield row_of(values, texts)
            except UNREADABLE as error:
                raise DataError(
                    file,
                    f"decision {values[0]} cannot be read ({error}). Check it with `worldpm log"
                    " verify`.",
                ) from error


def verify(path: Path) -> LogCheck:
    """Check that no row was altered, that no row between two others is missing, and that the stored
    texts are those that were scored.

    Raises:
        ConfigError, DataError: See `rows`.
    """
    end: End | None = None
    first, count, without_texts = 1, 0, 0
    before_first = HASH_BEFORE_FIRST
    for file in files_of(path):
        beginning = _beginning(file)
        if end is None:
            # A chain begins later if its oldest files were removed
            end, first = End(beginning.number - 1, beginning.hash), beginning.number
            before_first = beginning.hash

        for values, texts in _stored(file, EVERYTHING):
            finding = _fault_of(values, texts, end)
            if finding is not None:
                number = end.number + 1
                return LogCheck(count, number, f"row {number} {finding}", end.hash, first)
            count += 1
            end = End(values[0], values[-1])
            stored = {text.name for text in texts if text.text is not None}
            without_texts += stored != row_of(values, ()).digests.keys()

    head = (end or NOTHING).hash
    return LogCheck(count, None, "whole", head, first, without_texts, before_first)


def _fault_of(values: tuple[Any, ...], texts: list[StoredText], end: End) -> str | None:
    """The fault of the row that follows the end of the chain; None if it fits."""
    # Check numbers too: they reveal a gap even if someone computed new hashes
    if values[0] != end.number + 1:
        return "is missing"
    if values[-2] != end.hash:
        return "does not follow the one before it"
    if hash_of(values[:-1]) != values[-1]:
        return "was altered"

    try:
        digests = row_of(values, ()).digests
    except UNREADABLE as error:
        return f"cannot be read ({error})"
    stored = [text for text in texts if text.text is not None]
    if any(digest_of(text) != digests.get(text.name) for text in stored):
        return "has a text that was altered"
    return None


def erase(path: Path, selection: Selection) -> int:
    """Erase the texts and salts of the selected decisions in all files, and return the number of
    decisions that had texts.

    The bytes are overwritten, and the file records the erasure. A server can write the log at the
    same time.

    Raises:
        ConfigError, DataError: See `rows`.
    """
    where, values = selection.where()
    chosen = f"SELECT number FROM decisions WHERE {where}"
    total = 0
    for file in files_of(path):
        with closing(_connect(file)) as connection, _readable(file):
            check_columns(connection, file)
            connection.execute("PRAGMA secure_delete = ON")
            numbers = connection.execute(
                f"SELECT DISTINCT decision FROM texts WHERE decision IN ({chosen})", values
            ).fetchall()
            # In parts, so that a server can write between them
            for start in range(0, len(numbers), ERASED_AT_ONCE):
                part = numbers[start : start + ERASED_AT_ONCE]
                with connection:
                    connection.executemany("DELETE FROM texts WHERE decision = ?", part)
                    note = (datetime.now(UTC).isoformat(), json_text(values), len(part))
                    connection.execute("INSERT INTO erasures VALUES (?, ?, ?)", note)
            # The write-ahead log contains copies of the pages
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise DataError(
                    file,
                    "another process is reading it, so copies of the texts remain. Erase again"
                    " later.",
                )
        total += len(numbers)
    return total


def end_of_older(path: Path) -> End:
    """The last decision of the older files."""
    files = older(path)
    if not files:
        return NOTHING
    with closing(_connect(files[-1])) as connection, _readable(files[-1]):
        return end_of(connection)


def end_of(connection: sqlite3.Connection) -> End:
    """The last decision of an open file, or of the file before it."""
    last = connection.execute(
        "SELECT number, hash FROM decisions ORDER BY number DESC LIMIT 1"
    ).fetchone()
    if last is not None:
        return End(*last)
    number, before = connection.execute("SELECT number, before FROM beginning").fetchone()
    return End(number - 1, before)


def last_at(path: Path) -> datetime:
    """The time of the last decision of a file; now if it has none."""
    with closing(_connect(path)) as connection, _readable(path):
        last = connection.execute("SELECT max(at) FROM decisions").fetchone()[0]
    return datetime.fromisoformat(last) if last else datetime.now(UTC)


def check_columns(connection: sqlite3.Connection, path: Path) -> None:
    """Reject the table of another release.

    Raises:
        DataError: If the table exists and has other columns.
    """
    columns = connection.execute("SELECT name FROM pragma_table_info('decisions')").fetchall()
    if columns and tuple(name for (name,) in columns) != COLUMNS:
        raise DataError(
            path,
            "has other columns, because another release wrote it. Name another file, or use that"
            " release.",
        )


def _is_new(path: Path) -> bool:
    """Whether a server has created the file, but not its tables."""
    with closing(_connect(path)) as connection, _readable(path):
        return connection.execute("SELECT name FROM sqlite_master").fetchone() is None


def _beginning(path: Path) -> End:
    """The number of a file's first decision, and the hash of the decision before it."""
    with closing(_connect(path)) as connection, _readable(path):
        check_columns(connection, path)
        row = connection.execute("SELECT number, before FROM beginning").fetchone()
    if row is None:
        raise DataError(
            path, "the beginning of its chain is missing: the file was altered. Restore it."
        )
    return End(*row)


def _stored(path: Path, selection: Selection) -> Iterator[tuple[tuple[Any, ...], list[StoredText]]]:
    """The selected rows of a file, in order and unparsed, each with its texts."""
    where, values = selection.where()
    with closing(_connect(path)) as connection, _readable(path):
        check_columns(connection, path)
        # Two cursors in parallel, because a join would repeat the rows for each text
        decisions = connection.execute(
            f"SELECT {', '.join(COLUMNS)} FROM decisions WHERE {where} ORDER BY number", values
        )
        all_texts = connection.execute(
            "SELECT decision, place, salt, text FROM texts WHERE decision IN"
            f" (SELECT number FROM decisions WHERE {where}) ORDER BY decision",
            values,
        )
        texts_of = groupby(all_texts, key=itemgetter(0))
        number, texts = next(texts_of, (None, iter(())))
        for row in decisions:
            # Skip texts of missing rows, which only an altered log has
            while number is not None and number < row[0]:
                number, texts = next(texts_of, (None, iter(())))
            row_texts = []
            if number == row[0]:
                row_texts = [StoredText(*text[1:]) for text in texts]
                number, texts = next(texts_of, (None, iter(())))
            yield row, row_texts


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into errors that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(
            path, f"not a decision log, or it is damaged ({error}). Check the path."
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(path, timeout=1.0)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: cannot be opened ({error}). Check the path.") from error


def _in_utc(moment: datetime | None) -> str | None:
    """The time in the format of the column `at`. A time without a zone is taken as UTC."""
    if moment is None:
        return None
    zoned = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return zoned.astimezone(UTC).isoformat(timespec="microseconds")
