"""Decisions in a server's log, and their two tables.

A row of `decisions`, whose JSON columns are text:

    number 1, at 2026-01-01T00:00:00.000000+00:00, reply rewards-1f0c..., request 9e41...,
    route /v1/rewards, key ann, release 0.1.0, model 3f1a..., template ad1b..., temperature 1.3,
    calibration 77aa..., settings {}, queues NULL,
    inputs {"prompt.0": "5be1...", "responses.0": "c0ff...", "responses.1": "07d2..."},
    rewards [0.5, 1.5], probabilities [0.73, 0.5], milliseconds 12.5, before 0000..., hash 9c2e...

The column `inputs` holds a digest of each text, and the row's hash covers it. The texts are rows of
the table `texts`. They can be erased without changing the chain:

    decision 1, place responses.0, salt (16 bytes), text "About 40 minutes."

A digest is the SHA-256 of salt and text. Erasing a text also removes the salt, so nobody can
compare the digest with guessed texts.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import msgspec

from worldpm.records import ASSISTANT, Message
from worldpm.storage.json_files import Json, Plain

SqlValues = tuple[str | int | float | bytes | None, ...]
"""Values of a row, in the order of columns."""
HASH_BEFORE_FIRST = "0" * 64
"""Value of `before` in the first row."""
# STRICT, because SQLite otherwise stores any type in any column
TABLES = """
CREATE TABLE IF NOT EXISTS decisions (
  number INTEGER PRIMARY KEY, at TEXT NOT NULL, reply TEXT NOT NULL, request TEXT NOT NULL,
  route TEXT NOT NULL, key TEXT, release TEXT NOT NULL, model TEXT NOT NULL, template TEXT,
  temperature REAL, calibration TEXT, settings TEXT NOT NULL, queues TEXT, inputs TEXT NOT NULL,
  rewards TEXT NOT NULL, probabilities TEXT NOT NULL, milliseconds REAL NOT NULL,
  before TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS by_reply ON decisions (reply);
CREATE INDEX IF NOT EXISTS by_request ON decisions (request);
CREATE TABLE IF NOT EXISTS texts (
  decision INTEGER NOT NULL, place TEXT NOT NULL, salt BLOB NOT NULL, text TEXT,
  PRIMARY KEY (decision, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erasures (
  at TEXT NOT NULL, asked TEXT NOT NULL, decisions INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS beginning (number INTEGER NOT NULL, before TEXT NOT NULL) STRICT;
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON decisions
  BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON decisions
  BEGIN SELECT RAISE(ABORT, 'decisions are never deleted'); END;
CREATE TRIGGER IF NOT EXISTS no_other_text BEFORE UPDATE ON texts
  BEGIN SELECT RAISE(ABORT, 'texts are erased, never changed'); END;
"""
COLUMNS = (
    "number",
    "at",
    "reply",
    "request",
    "route",
    "key",
    "release",
    "model",
    "template",
    "temperature",
    "calibration",
    "settings",
    "queues",
    "inputs",
    "rewards",
    "probabilities",
    "milliseconds",
    "before",
    "hash",
)
"""Columns of the table `decisions`, in order. The hash covers all columns before it."""
JSON_COLUMNS: dict[str, Any] = {
    "settings": dict[str, Any],
    "queues": list[str] | None,
    "inputs": dict[str, str],
    "rewards": list[float],
    "probabilities": list[float],
}
"""Types of the columns that hold JSON."""
SALT_BYTES = 16
PROMPT, RESPONSES, LAST, TEXT, IDS = "prompt", "responses", "last", "text", "ids"
"""Names of texts, in the column `place`. After `PROMPT` and `RESPONSES` follow a point and a
number."""


@dataclass(frozen=True)
class ConversationInputs:
    """A prompt and its responses."""

    prompt: list[Message]
    responses: list[str]
    last: Message = ASSISTANT
    """The last turn, without its content, which is a response. It may have tool calls."""

    def content(self) -> Plain:
        """The inputs as JSON."""
        last = {} if self.last == ASSISTANT else {LAST: self.last.turn()}
        prompt = [turn.turn() for turn in self.prompt]
        return {PROMPT: prompt, RESPONSES: self.responses, **last}

    def texts(self) -> dict[str, str]:
        """Texts by name. Messages are JSON."""
        texts = {f"{PROMPT}.{i}": json_text(turn.turn()) for i, turn in enumerate(self.prompt)}
        texts |= {f"{RESPONSES}.{i}": response for i, response in enumerate(self.responses)}
        return texts if self.last == ASSISTANT else {**texts, LAST: json_text(self.last.turn())}

    @property
    def reward_count(self) -> int:
        """Number of rewards of these inputs."""
        return len(self.responses)

    @property
    def prompt_text(self) -> str:
        """The contents of the prompt's messages, joined by line breaks."""
        return "\n".join(message.content for message in self.prompt)


@dataclass(frozen=True)
class TextInputs:
    """A text that the client rendered with the chat template."""

    text: str
    reward_count: ClassVar[int] = 1

    def content(self) -> Plain:
        """The inputs as JSON."""
        return {TEXT: self.text}

    def texts(self) -> dict[str, str]:
        """The text by name."""
        return {TEXT: self.text}


@dataclass(frozen=True)
class IdInputs:
    """The token ids of a text that the client rendered with the chat template."""

    ids: list[int]
    reward_count: ClassVar[int] = 1

    def content(self) -> Plain:
        """The inputs as JSON."""
        return {IDS: self.ids}

    def texts(self) -> dict[str, str]:
        """The ids as JSON, by name."""
        return {IDS: json_text(self.ids)}


Inputs = ConversationInputs | TextInputs | IdInputs


def inputs_of(texts: Mapping[str, str]) -> Inputs:
    """The inputs from their texts by name; the inverse of `texts`."""
    if TEXT in texts:
        return TextInputs(texts[TEXT])
    if IDS in texts:
        return IdInputs(json.loads(texts[IDS]))

    def numbered(kind: str) -> list[str]:
        count = sum(name.startswith(f"{kind}.") for name in texts)
        return [texts[f"{kind}.{i}"] for i in range(count)]

    prompt = [Message.of(json.loads(turn)) for turn in numbered(PROMPT)]
    last = Message.of(json.loads(texts[LAST])) if LAST in texts else ASSISTANT
    return ConversationInputs(prompt, numbered(RESPONSES), last)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The rewards of one prompt's responses, or of one text, with everything that they depend
    on."""

    at: str
    """UTC, ISO 8601 with microseconds."""
    reply: str
    """Id of the reply, which all its decisions share."""
    request: str
    """Id of the HTTP request, from its `X-Request-Id` or generated."""
    route: str
    key: str | None
    """The name of the API key; None if the server needs no key."""
    release: str
    """Version of this package."""
    model: str
    """SHA-256 of the weights, or the address of an upstream model."""
    template: str | None
    """Hash of the chat template; None if the model is upstream."""
    temperature: float | None
    """The divisor that turns margins into log odds for `probabilities`; None if margins are not
    calibrated."""
    calibration: str | None
    """SHA-256 of temperature, judged margins and style model; None if margins are not
    calibrated."""
    settings: Json
    """Preferences, rules, and `cut_to` in tokens if inputs may be cut."""
    queues: Sequence[str] | None
    """The queue of each response; None on routes without rules."""
    inputs: Inputs | None
    """None in a row whose texts were erased or never stored."""
    rewards: Sequence[float]
    """Logits, in the order of the responses."""
    probabilities: Sequence[float]
    """Probabilities that the best response is preferred to each response; 0.5 for itself."""
    milliseconds: float
    """Time from the arrival of the request to its rewards."""


@dataclass(frozen=True, kw_only=True)
class DecisionRow(Decision):
    """A decision that was read back from the log."""

    number: int
    """Number of the row, from 1, without gaps."""
    digests: Mapping[str, str]
    """Salted digests of the texts, by name."""
    before: str
    """Hash of the row before."""
    hash: str
    """SHA-256 of all other columns."""

    @property
    def cut_to(self) -> int | None:
        """Number of tokens that the inputs were cut to; None if cutting was off."""
        tokens: int | None = self.settings.get("cut_to")
        return tokens

    def decision(self) -> Decision:
        """The decision without the columns of the chain."""
        return Decision(**{field.name: getattr(self, field.name) for field in fields(Decision)})


class StoredText(NamedTuple):
    """A row of `texts` without its decision."""

    name: str
    """Name of the text, from the column `place`."""
    salt: bytes
    text: str | None
    """None if only the digest is stored."""


class Record(NamedTuple):
    """The columns of a decision's row, without number, `before` and hash, and the decision's
    texts."""

    values: SqlValues
    texts: list[StoredText]


def record_of(decision: Decision, *, keep_texts: bool) -> Record:
    """The decision in the form in which it is stored.

    Raises:
        ValueError: If a number is not finite.
    """
    inputs = decision.inputs.texts() if decision.inputs is not None else {}
    texts = [
        StoredText(name, secrets.token_bytes(SALT_BYTES), text) for name, text in inputs.items()
    ]
    digests = {text.name: digest_of(text) for text in texts}
    values = (
        decision.at,
        decision.reply,
        decision.request,
        decision.route,
        decision.key,
        decision.release,
        decision.model,
        decision.template,
        decision.temperature,
        decision.calibration,
        json_text(decision.settings),
        None if decision.queues is None else json_text(decision.queues),
        json_text(digests),
        json_text(decision.rewards),
        json_text(decision.probabilities),
        decision.milliseconds,
    )
    return Record(values, texts if keep_texts else [text._replace(text=None) for text in texts])


def row_of(values: Sequence[object], texts: Sequence[StoredText]) -> DecisionRow:
    """The row of a stored decision. `inputs` is None unless all its texts are there.

    Raises:
        ValueError, msgspec.DecodeError: If a column is not valid JSON of its type.
    """
    columns: dict[str, Any] = dict(zip(COLUMNS, values, strict=True))
    for name, kind in JSON_COLUMNS.items():
        text = "null" if columns[name] is None else columns[name]
        columns[name] = msgspec.json.decode(text, type=kind)

    digests = columns.pop("inputs")
    stored = {text.name: text.text for text in texts if text.text is not None}
    # Inputs that are partly erased count as erased
    inputs = inputs_of(stored) if stored.keys() == digests.keys() else None
    return DecisionRow(**columns, digests=digests, inputs=inputs)


def digest_of(text: StoredText) -> str:
    """SHA-256 of salt and text."""
    return hashlib.sha256(text.salt + (text.text or "").encode()).hexdigest()


def hash_of(row: SqlValues) -> str:
    """SHA-256 of all columns of a row except its hash."""
    # JSON quotes the columns, so that no text can move to another column unnoticed
    return hashlib.sha256(json.dumps(list(row), ensure_ascii=False).encode()).hexdigest()


def json_text(value: object) -> str:
    """The text of a JSON column.

    Raises:
        ValueError: If a number is not finite.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
