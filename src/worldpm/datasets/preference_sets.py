"""Preference groups from plain preference sets, in the forms that are usual on the hub.

Rows that follow each other with the same prompt become one group, so that its prompt is computed
once. The known forms, by an example row:

    {"prompt": "How?", "chosen": "So.", "rejected": "No."}
    {"prompt": "How?", "response": "So.", "helpfulness": 4}
    {"instruction": "How?", "completions": [{"response": "So.", "overall_score": 8.5}]}

- `chosen` and `rejected` with a `prompt` (or `question`, or `instruction`; `system` before it), or
  with an implicit prompt, the common beginning of both. They are texts or lists of messages (TRL,
  RLHFlow's pairs), or dialogues of `Human:` and `Assistant:` turns (hh-rlhf). Lists with the
  complete dialogue are taken as they are; only a system turn beside them is put before them.
- `prompt`, `response` and a `helpfulness` rating on rows that follow each other (HelpSteer2). Its
  later turns begin with `<extra_id_1>User` or `<extra_id_1>Assistant`.
- `instruction` and `completions`, each with `response` and a rating (UltraFeedback).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsFloat

import xxhash

from worldpm.errors import ConfigError, DataError
from worldpm.model import chat
from worldpm.records import Message, Preference, PreferenceGroup, Response
from worldpm.storage import parquet, rows
from worldpm.storage.rows import Row

Split = Literal["train", "validation", "test"]

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
RATINGS = ("overall_score", "helpfulness", "rating", "score")
"""Names of ratings; the first that a response has is taken."""
PROMPTS = ("prompt", "question", "instruction")
"""Names of prompts; the first that a row has is taken."""
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
MARKED_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
FORMS = (
    "expected chosen and rejected (with or without prompt), or prompt, response and helpfulness, or"
    " instruction and completions"
)
VALIDATION_SHARE = 0.05
"""Share of the prompts, by their hash, that validate if a set has no validation file."""

Messages = tuple[Message, ...]


class RatedRow(NamedTuple):
    """A row: a prompt, and responses with ratings or in the order chosen, rejected."""

    prompt: Messages
    responses: tuple[str, ...]
    ratings: tuple[float, ...]
    """One for each response; empty for a pair."""


class NumberedRow(NamedTuple):
    """A row that has a prompt and responses."""

    number: int
    """Number of the row in its file, from 1."""
    row: RatedRow

    @property
    def key(self) -> tuple[Messages, bool]:
        """Rows of one key that follow each other make one group."""
        return self.row.prompt, bool(self.row.ratings)


class _Comparison(NamedTuple):
    """The responses to a prompt, and which are preferred to which."""

    responses: tuple[str, ...]
    preferences: tuple[Preference, ...]


class _Sides(NamedTuple):
    """The messages of a pair."""

    prompt: Messages
    chosen: Messages
    """One message, if the pair can be used."""
    rejected: Messages
    """Likewise; empty if the prompts of the two sides differ."""


def is_plain(path: Path) -> bool:
    """Whether a file is a plain set, not a table of groups: JSON lines, or Parquet without a
    `preferences` column."""
    return path.suffix != ".parquet" or "preferences" not in parquet.columns_of(path)


def files_in(folder: Path) -> list[Path]:
    """The files of a set, sorted. A hub repository has them at its top or under `data/`, and other
    sets in other folders.

    Raises:
        ConfigError: If there is none.
    """
    entries = (*folder.glob("*"), *folder.glob("data/*"))
    files = sorted(path for path in entries if path.name.endswith(SUFFIXES) and path.is_file())
    if files:
        return files

    folders = [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    hint = f" Name one of its folders ({', '.join(sorted(folders)[:5])})." if folders else ""
    raise ConfigError(
        f"{folder}: neither groups (`worldpm group` makes them) nor a preference set: no"
        f" {', '.join(SUFFIXES)}.{hint}"
    )


def read(paths: Sequence[Path], split: Split, drops: Counter[str]) -> Iterator[PreferenceGroup]:
    """The groups of a split, in order. A row without a preference is counted in `drops` with its
    reason.

    The name of a file gives its split (`validation`, `dev`, `test`); other files are for training.
    If no file is for validation, VALIDATION_SHARE of the training prompts are.

    Raises:
        DataError: If a row has none of the known forms.
    """
    lends = not any(split_of(path) == "validation" for path in paths)

    for path in paths:
        split_of_file = split_of(path)
        if split_of_file not in ("train", split):
            continue

        for group in groups_of(path, drops):
            # By the hash of its prompt, because a prompt in two rows must not be in two splits.
            lent = lends and split_of_file == "train" and _share(group.prompt) < VALIDATION_SHARE
            if split == ("validation" if lent else split_of_file):
                yield replace(group, split=split)


def split_of(path: Path) -> Split:
    """The split in a file's name; training if the name has none."""
    tokens = set(re.split(r"[^a-z]+", path.name.lower()))
    if tokens & {"validation", "valid", "val", "dev", "eval"}:
        return "validation"
    return "test" if "test" in tokens else "train"


def _share(prompt: Messages) -> float:
    """A number from 0 to 1 that depends on the prompt alone."""
    text = "\n".join(message.content for message in prompt)
    return float(xxhash.xxh64_intdigest(text.encode()) / 2**64)


def groups_of(path: Path, drops: Counter[str]) -> Iterator[PreferenceGroup]:
    """All groups of a file, whatever its split; raises and counts as `read` does."""
    name = re.sub(r"\W+", "-", path.name.split(".")[0])

    # Rows are not sorted by prompt: a set may be larger than memory.
    for (prompt, _), members in groupby(_rated_rows(path, drops), key=lambda row: row.key):
        numbered = list(members)
        group_id = f"{name}/{numbered[0].number}"
        group = _group(group_id, prompt, [member.row for member in numbered], drops)
        if group is not None:
            yield group


def _rated_rows(path: Path, drops: Counter[str]) -> Iterator[NumberedRow]:
    """The rows of a file that have a prompt and responses."""
    for number, row in enumerate(rows.read(path), start=1):
        rated = _rated_row(row, path, number)
        if isinstance(rated, str):
            drops[rated] += 1
        else:
            yield NumberedRow(number, rated)


def _group(
    group_id: str, prompt: Messages, members: Sequence[RatedRow], drops: Counter[str]
) -> PreferenceGroup | None:
    """Rows of one prompt as a group; None if they hold no preference, which is counted."""
    if not any(message.content.strip() for message in prompt):
        drops["prompt without text"] += len(members)
        return None

    compare = _compare_ratings if members[0].ratings else _compare_pairs
    comparison = compare(members, drops)
    if not comparison.preferences:
        return None

    return PreferenceGroup(
        group_id=group_id,
        source="preferences",
        site=group_id.split("/")[0],
        split="train",
        prompt=prompt,
        responses=tuple(map(Response, comparison.responses)),
        preferences=comparison.preferences,
    )


def _compare_pairs(members: Sequence[RatedRow], drops: Counter[str]) -> _Comparison:
    """Pairs of one prompt, each with a weight of 1; equal texts become one response."""
    # A dict keeps the order in which texts come.
    indices: dict[str, int] = {}
    for row in members:
        for text in row.responses:
            indices.setdefault(text, len(indices))

    preferences = []
    for row in members:
        chosen, rejected = (indices[text] for text in row.responses)
        if chosen == rejected:
            drops["pair of equal responses"] += 1
        else:
            preferences.append(Preference(chosen, rejected, 1.0))
    return _Comparison(tuple(indices), tuple(preferences))


def _compare_ratings(members: Sequence[RatedRow], drops: Counter[str]) -> _Comparison:
    """All pairs of rated responses to one prompt, which weigh 1 together."""
    texts: list[str] = []
    ratings: list[float] = []
    for row in members:
        texts += row.responses
        ratings += row.ratings

    pairs = [
        (chosen, rejected)
        for chosen, rejected in permutations(range(len(ratings)), 2)
        if ratings[chosen] > ratings[rejected]
    ]
    if not pairs:
        drops["prompt whose responses have equal ratings"] += 1

    preferences = [
        Preference(chosen, rejected, ratings[chosen] - ratings[rejected], weight=1 / len(pairs))
        for chosen, rejected in pairs
    ]
    return _Comparison(tuple(texts), tuple(preferences))


def _rated_row(row: Any, path: Path, number: int) -> RatedRow | str:
    """The row, or the reason why it holds no preference."""
    try:
        if "chosen" in row and "rejected" in row:
            return pair(row)
        if "response" in row and "prompt" in row:
            return RatedRow(asked(row["prompt"]), (_text(row["response"]),), (_rating(row),))
        if "completions" in row:
            return _completions(row)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            path,
            f"a row that cannot be read ({type(error).__name__}: {error}); {FORMS}",
            line=number,
        ) from error
    raise DataError(path, f"a row with {', '.join(map(str, row))[:80]}; {FORMS}", line=number)


def _completions(row: Row) -> RatedRow | str:
    """A row with an instruction and its completions, or the reason why it holds no preference."""
    prompt = asked(row.get("instruction", row.get("prompt")))
    if not row["completions"]:
        return "prompt without responses"

    answers = _objects(row["completions"])
    texts = tuple(_text(answer["response"]) for answer in answers)
    return RatedRow(prompt, texts, tuple(map(_rating, answers)))


def pair(row: Row) -> RatedRow | str:
    """A row with `chosen` and `rejected`, or the reason why it holds no preference.

    Each side is a response, or a complete dialogue that ends with the response.
    """
    column = _prompt_column(row)
    prompt, chosen, rejected = _sides(row, column)

    # A row without a prompt is dropped later, and a system turn would hide that it has none.
    system = _system_turn(row, column)
    if system and prompt and prompt[0].role != "system":
        prompt = (system, *prompt)

    if len(chosen) != 1 or len(rejected) != 1:
        return "pair whose sides differ before the last response"
    if {chosen[0].role, rejected[0].role} != {"assistant"}:
        return "pair that does not end with the assistant's words"
    return RatedRow(prompt, (chosen[0].content, rejected[0].content), ())


def _sides(row: Row, prompt: Messages) -> _Sides:
    """The messages of a pair; `prompt` is that of a column, empty if there is none."""
    chosen = _messages(row["chosen"], role="assistant")
    rejected = _messages(row["rejected"], role="assistant")

    # Sides may repeat the prompt. If they still begin with another turn than the answer, they are
    # complete dialogues, and the column has only a part of their prompt.
    after_chosen, after_rejected = _after(prompt, chosen), _after(prompt, rejected)
    if prompt and not (_is_dialogue(after_chosen) and _is_dialogue(after_rejected)):
        return _Sides(prompt, after_chosen, after_rejected)

    if len(chosen) == len(rejected) == 1:
        return _split_texts(chosen[0].content, rejected[0].content)

    # Only the last turns are compared, so the dialogues before them must be the same.
    prompts_agree = rejected[:-1] == chosen[:-1]
    return _Sides(chosen[:-1], chosen[-1:], rejected[-1:] if prompts_agree else ())


def _after(prompt: Messages, side: Messages) -> Messages:
    """A side without the prompt at its beginning."""
    return side[len(prompt) :] if side[: len(prompt)] == prompt else side


def _is_dialogue(side: Messages) -> bool:
    return len(side) > 1 and side[0].role != "assistant"


def _split_texts(chosen: str, rejected: str) -> _Sides:
    """Two texts without a prompt: their common beginning becomes the prompt."""
    beginning = _common_beginning(chosen, rejected)
    return _Sides(
        (Message("user", beginning.strip()),),
        _messages(chosen[len(beginning) :], role="assistant"),
        _messages(rejected[len(beginning) :], role="assistant"),
    )


def _common_beginning(first: str, second: str) -> str:
    """The common beginning of two texts, up to the last white space; empty if one text is the
    beginning of the other."""
    shared = first[: chat.common_prefix([first, second])]
    if shared in (first, second):
        return ""

    # Cut at white space, so that no response begins within a word; a line break counts.
    match = re.match(r"(?s)(?:.*\s)?", shared)
    return match[0] if match else ""


def _prompt_column(row: Row) -> Messages:
    """The prompt in a column of the row, if it has one. An instruction's `input` is a part of
    it."""
    name = next((name for name in PROMPTS if row.get(name)), None)
    if name is None:
        return ()
    if name == "instruction" and row.get("input"):
        return asked(f"{row[name]}\n\n{_text(row['input'])}")
    return asked(row[name])


def _system_turn(row: Row, prompt: Messages) -> Message | None:
    """The system turn of a row: that of its column, or else of its prompt."""
    if row.get("system"):
        return Message("system", _text(row["system"]))
    return next((turn for turn in prompt if turn.role == "system"), None)


def asked(prompt: object) -> Messages:
    """The messages of a prompt, without an assistant's turn that it only opens. HelpSteer2's marks
    begin turns.

    Raises:
        TypeError: If it is neither a text nor a list of messages.
    """
    if isinstance(prompt, str) and MARKED_TURN.search(prompt):
        # The first turn has no mark: it is the user's.
        return _turns(["User", *MARKED_TURN.split(_text(prompt))])

    messages = _messages(prompt)
    opened = len(messages) > 1 and messages[-1].role == "assistant"
    return messages[:-1] if opened and not messages[-1].content.strip() else messages


def _turns(pieces: Sequence[str]) -> Messages:
    """Messages of speakers and texts in turn; empty texts are left out."""
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return tuple(Message(ROLES[speaker], text) for speaker, text in turns if text)


def _messages(value: object, *, role: str = "user") -> Messages:
    """Messages of a list, of a dialogue of `Human:` and `Assistant:` turns, or of another text,
    which becomes one message of the role."""
    if not isinstance(value, str):
        return tuple(Message(str(turn["role"]), _text(turn["content"])) for turn in _objects(value))
    if not re.match(r"\s*Human:", value):
        return (Message(role, _text(value)),)

    # The first piece is the white space before the first turn.
    pieces = TURN.split(value)[1:]
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return tuple(Message(ROLES[speaker], text.strip()) for speaker, text in turns)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _objects(value: object) -> Sequence[Row]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise TypeError(f"{value!r:.40} is not a list of objects")
    return value


def _rating(row: Row) -> float:
    """The first rating that a row has; some sets write numbers as text."""
    for name in RATINGS:
        rating = row.get(name)
        if isinstance(rating, str | SupportsFloat):
            return float(rating)
        if rating is not None:
            raise TypeError(f"{name} {rating!r:.40} is not a number")
    raise KeyError(f"none of {', '.join(RATINGS)}")
