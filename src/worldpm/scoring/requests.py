"""Rows of users as requests: a prompt with its responses, or a conversation whose last message is
judged."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from worldpm.errors import DataError
from worldpm.records import Message
from worldpm.scoring.scorer import Request

FORM = (
    'expected {"prompt": text or messages, "responses": [text, ...]} or {"messages": [..., {"role":'
    ' "assistant", ...}]}'
)
ROLES = ("system", "user", "assistant")
Json = dict[str, Any]


def numbered_lines(source: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(source, start=1) if line.strip())


def read_lines(
    chunk: Sequence[tuple[int, bytes]], name: str
) -> tuple[list[tuple[Json, Request]], DataError | None]:
    """The lines up to the first bad one, and what is wrong with that."""
    read = []
    for number, line in chunk:
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
            json.dumps(
                row, ensure_ascii=False, allow_nan=False
            ).encode()  # what could not be written back is refused
            read.append((row, parse_request(row, f"{name}:{number}")))
        except DataError as error:
            return read, error
        except (ValueError, RecursionError) as error:
            return read, DataError(name, f"not JSON ({error}); {FORM}", line=number)
    return read, None


def _refuse_constant(word: str) -> Json:
    raise ValueError(f"{word} is no JSON number")


def parse_request(row: object, name: str) -> Request:
    """One line's object as a request.

    Raises:
        DataError: If it has not one of the two forms.
    """

    if (
        isinstance(row, dict)
        and isinstance(responses := row.get("responses"), list)
        and "prompt" in row
    ):
        if not all(isinstance(response, str) for response in responses):
            raise DataError(name, f"a response is not text; {FORM}")
        prompt = row["prompt"]
        return Request(
            name,
            [Message("user", prompt)] if isinstance(prompt, str) else _messages(prompt, name),
            responses,
        )
    if isinstance(row, dict) and "messages" in row and "responses" not in row:
        messages = _messages(row["messages"], name)
        if len(messages) < 2 or messages[-1].role != "assistant":
            raise DataError(
                name, f"the last message must be the assistant's, after at least one other; {FORM}"
            )
        return Request(name, messages[:-1], [messages[-1].content])
    raise DataError(name, FORM)


def _messages(value: object, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(name, f"the messages are not a list with at least one message; {FORM}")
    messages = []
    for message in value:
        if not (
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise DataError(name, f"a message must have a role and a content that are text; {FORM}")
        if message["role"] not in ROLES:
            raise DataError(name, f"the role {message['role']!r} is none of {', '.join(ROLES)}")
        messages.append(Message(message["role"], message["content"]))
    return messages
