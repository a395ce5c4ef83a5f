"""The records that travel the road: a thread as it was dumped, and the preference group made of
it."""

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a forum thread, as dumped."""

    response_id: str
    body: str
    """Markdown."""
    votes: int
    """Up minus down; may be negative."""
    accepted: bool
    created: datetime
    """UTC."""
    author: str | None
    licence: str | None


@dataclass(frozen=True, slots=True)
class Thread:
    """A forum question with all its answers and votes, nothing filtered."""

    thread_id: str
    """`SITE/ID`."""
    source: str
    """`stackexchange`, `simulated`, ..."""
    site: str
    title: str
    body: str
    """Markdown."""
    tags: tuple[str, ...]
    votes: int
    created: datetime
    author: str | None
    url: str | None
    licence: str | None
    responses: tuple[Answer, ...]
    closed: datetime | None = None
    """When moderators closed the question to further answers."""


@dataclass(frozen=True, slots=True)
class Response:
    """One candidate answer of a preference group."""

    content: str
    votes: int | None = None
    created: datetime | None = None
    """UTC."""
    meta: dict[str, str] = field(default_factory=dict[str, str])
    """`response_id`, `author`, `licence`: what a derived set must keep."""


@dataclass(frozen=True, slots=True)
class Preference:
    """One response of a group is preferred to another."""

    chosen: int
    """Index into the group's responses."""
    rejected: int
    strength: float
    """The vote gap or rating gap, above 0, in votes or rating points."""
    probability: float = 1.0
    """That chosen is truly the better one, 0.5 to 1: the soft label of the loss."""
    weight: float = 1.0
    """What the pair counts in loss and accuracy; the weights of a thread add up to about 1."""


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """One prompt, its K responses, and which of them are preferred to which: the unit of the whole
    system."""

    group_id: str
    source: str
    site: str
    split: str
    """`train`, `validation` or `test`."""
    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    preferences: tuple[Preference, ...]
