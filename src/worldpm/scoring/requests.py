"""Rows of users as requests: a prompt with responses, or a conversation whose last message is
scored.

    {"prompt": "How long?", "responses": ["An hour.", "Two."], "id": 7}
    {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]}

Rows of preference sets are read too, in the forms of `storage/dialogues`:

    {"prompt": "How?", "response": "So."}
    {"prompt": "How?", "chosen": "So.", "rejected": "No."}
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from worldpm.errors import DataError
from worldpm.records import Message
from worldpm.scoring.scorer import Refused, Request
from worldpm.storage import dialogues, rows
from worldpm.storage.dialogues import SetRow
from worldpm.storage.json_files import Json

FORM = (
    'Use {"prompt": text or messages, "responses": [text, ...]}, {"messages": [..., {"role":'
    ' "assistant", ...}]}, {"prompt", "response"} or {"prompt", "chosen", "rejected"}.'
)
ROLES = ("system", "developer", "user", "assistant", "tool")
FILES = (*rows.SUFFIXES, *rows.TABLES)
"""Suffixes that name a format. Files with other names are JSON lines."""


class Line(NamedTuple):
    """One row of a user's file."""

    row: Json
    """All columns of the row, also those that are not scored."""
    requests: Sequence[Request | Refused]
    """One request, or two for a pair whose sides differ before their responses. Refused if nothing
    can be scored."""
    is_single: bool
    """Whether the row has a single response, and gets a reward instead of a list."""


def read(path: Path | None, columns: Mapping[str, str]) -> Iterator[Line]:
    """The rows of a file, or of JSON lines on standard input, in order. `columns` maps our names of
    columns to those of the file.

    Raises:
        DataError: At a bad row, with its number, after the rows before it.
    """
    if path is None:
        yield from _lines(rows.numbered_lines(sys.stdin.buffer, "stdin"), "stdin", columns)
    elif path.name.endswith(FILES):
        yield from _lines(rows.numbered(path, as_written=True), path, columns)
    else:
        with path.open("rb") as file:
            yield from _lines(rows.numbered_lines(file, path), path, columns)


def _lines(
    numbered: Iterator[rows.Numbered], name: Path | str, columns: Mapping[str, str]
) -> Iterator[Line]:
    for number, row in numbered:
        written = _as_json(row, name, number)
        yield _line(written, rows.renamed(written, columns, name, number), name, number)


def _as_json(row: Any, name: Path | str, number: int) -> Any:
    """A row that can be written as JSON. In tables, NaN becomes null, and values without a JSON
    type become text. In JSON lines, numbers must be finite.

    Raises:
        DataError: If the row cannot be written.
    """
    try:
        # only a table can hold values that `json` does not know
        json.dumps(row, allow_nan=False)
        return row
    except (TypeError, ValueError) as error:
        if not str(name).endswith(".parquet"):
            raise DataError(name, f"not JSON ({error}). {FORM}", line=number) from error
        return msgspec.json.decode(msgspec.json.encode(row))


def _line(written: Json, row: Any, name: Path | str, number: int) -> Line:
    """The row with its requests."""
    request_name = f"{name}:{number}"
    if not isinstance(row, dict):
        raise DataError(request_name, f"has no known form. {FORM}")

    values = dialogues.columns(row, name, number)
    if values.responses is None and values.is_pair:
        return Line(written, _of_pair(values, request_name), is_single=False)
    if values.responses is None and values.messages is None and values.completions is not None:
        return Line(written, [_of_completions(values, request_name)], is_single=False)
    if values.responses is None and values.messages is None and values.is_flat:
        return Line(written, [_of_flat_row(values, request_name)], is_single=True)
    return Line(written, [_of_own_row(values, request_name)], values.responses is None)


def parse_request(row: object, name: str) -> Request:
    """A row with a prompt and responses, or with a conversation, as a request.

    Raises:
        DataError: If the row does not have one of the two forms.
    """
    if not isinstance(row, dict):
        raise DataError(name, f"has no known form. {FORM}")
    return _of_own_row(dialogues.columns(row, name, 0), name)


def _of_own_row(values: SetRow, name: str) -> Request:
    if values.prompt is not None and isinstance(values.responses, list):
        if not all(isinstance(response, str) for response in values.responses):
            raise DataError(name, f"a response is not text. {FORM}")
        is_text = isinstance(values.prompt, str)
        prompt = [Message("user", values.prompt)] if is_text else _messages(values.prompt, name)
        return Request(name, prompt, values.responses)

    if values.messages is None or values.responses is not None:
        raise DataError(name, f"has no known form. {FORM}")
    messages = _messages(values.messages, name)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise DataError(
            name, f"the last message must be the assistant's, after at least one other. {FORM}"
        )
    return _judged(messages, name)


def _messages(value: object, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(name, f"the messages are not a list with at least one message. {FORM}")
    try:
        messages = list(map(Message.of, value))
    except (TypeError, AttributeError) as error:
        raise DataError(
            name, f"a message must have a role and a content that are text. {FORM}"
        ) from error
    _check_roles(messages, name)
    return messages


def _check_roles(messages: Sequence[Message], name: str) -> None:
    for message in messages:
        if message.role not in ROLES:
            raise DataError(
                name, f"the role {message.role!r} is unknown. Use one of {', '.join(ROLES)}."
            )


def _of_pair(values: SetRow, name: str) -> list[Request | Refused]:
    """The request of both sides. Each side has its own request if they differ before their
    responses."""
    with _named(name):
        prompt, chosen, rejected = dialogues.sides(values)
    first, second = (_of_set_row([*prompt, *side], name) for side in (chosen, rejected))
    if isinstance(first, Refused) or isinstance(second, Refused):
        return [first, second]

    both = first._replace(responses=[*first.responses, *second.responses])
    return [both] if both == second._replace(responses=both.responses) else [first, second]


def _of_flat_row(values: SetRow, name: str) -> Request | Refused:
    with _named(name):
        messages = dialogues.conversation(values)
    return _of_set_row(messages, name)


def _of_completions(values: SetRow, name: str) -> Request | Refused:
    with _named(name):
        prompt, texts = dialogues.prompt_of(values), dialogues.completion_texts(values)
    request = _of_set_row([*prompt, Message("assistant", "")], name)
    return request._replace(responses=texts) if isinstance(request, Request) else request


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Name the row in errors about its values."""
    try:
        yield
    except (TypeError, ValueError, msgspec.ValidationError) as error:
        raise DataError(name, f"cannot be read ({error}). {FORM}") from error


def _of_set_row(messages: Sequence[Message], name: str) -> Request | Refused:
    """The request of a preference set's row. A row that cannot be used for training is refused."""
    _check_roles(messages, name)
    if not any(message.content.strip() for message in messages[:-1]):
        return Refused(name, "its prompt has no text")
    if messages[-1].role != "assistant":
        return Refused(name, "its last message is not the assistant's")
    return _judged(messages, name)


def _judged(messages: Sequence[Message], name: str) -> Request:
    """The request that scores the last message of a conversation."""
    *prompt, response = messages
    return Request(name, prompt, [response.content], replace(response, content=""))
