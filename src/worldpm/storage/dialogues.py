"""Prompts and responses in rows of preference sets, in the forms that are common on the hub.

The known forms, by an example row:

    {"prompt": "How?", "chosen": "So.", "rejected": "No."}
    {"prompt": "How?", "response": "So.", "helpfulness": 4}
    {"instruction": "How?", "completions": [{"response": "So.", "overall_score": 8.5}]}

- `chosen` and `rejected` with a `prompt` (or `question`, or `instruction`; `system` before it), or
  with an implicit prompt, the common beginning of both. They are texts or lists of messages (TRL,
  RLHFlow's pairs), or dialogues of `Human:` and `Assistant:` turns (hh-rlhf). Lists with the
  complete dialogue are used as given; only a separate system turn is put before them.
- `prompt`, `response` and a `helpfulness` rating on consecutive rows (HelpSteer2). Later turns of a
  prompt begin with `<extra_id_1>User` or `<extra_id_1>Assistant`.
- `instruction` and `completions`, each with `response` and a rating (UltraFeedback).
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import msgspec

from worldpm.errors import DataError
from worldpm.records import Message

RATINGS = ("rating", "overall_score", "helpfulness", "score")
"""Names of ratings; the first that a response has counts. --columns sets the first."""
PROMPTS = ("prompt", "question", "instruction")
"""Names of prompts; the first that a row has counts."""
BEYOND_TEXT = ("tool_calls", "reasoning_content", "thinking")
"""Keys of a message that a response of a preference group, which is text, cannot have."""
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
MARKED_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
SPEAKERS = {"Human": "user", "User": "user", "Assistant": "assistant"}
FORMS = (
    "expected chosen and rejected (with or without prompt), or prompt, response and helpfulness, or"
    " instruction and completions. Name other columns with --columns OURS=THEIRS"
)
LARGEST_MARGIN = 80.0
"""Logits; the strength of a larger margin does not fit the 32 bits of a table."""

Messages = tuple[Message, ...]


class RatedRow(NamedTuple):
    """A row: a prompt, with rated responses or with a chosen and a rejected response."""

    prompt: Messages
    responses: tuple[str, ...]
    ratings: tuple[float, ...]
    """One for each response; empty for a pair."""
    strength: float = 1.0
    """Strength of a pair; see `Preference`."""


class Sides(NamedTuple):
    """The messages of a pair."""

    prompt: Messages
    """The messages that both sides begin with."""
    chosen: Messages
    """One message, if the pair can be used."""
    rejected: Messages
    """Likewise."""


class Rated(msgspec.Struct, frozen=True):
    """The columns of ratings."""

    overall_score: Any = None
    helpfulness: Any = None
    rating: Any = None
    score: Any = None


class SetRow(Rated, frozen=True):
    """The columns of a row that are read; None if the row has no such column."""

    prompt: Any = None
    question: Any = None
    instruction: Any = None
    input: Any = None
    system: Any = None
    chosen: Any = None
    rejected: Any = None
    response: Any = None
    responses: Any = None
    messages: Any = None
    completions: Any = None
    margin: Any = None
    score_chosen: Any = None
    score_rejected: Any = None

    @property
    def is_pair(self) -> bool:
        """Whether the row has a chosen and a rejected side."""
        return self.chosen is not None and self.rejected is not None

    @property
    def is_flat(self) -> bool:
        """Whether the row has a prompt and one response."""
        prompts = (getattr(self, name) for name in PROMPTS)
        return self.response is not None and any(prompt is not None for prompt in prompts)


class _Answer(Rated, frozen=True):
    """An entry of `completions`."""

    response: Any = None


def columns(row: object, path: Path | str, number: int) -> SetRow:
    """The columns of a row.

    Raises:
        DataError: If the row is not an object.
    """
    try:
        return msgspec.convert(row, SetRow)
    except msgspec.ValidationError as error:
        raise DataError(path, f"a row that is not an object; {FORMS}", line=number) from error


def rated_row(row: object, path: Path | str, number: int) -> RatedRow | str:
    """Read a row with a preference or with ratings; a text is the reason to drop the row.

    Raises:
        DataError: If it has none of the known forms.
    """
    values = columns(row, path, number)
    try:
        if values.is_pair:
            return _pair(values)
        if values.is_flat:
            return _flat(values)
        if values.completions is not None:
            return _completions(values)
    except (KeyError, TypeError, ValueError, IndexError, msgspec.ValidationError) as error:
        raise DataError(
            path,
            f"a row that cannot be read ({type(error).__name__}: {error}); {FORMS}",
            line=number,
        ) from error
    raise unknown_form(row, path, number)


def unknown_form(row: object, path: Path | str, number: int) -> DataError:
    """The error of a row that has none of the known forms."""
    names = ", ".join(map(str, row))[:80] if isinstance(row, dict) else "no columns"
    return DataError(path, f"a row with {names}; {FORMS}", line=number)


def pair(row: object) -> RatedRow | str:
    """Read a row with `chosen` and `rejected`; a text is the reason to drop the row.

    Each side is a response, or a complete dialogue that ends with the response.

    Raises:
        TypeError, ValueError, msgspec.ValidationError: If it cannot be read.
    """
    return _pair(msgspec.convert(row, SetRow))


def _pair(values: SetRow) -> RatedRow | str:
    prompt, chosen, rejected = sides(values)
    if len(chosen) != 1 or len(rejected) != 1:
        return "pair whose sides differ before the last response"
    if {chosen[0].role, rejected[0].role} != {"assistant"}:
        return "pair that does not end with the assistant's words"
    if is_beyond_text(chosen[0]) or is_beyond_text(rejected[0]):
        return "pair with a response of tool calls or separate reasoning"

    strength = _strength(values)
    if strength < 0:
        return "pair with a margin below 0"
    return RatedRow(prompt, (chosen[0].content, rejected[0].content), (), strength)


def _flat(values: SetRow) -> RatedRow | str:
    *prompt, response = conversation(values)
    if response.role != "assistant":
        return "response that is not the assistant's words"
    if is_beyond_text(response):
        return "response of tool calls or separate reasoning"
    return RatedRow(tuple(prompt), (response.content,), (_rating(values),))


def _completions(values: SetRow) -> RatedRow | str:
    if not values.completions:
        return "prompt without responses"

    answers = [msgspec.convert(answer, _Answer) for answer in _objects(values.completions)]
    texts = tuple(_text(answer.response) for answer in answers)
    return RatedRow(prompt_of(values), texts, tuple(map(_rating, answers)))


def completion_texts(values: SetRow) -> list[str]:
    """The responses of a row of completions.

    Raises:
        TypeError, msgspec.ValidationError: If they cannot be read.
    """
    answers = _objects(values.completions)
    return [_text(msgspec.convert(answer, _Answer).response) for answer in answers]


def _strength(values: SetRow) -> float:
    """The strength of a pair: `exp(margin) - 1` for a margin, so that `--target-margin 1` requires
    this margin, as TRL's `RewardTrainer` does. Without a margin it is the gap of the scores, at
    least 0, and without scores it is 1.

    Raises:
        TypeError, ValueError: If the margin is not a number, or too large.
    """
    if values.margin not in (None, ""):
        margin = float(values.margin)
        if not -LARGEST_MARGIN <= margin <= LARGEST_MARGIN:
            raise ValueError(f"margin {margin} is not a number of at most {LARGEST_MARGIN} logits")
        return math.expm1(margin)

    gap = _gap(values.score_chosen, values.score_rejected)
    return 1.0 if gap is None else max(0.0, gap)


def _gap(chosen: object, rejected: object) -> float | None:
    """The difference of two scores; None if one is absent or not a number."""
    if not (isinstance(chosen, int | float) and isinstance(rejected, int | float)):
        return None
    gap = float(chosen - rejected)
    return gap if math.isfinite(gap) else None


def is_beyond_text(response: Message) -> bool:
    """Whether a response has more than its text, such as calls of tools."""
    more = json.loads(response.more) if response.more else {}
    return any(more.get(name) for name in BEYOND_TEXT)


def sides(values: SetRow) -> Sides:
    """The messages of a pair, with the system turn of its column or prompt.

    Raises:
        TypeError, ValueError, msgspec.ValidationError: If they cannot be read.
    """
    column = _prompt_column(values)
    prompt, chosen, rejected = _sides(values, column)

    # A row without a prompt is dropped later, and a system turn would hide that it has none.
    return Sides(_with_system(prompt, _system_turn(values, column)), chosen, rejected)


def prompt_of(values: SetRow) -> Messages:
    """The prompt in the columns of a row; empty if there is none."""
    column = _prompt_column(values)
    return _with_system(column, _system_turn(values, column))


def conversation(values: SetRow) -> Messages:
    """The prompt and the response of a flat row.

    Raises:
        TypeError, msgspec.ValidationError: If they cannot be read.
    """
    return prompt_of(values) + messages(values.response, role="assistant")


def _with_system(prompt: Messages, system: Message | None) -> Messages:
    return (system, *prompt) if system and prompt and prompt[0].role != "system" else prompt


def _sides(values: SetRow, prompt: Messages) -> Sides:
    """The messages of a pair; `prompt` is that of a column, empty if there is none."""
    chosen = messages(values.chosen, role="assistant")
    rejected = messages(values.rejected, role="assistant")

    # Sides may repeat the prompt. If after it they do not begin with the answer, they are complete
    # dialogues, and the column has only a part of their prompt.
    after_chosen, after_rejected = _after(prompt, chosen), _after(prompt, rejected)
    if prompt and not (_is_dialogue(after_chosen) and _is_dialogue(after_rejected)):
        return Sides(prompt, after_chosen, after_rejected)

    if len(chosen) == len(rejected) == 1:
        return _split_texts(chosen[0].content, rejected[0].content)

    # Only the last turns are compared, so the dialogues before them should be the same.
    shared = _shared_length(chosen[:-1], rejected[:-1])
    return Sides(chosen[:shared], chosen[shared:], rejected[shared:])


def _after(prompt: Messages, side: Messages) -> Messages:
    """A side without the prompt at its beginning."""
    return side[len(prompt) :] if side[: len(prompt)] == prompt else side


def _is_dialogue(side: Messages) -> bool:
    return len(side) > 1 and side[0].role != "assistant"


def _split_texts(chosen: str, rejected: str) -> Sides:
    """Two texts without a prompt: their common beginning becomes the prompt."""
    beginning = _common_beginning(chosen, rejected)
    return Sides(
        (Message("user", beginning.strip()),),
        messages(chosen[len(beginning) :], role="assistant"),
        messages(rejected[len(beginning) :], role="assistant"),
    )


def _common_beginning(first: str, second: str) -> str:
    """The common beginning of two texts, up to the last white space; empty if one text is the
    beginning of the other."""
    shared = first[: _shared_length(first, second)]
    if shared in (first, second):
        return ""

    # Cut at white space, so that no response begins within a word; a line break counts.
    match = re.match(r"(?s)(?:.*\s)?", shared)
    return match[0] if match else ""


def _shared_length(first: Sequence[object], second: Sequence[object]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _prompt_column(values: SetRow) -> Messages:
    """The prompt in a column of the row, if it has one. An instruction's `input` is a part of
    it."""
    name = next((name for name in PROMPTS if getattr(values, name)), None)
    if name is None:
        return ()
    if name == "instruction" and values.input:
        return asked(f"{values.instruction}\n\n{_text(values.input)}")
    return asked(getattr(values, name))


def _system_turn(values: SetRow, prompt: Messages) -> Message | None:
    """The system turn of a row: that of its column, or else of its prompt."""
    if values.system:
        return Message("system", _text(values.system))
    return next((turn for turn in prompt if turn.role == "system"), None)


def asked(prompt: object) -> Messages:
    """The messages of a prompt, without an empty assistant's turn at its end. HelpSteer2's marks
    separate turns.

    Raises:
        TypeError, msgspec.ValidationError: If it is neither a text nor a list of messages.
    """
    if isinstance(prompt, str) and MARKED_TURN.search(prompt):
        # The first turn has no mark: it is the user's.
        return _turns(["User", *MARKED_TURN.split(prompt)])

    turns = messages(prompt)
    last = turns[-1] if len(turns) > 1 else None
    opened = (
        last is not None and last.role == "assistant" and not (last.content.strip() + last.more)
    )
    return turns[:-1] if opened else turns


def _turns(pieces: Sequence[str]) -> Messages:
    """Messages of speakers and texts in turn; empty texts are left out."""
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return tuple(Message(SPEAKERS[speaker], text) for speaker, text in turns if text)


def messages(value: object, *, role: str = "user") -> Messages:
    """Messages of a list, of a dialogue of `Human:` and `Assistant:` turns, or of another text,
    which becomes one message of the role.

    Raises:
        TypeError, msgspec.ValidationError: If it is none of these.
    """
    if not isinstance(value, str):
        return tuple(map(Message.of, _objects(value)))
    if not re.match(r"\s*Human:", value):
        return (Message(role, value),)

    # The first piece is the white space before the first turn.
    pieces = TURN.split(value)[1:]
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return tuple(Message(SPEAKERS[speaker], text.strip()) for speaker, text in turns)


def single_spaced(text: str) -> str:
    """The text with one space in place of each run of white space. Responses whose texts are then
    equal never form a pair."""
    return " ".join(text.split())


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _objects(value: object) -> Sequence[Mapping[str, object]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise TypeError(f"{value!r:.40} is not a list of objects")
    return value


def _rating(rated: Rated) -> float:
    """The first rating that a row has; some sets write numbers as text."""
    for name in RATINGS:
        rating = getattr(rated, name)
        if isinstance(rating, str | SupportsFloat):
            return float(rating)
        if rating is not None:
            raise TypeError(f"{name} {rating!r:.40} is not a number")
    raise KeyError(f"none of {', '.join(RATINGS)}")
