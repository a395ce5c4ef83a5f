"""Rows of users as requests: a prompt with its responses, or a conversation whose last message is
judged.

    {"prompt": "How long?", "responses": ["An hour.", "Two."], "id": 7}
    {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]}
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, NoReturn

from worldpm.errors import DataError
from worldpm.records import Message
from worldpm.scoring.scorer import Request
from worldpm.storage.json_files import Json

FORM = (
    'expected {"prompt": text or messages, "responses": [text, ...]} or {"messages": [..., {"role":'
    ' "assistant", ...}]}'
)
ROLES = ("system", "user", "assistant")


class Line(NamedTuple):
    """One line of a user's file."""

    row: Json
    """All keys of the line, those that are not scored included."""
    request: Request


def numbered_lines(source: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1."""
    return ((number, line) for number, line in enumerate(source, start=1) if line.strip())


def read_lines(
    chunk: Sequence[tuple[int, bytes]], name: str
) -> tuple[list[Line], DataError | None]:
    """The lines up to the first bad one, and the error of that."""
    lines: list[Line] = []
    for number, text in chunk:
        try:
            row = json.loads(text, parse_constant=_refuse_constant)
            # refuse what could not be written back: numbers beyond float64, unpaired surrogates
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
            lines.append(Line(row, parse_request(row, f"{name}:{number}")))
        except DataError as error:
            return lines, error
        # RecursionError: lists within lists, thousands deep
        except (ValueError, RecursionError) as error:
            return lines, DataError(name, f"not JSON ({error}); {FORM}", line=number)

    return lines, None


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def parse_request(row: object, name: str) -> Request:
    """One line's object as a request.

    Raises:
        DataError: If it has not one of the two forms.
    """
    if not isinstance(row, dict):
        raise DataError(name, FORM)

    responses = row.get("responses")
    if "prompt" in row and isinstance(responses, list):
        if not all(isinstance(response, str) for response in responses):
            raise DataError(name, f"a response is not text; {FORM}")
        prompt = row["prompt"]
        is_text = isinstance(prompt, str)
        messages = [Message("user", prompt)] if is_text else _messages(prompt, name)
        return Request(name, messages, responses)

    if "messages" in row and "responses" not in row:
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
    for entry in value:
        fields = entry if isinstance(entry, dict) else {}
        role, content = fields.get("role"), fields.get("content")
        if not (isinstance(role, str) and isinstance(content, str)):
            raise DataError(name, f"a message must have a role and a content that are text; {FORM}")
        if role not in ROLES:
            raise DataError(name, f"the role {role!r} is none of {', '.join(ROLES)}")
        messages.append(Message(role, content))
    return messages
