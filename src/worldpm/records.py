"""Records that packages exchange: a thread of a dump, and the preference group made from it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

MORE_KEYS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""Keys of a message, besides role and content, that chat templates read."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str
    """Text of the turn, without any chat template."""
    more: str = field(default="", repr=False)
    """Other keys that chat templates read (tool calls, a tool's name, ...), as a JSON object; empty
    if there are none. It is not in the `repr`, so hashes of benchmark items ignore it."""

    @classmethod
    def of(cls, turn: Mapping[str, object]) -> "Message":
        """Convert a turn from the form of trainers and APIs. Its text parts become lines; keys that
        no template reads are dropped.

        Raises:
            TypeError: If it has no role, or neither text nor tool calls.
        """
        role, content = turn.get("role"), turn.get("content")
        # Clients send null for keys that they do not use.
        more = {key: turn[key] for key in MORE_KEYS if turn.get(key)}
        if isinstance(content, list | tuple) and all(map(_is_text_part, content)):
            content = "\n".join(str(part["text"]) for part in content)
        # A turn may consist of tool calls without text.
        if content is None and "tool_calls" in more:
            content = ""

        if not isinstance(role, str) or not isinstance(content, str):
            raise TypeError(f"a message has the role {role!r:.20} and the content {content!r:.60}")
        return cls(role, content, json.dumps(more, ensure_ascii=False) if more else "")

    def turn(self) -> dict[str, Any]:
        """The message as chat templates and APIs read it."""
        more = json.loads(self.more) if self.more else {}
        return {"role": self.role, "content": self.content, **more}


ASSISTANT = Message("assistant", "")
"""The assistant's turn without text; a response becomes its content."""


def _is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text"


class DatedVotes(NamedTuple):
    """Votes of an answer in an older dump."""

    votes: int
    """Up minus down."""
    date: datetime
    """Date of the dump's last post; UTC."""


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment on the question of a thread."""

    comment_id: str
    """The forum's identifier, as text."""
    body: str
    """Markdown."""
    votes: int
    """Up minus down."""
    created: datetime
    """UTC."""
    author: str | None
    """Name or identifier of the writer; None where the dump has neither."""
    licence: str | None
    """Licence of the text; None where the dump names none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a forum thread, as dumped."""

    response_id: str
    """The forum's identifier, as text."""
    body: str
    """Markdown."""
    votes: int
    """Up minus down; may be negative."""
    accepted: bool
    """Whether the opening post names it as the accepted answer."""
    created: datetime
    """UTC."""
    author: str | None
    """Name or identifier of the writer; None where the dump has neither."""
    licence: str | None
    """Licence of the text; None where the dump names none."""
    earlier_votes: tuple[DatedVotes, ...] = ()
    """Votes in older dumps, oldest first."""


@dataclass(frozen=True, slots=True)
class Thread:
    """A forum question with all its answers and votes, nothing filtered."""

    thread_id: str
    """`SITE/ID`."""
    source: str
    """`stackexchange`, `simulated`, ..."""
    site: str
    """Name of one forum of the source."""
    title: str
    """Plain text; empty where the forum has no titles."""
    body: str
    """Markdown."""
    tags: tuple[str, ...]
    """Subjects that the question's author chose."""
    votes: int
    """Up minus down of the question; may be negative."""
    created: datetime
    """UTC."""
    author: str | None
    """Name or identifier of the question's author; None where the dump has neither."""
    url: str | None
    """Address of the thread; None where the dump has none."""
    licence: str | None
    """Licence of the question; None where the dump names none."""
    responses: tuple[Answer, ...]
    """All answers, earliest first."""
    closed: datetime | None = None
    """When moderators closed the question to further answers; None while it is open."""
    comments: tuple[Comment, ...] = ()
    """Comments on the question, earliest first; empty unless `ingest --comments` read them."""


@dataclass(frozen=True, slots=True)
class Response:
    """One candidate answer of a preference group."""

    content: str
    """Text that the model reads."""
    votes: int | None = None
    """Up minus down; None where the source has ratings or labels instead."""
    created: datetime | None = None
    """UTC; None where the source has no dates."""
    meta: dict[str, str] = field(default_factory=dict[str, str])
    """`response_id`, `author`, `licence`: the attribution that a derived set must keep."""


@dataclass(frozen=True, slots=True)
class Preference:
    """A preference for one response of a group over another."""

    chosen: int
    """Index into the group's responses."""
    rejected: int
    """Index into the group's responses."""
    strength: float
    """The vote gap or rating gap, above 0, in votes or rating points."""
    probability: float = 1.0
    """Probability that chosen is truly better, 0.5 to 1: the soft label of the loss."""
    weight: float = 1.0
    """Weight of the pair in loss and accuracy; the weights of a thread add up to about 1."""


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """One prompt, its K responses and the preferences among them: the unit of the whole system."""

    group_id: str
    """`SITE/ID` of a thread, `FILE/ROW` of a preference set."""
    source: str
    """`stackexchange`, `simulated`, `preferences`, ..."""
    site: str
    """Name of one forum of the source, or of a preference set's file."""
    split: str
    """`train`, `validation` or `test`."""
    prompt: tuple[Message, ...]
    """The conversation before the responses, oldest turn first."""
    responses: tuple[Response, ...]
    """The K candidate answers; preferences index them from 0."""
    preferences: tuple[Preference, ...]
    """Pairs of responses, each with the preferred one first; at least one pair."""
