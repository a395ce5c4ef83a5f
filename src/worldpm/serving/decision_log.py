"""An append-only log of decisions: a SQLite file whose rows carry the hash of the row before.

A decision is on the disk before its reply is sent. Decisions that wait together are committed
together. A row, with its JSON columns as text:

    number 1, at 2026-01-01T00:00:00.000000+00:00, route /v1/rewards, client NULL, model 3f1a...,
    template ad1b..., settings {}, inputs {"prompt": [...], "responses": ["a", "b"]},
    rewards [0.5, 1.5], probabilities [0.73, 0.5], milliseconds 12.5, before 0000..., hash 9c2e...
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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import msgspec

from worldpm.errors import ConfigError, DataError
from worldpm.records import ASSISTANT, Message
from worldpm.storage.json_files import Json, Plain

SqlValues = tuple[str | int | float | None, ...]
"""Values of a row, in the order of columns."""
HASH_BEFORE_FIRST = "0" * 64
"""In the first row, in place of the hash of the row before."""
# STRICT, because SQLite otherwise stores any type in any column
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
    "hash",
)
"""Columns of the table, in order; the hash is computed from those before it."""


@dataclass(frozen=True)
class ConversationInputs:
    """A prompt and its responses."""

    prompt: list[Message]
    responses: list[str]
    last: Message = ASSISTANT
    """The turn that a response is the content of; it may have tool calls."""

    def content(self) -> Plain:
        """As the log has them."""
        last = {} if self.last == ASSISTANT else {"last": self.last.turn()}
        prompt = [turn.turn() for turn in self.prompt]
        return {"prompt": prompt, "responses": self.responses, **last}

    @property
    def reward_count(self) -> int:
        """Number of rewards that they get."""
        return len(self.responses)

    @property
    def prompt_text(self) -> str:
        """The contents of the prompt's messages, one a line."""
        return "\n".join(message.content for message in self.prompt)


@dataclass(frozen=True)
class TextInputs:
    """A text that the client rendered with the chat template."""

    text: str
    reward_count: ClassVar[int] = 1

    def content(self) -> Plain:
        """As the log has them."""
        return {"text": self.text}


@dataclass(frozen=True)
class IdInputs:
    """The token ids of such a text."""

    ids: list[int]
    reward_count: ClassVar[int] = 1

    def content(self) -> Plain:
        """As the log has them."""
        return {"ids": self.ids}


@dataclass(frozen=True)
class HashedInputs:
    """Inputs that the log does not keep."""

    sha256: str
    """Of the JSON text that the log would have kept."""
    reward_count: ClassVar[int] = 1

    def content(self) -> Plain:
        """As the log has them."""
        return {"sha256": self.sha256}


class _Conversation(msgspec.Struct, frozen=True):
    """The column of a conversation."""

    prompt: list[dict[str, object]]
    responses: list[str]
    last: dict[str, object] | None = None


Inputs = ConversationInputs | TextInputs | IdInputs | HashedInputs


def hashed(inputs: Inputs) -> HashedInputs:
    """The inputs as their hash."""
    text = json.dumps(inputs.content(), ensure_ascii=False)
    return HashedInputs(hashlib.sha256(text.encode()).hexdigest())


def read_inputs(content: Plain) -> Inputs:
    """The inputs of a column; the one key that each kind has alone tells the kind."""
    if "responses" in content:
        conversation = msgspec.convert(content, _Conversation)
        last = Message.of(conversation.last) if conversation.last else ASSISTANT
        prompt = list(map(Message.of, conversation.prompt))
        return ConversationInputs(prompt, conversation.responses, last)

    kinds: dict[str, type[TextInputs | IdInputs | HashedInputs]] = {
        "sha256": HashedInputs,
        "text": TextInputs,
        "ids": IdInputs,
    }
    (kind,) = [kind for key, kind in kinds.items() if key in content]
    return msgspec.convert(content, kind)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The rewards of one prompt's responses, or of one text, and what they depend on."""

    at: str
    """UTC, ISO 8601."""
    route: str
    client: str | None
    """The name of the API key; None if the server needs no key."""
    model: str
    """SHA-256 of the weights, or the address of an upstream model."""
    template: str | None
    """Hash of the chat template; None if the model is upstream."""
    settings: Json
    """Preferences, rules, and `cut_to` in tokens if inputs were cut."""
    inputs: Inputs
    rewards: Sequence[float]
    """Logits, in the order of the responses."""
    probabilities: Sequence[float]
    """That the best response is preferred to each; 0.5 for itself."""
    milliseconds: float
    """From the request's arrival to its rewards."""


@dataclass(frozen=True, kw_only=True)
class DecisionRow(Decision):
    """A decision that was read back from the log."""

    number: int
    """From 1, without gaps."""
    before: str
    """Hash of the row before."""
    hash: str
    """SHA-256 of all other columns."""

    @property
    def cut_to(self) -> int | None:
        """Tokens that the inputs were cut to; None if they were not to be cut."""
        tokens: int | None = self.settings.get("cut_to")
        return tokens


class LogCheck(NamedTuple):
    """Result of checking a whole log."""

    decisions: int
    """Rows that were read."""
    broken: int | None
    """Number of the first row that does not fit the chain; None if all fit."""
    finding: str
    """`whole`, or what is wrong with that row."""
    head: str
    """Hash of the last row that fits.

    Kept outside the log, it shows later whether rows at the end are missing.
    """


class Batch(NamedTuple):
    """Decisions of one request that wait to be written."""

    rows: list[SqlValues]
    """Each without number, `before` and hash."""
    done: Future[None]


class DecisionLog:
    """The log of a running server. Only one process can write it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path)
        self.repaired = _unclosed(path)
        self._connection = _connect(path)

        try:
            # With a write-ahead log, others can read while the server writes
            self._connection.execute("PRAGMA journal_mode = WAL")
            # FULL syncs the log at each commit: a decision outlives a power failure
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
        self._hash: str = last[1] if last else HASH_BEFORE_FIRST
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        # A daemon, so that a crash elsewhere does not wait for it forever
        self._writer = threading.Thread(target=self._write, name="decisions", daemon=True)
        self._writer.start()

    def __len__(self) -> int:
        return self._number

    def append(self, decisions: Sequence[Decision]) -> Future[None]:
        """A future that is done when the decisions are on the disk, or holds the error.

        Raises:
            ValueError: If a number is not finite. None of these decisions is written; other calls
                are unaffected.
        """
        done: Future[None] = Future()
        # Converted here, so that a wrong number fails the call and not the writer
        self._queue.put(Batch([_values(decision) for decision in decisions], done))
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
        self._lock.close()

    def _write(self) -> None:
        """Commit all waiting decisions at once, again and again, until the log is closed."""
        stopped = False
        while not stopped:
            # A sync takes milliseconds: one for all that wait, instead of one for each
            waiting = [self._queue.get()]
            while not self._queue.empty():
                waiting.append(self._queue.get())
            stopped = None in waiting
            # Skips batches whose request was cancelled; the others cannot be cancelled any more
            batches = [
                batch
                for batch in waiting
                if batch is not None and batch.done.set_running_or_notify_cancel()
            ]

            try:
                self._commit([row for batch in batches for row in batch.rows])
            # Any error, for instance a full disk: rewards that are not logged must not be sent
            except Exception as error:
                for batch in batches:
                    batch.done.set_exception(error)
            else:
                for batch in batches:
                    batch.done.set_result(None)

    def _commit(self, decisions: Sequence[SqlValues]) -> None:
        """Number and chain the rows, and write them in one transaction."""
        number, before = self._number, self._hash
        rows: list[SqlValues] = []
        for values in decisions:
            number += 1
            row = (number, *values, before)
            before = _hash(row)
            rows.append((*row, before))

        with self._connection:
            marks = ", ".join("?" * len(COLUMNS))
            self._connection.executemany(f"INSERT INTO decisions VALUES ({marks})", rows)
        # Only after the commit, so that a failed one leaves the chain as it was
        self._number, self._hash = number, before


def json_text(value: object) -> str:
    """A JSON column's text.

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _values(decision: Decision) -> SqlValues:
    """The columns of a decision but for number, `before` and hash."""
    return (
        decision.at,
        decision.route,
        decision.client,
        decision.model,
        decision.template,
        json_text(decision.settings),
        json_text(decision.inputs.content()),
        json_text(decision.rewards),
        json_text(decision.probabilities),
        decision.milliseconds,
    )


def _hash(row: SqlValues) -> str:
    """SHA-256 of all columns of a row but its hash."""
    # JSON quotes the columns, so that no text can move from one to the next
    return hashlib.sha256(json.dumps(list(row), ensure_ascii=False).encode()).hexdigest()


def _lock(path: Path) -> IO[bytes]:
    """A locked file beside the log, so that no second process writes it."""
    try:
        file = path.with_name(path.name + ".lock").open("ab")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written ({error.strerror}); name a file in a folder that is there"
        ) from error

    try:
        # The system releases it when the process ends, even after kill -9
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"{path}: another process is writing this decision log; name another file"
        ) from None
    return file


def _unclosed(path: Path) -> str | None:
    """A message if a killed process left a write-ahead log.

    SQLite reads it again when it opens the file: whole commits stay, a torn last one does not.
    """
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        return None

    size = f"{wal.stat().st_size:,} bytes of its write-ahead log"
    return f"{path}: was not closed; {size} are read again, up to the last whole commit"


def _connect(path: Path, *, write: bool = True) -> sqlite3.Connection:
    if not write and not path.is_file():
        raise ConfigError(f"{path}: no such file; `worldpm serve --log` writes one")
    try:
        # Opened in one thread and used in the writer's, never in two at once
        return sqlite3.connect(path, check_same_thread=False, timeout=1.0)
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: cannot be opened ({error})") from error


def rows(path: Path) -> Iterator[DecisionRow]:
    """Every row in order.

    Raises:
        ConfigError: If there is no such file.
        DataError: If it is not a decision log, or a server is writing it.
    """
    for values in _stored_rows(path):
        columns = dict(zip(COLUMNS, values, strict=True))
        for name in ("settings", "inputs", "rewards", "probabilities"):
            columns[name] = json.loads(columns[name])

        columns["inputs"] = read_inputs(columns["inputs"])
        yield DecisionRow(**columns)


def _stored_rows(path: Path) -> Iterator[tuple[Any, ...]]:
    """Every row in order, as it is in the file. Raises the errors of `rows`."""
    with closing(_connect(path, write=False)) as connection:
        try:
            yield from connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM decisions ORDER BY number"
            )
        except sqlite3.Error as error:
            raise DataError(path, f"not a decision log that can be read ({error})") from error


def verify(path: Path) -> LogCheck:
    """Check that every row is as it was written and that none between two is missing.

    Raises:
        ConfigError, DataError: See `rows`.
    """
    head, count = HASH_BEFORE_FIRST, 0
    for values in _stored_rows(path):
        count += 1
        *_, before, row_hash = values
        # Numbers are checked too: a gap shows even if someone computed the hashes again
        if values[0] != count:
            return LogCheck(count, count, f"row {count} is missing", head)
        if before != head:
            return LogCheck(count, count, f"row {count} does not follow the one before it", head)
        if _hash(values[:-1]) != row_hash:
            return LogCheck(count, count, f"row {count} was altered", head)
        head = row_hash

    return LogCheck(count, None, "whole", head)
