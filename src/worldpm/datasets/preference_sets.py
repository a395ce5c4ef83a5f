"""Plain preference sets, as others publish them, become preference groups.

Rows that follow each other with the same prompt become one group, so that its prompt is computed
once. Known forms:

- `chosen`, `rejected` with `prompt` (`question`, `instruction`; `system` before it), or with the
  prompt implicit: what both begin with. Texts or message lists (TRL, RLHFlow's pairs), and
  dialogues of `Human:` and `Assistant:` turns (hh-rlhf). Lists that hold the whole dialogue are
  taken as they are, but for a system turn that stands beside them.
- `prompt`, `response` and a `helpfulness` rating on rows that follow each other (HelpSteer2, whose
  later turns begin with `<extra_id_1>User` or `<extra_id_1>Assistant`).
- `instruction` and `completions` with `response` and a rating (UltraFeedback).
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import xxhash

from worldpm.errors import ConfigError, DataError
from worldpm.model import chat
from worldpm.records import Message, Preference, PreferenceGroup, Response
from worldpm.storage import parquet, rows

Json = dict[str, Any]
Split = Literal["train", "validation", "test"]

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
RATINGS = ("overall_score", "helpfulness", "rating", "score")
"""Names of ratings; the first that a response has is taken."""
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
MARKED_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}
ASKED = ("prompt", "question", "instruction")
FORMS = (
    "expected chosen and rejected (with or without prompt), or prompt, response and helpfulness, or"
    " instruction and completions"
)
VALIDATION_SHARE = 0.05
"""Of the prompts, by their hash, where a set has no validation file of its own."""


class RatedRow(NamedTuple):
    """A row: a prompt, and responses with a rating or in the order chosen, rejected."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    ratings: tuple[float, ...]


def is_plain(path: Path) -> bool:
    """Whether a file is a plain set, not a table of groups: JSON lines, or Parquet without a
    `preferences` column."""
    return path.suffix != ".parquet" or "preferences" not in parquet.columns_of(path)


def files_in(folder: Path) -> list[Path]:
    """The files of a set, sorted; a hub repository keeps them at its top or under `data/`, and
    other sets in other folders.

    Raises:
        ConfigError: If there is none.
    """
    found = sorted(
        path
        for path in (*folder.glob("*"), *folder.glob("data/*"))
        if path.name.endswith(SUFFIXES) and path.is_file()
    )
    if not found:
        inner = ", ".join(
            sorted(
                entry.name
                for entry in folder.iterdir()
                if entry.is_dir() and not entry.name.startswith(".")
            )[:5]
        )
        raise ConfigError(
            f"{folder}: neither groups (`worldpm group` makes them) nor a preference set: no"
            f" {', '.join(SUFFIXES)}" + (f"; name one of its folders ({inner})" if inner else "")
        )
    return found


def read(paths: Sequence[Path], split: Split, drops: Counter[str]) -> Iterator[PreferenceGroup]:
    """The groups of a split, in order. A row without a preference is counted in `drops` with its
    reason.

    A file belongs to the split that its name says (`validation`, `dev`, `test`), else to training;
    where no file is of the validation split, VALIDATION_SHARE of the training prompts are.

    Raises:
        DataError: If a row has none of the known forms.
    """
    held_out = not any(split_of(path) == "validation" for path in paths)
    for path in paths:
        if split_of(path) not in ("train", split):
            continue
        for group in groups_of(path, drops):
            own = split_of(path)
            if own == "train" and held_out and _share(group.prompt) < VALIDATION_SHARE:
                own = "validation"
            if own == split:
                yield replace(group, split=split)


def split_of(path: Path) -> Split:
    """The split that a file's name says; training where it says none."""
    words = re.split(r"[^a-z]+", path.name.lower())
    if {"validation", "valid", "val", "dev", "eval"} & set(words):
        return "validation"
    return "test" if "test" in words else "train"


def _share(prompt: Sequence[Message]) -> float:
    """A number from 0 to 1 that depends on the prompt alone."""
    return float(
        xxhash.xxh64_intdigest("\n".join(message.content for message in prompt).encode()) / 2**64
    )


def groups_of(path: Path, drops: Counter[str]) -> Iterator[PreferenceGroup]:
    """All groups of a file, whatever its split; raises and counts as `read` does."""
    name = re.sub(r"\W+", "-", path.name.split(".")[0])
    numbered = enumerate(rows.read(path), start=1)
    for (prompt, _), members in groupby(
        _whole(numbered, path, drops), key=lambda pair: (pair[1].prompt, bool(pair[1].ratings))
    ):
        first, *others = members
        group = _group(f"{name}/{first[0]}", prompt, [first[1], *(row for _, row in others)], drops)
        if group is not None:
            yield group


def _whole(
    numbered: Iterable[tuple[int, Json]], path: Path, drops: Counter[str]
) -> Iterator[tuple[int, RatedRow]]:
    """The rows that have one prompt, with their numbers."""
    for number, row in numbered:
        judged = _judged(row, path, number)
        if isinstance(judged, str):
            drops[judged] += 1
        else:
            yield number, judged


def _group(
    group_id: str, prompt: tuple[Message, ...], rows: Sequence[RatedRow], drops: Counter[str]
) -> PreferenceGroup | None:
    """Rows of one prompt as a group. Pairs keep their weight of 1 each; ratings give all pairs,
    which weigh 1 together."""
    if not prompt or not any(message.content.strip() for message in prompt):
        drops["prompt without text"] += len(rows)
        return None
    if not rows[0].ratings:
        places = {
            text: i
            for i, text in enumerate(dict.fromkeys(text for row in rows for text in row.responses))
        }
        named = [(places[row.responses[0]], places[row.responses[1]]) for row in rows]
        kept = [pair for pair in named if pair[0] != pair[1]]
        if len(kept) < len(named):
            drops["pair of equal responses"] += len(named) - len(kept)
        preferences = tuple(Preference(chosen, rejected, 1.0) for chosen, rejected in kept)
        texts = list(places)
    else:
        texts = [text for row in rows for text in row.responses]
        ratings = [rating for row in rows for rating in row.ratings]
        gaps = {
            (i, j): a - b for i, a in enumerate(ratings) for j, b in enumerate(ratings) if a > b
        }
        preferences = tuple(
            Preference(i, j, gap, weight=1 / len(gaps)) for (i, j), gap in gaps.items()
        )
        if not gaps:
            drops["prompt whose responses have equal ratings"] += 1
    if not preferences:
        return None
    return PreferenceGroup(
        group_id,
        "preferences",
        group_id.split("/")[0],
        "train",
        prompt,
        tuple(map(Response, texts)),
        preferences,
    )


def _judged(row: Any, path: Path, number: int) -> RatedRow | str:
    """The row, or why it holds no preference."""
    try:
        if "chosen" in row and "rejected" in row:
            return pair(row)
        if "response" in row and "prompt" in row:
            return RatedRow(asked(row["prompt"]), (_text(row["response"]),), (_rating(row),))
        if "completions" in row:
            answers = row["completions"]
            prompt = asked(row.get("instruction", row.get("prompt")))
            if not answers:
                return "prompt without responses"
            return RatedRow(
                prompt,
                tuple(_text(answer["response"]) for answer in answers),
                tuple(map(_rating, answers)),
            )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            path,
            f"a row that cannot be read ({type(error).__name__}: {error}); {FORMS}",
            line=number,
        ) from error
    raise DataError(path, f"a row with {', '.join(map(str, row))[:80]}; {FORMS}", line=number)


def pair(row: Json) -> RatedRow | str:
    """A row with `chosen` and `rejected`, each a response, or the whole dialogue that ends with
    one; or why it holds no preference."""
    chosen, rejected = (
        _messages(row["chosen"], role="assistant"),
        _messages(row["rejected"], role="assistant"),
    )
    prompt = _given(row)
    bare = [
        side[len(prompt) :] if side[: len(prompt)] == prompt else side
        for side in (chosen, rejected)
    ]
    whole = all(len(side) > 1 and side[0].role != "assistant" for side in bare)
    system = next((message for message in prompt if message.role == "system"), None)
    if row.get("system"):
        system = Message("system", _text(row["system"]))
    if prompt and not whole:
        chosen, rejected = bare
    elif len(chosen) == len(rejected) == 1:
        words = _common_words(chosen[0].content, rejected[0].content)
        prompt = (Message("user", words.strip()),)
        chosen, rejected = (
            _messages(side[0].content[len(words) :], role="assistant")
            for side in (chosen, rejected)
        )
    else:
        prompt, chosen, rejected = (
            chosen[:-1],
            chosen[-1:],
            (rejected[-1:] if rejected[:-1] == chosen[:-1] else ()),
        )
    if system and prompt and prompt[0].role != "system":
        prompt = (system, *prompt)
    if len(chosen) != 1 or len(rejected) != 1:
        return "pair whose sides differ before the last response"
    if {chosen[0].role, rejected[0].role} != {"assistant"}:
        return "pair that does not end with the assistant's words"
    return RatedRow(prompt, (chosen[0].content, rejected[0].content), ())


def _given(row: Json) -> tuple[Message, ...]:
    """The prompt that stands beside the responses; none where there is none. An instruction's
    `input` is a part of it."""
    name = next((name for name in ASKED if row.get(name)), None)
    if name is None:
        return ()
    text = (
        f"{row[name]}\n\n{_text(row['input'])}"
        if name == "instruction" and row.get("input")
        else row[name]
    )
    return asked(text)


def _common_words(first: str, second: str) -> str:
    """What two texts begin with, up to the last white space."""
    shared = first[: chat.common_prefix([first, second])]
    # it always matches
    return re.match(r"(?s)(?:.*\s)?", shared)[0] if shared not in (first, second) else ""  # type: ignore[index]


def asked(prompt: Any) -> tuple[Message, ...]:
    """The messages of a prompt; an assistant's turn that it only opens is none, and HelpSteer2's
    marks begin turns.

    Raises:
        TypeError: If it is neither a text nor a list of messages.
    """
    if isinstance(prompt, str) and MARKED_TURN.search(prompt):
        first, *others = MARKED_TURN.split(_text(prompt))
        turns = [("User", first), *zip(others[::2], others[1::2], strict=True)]
        return tuple(Message(ROLES[who], words) for who, words in turns if words)
    found = _messages(prompt)
    opened = len(found) > 1 and found[-1].role == "assistant" and not found[-1].content.strip()
    return found[:-1] if opened else found


def _messages(value: Any, *, role: str = "user") -> tuple[Message, ...]:
    """Messages of a list, of a dialogue of `Human:` and `Assistant:` turns, or of a text, which is
    one of that role."""
    if isinstance(value, str):
        if re.match(r"\s*Human:", value):
            pieces = TURN.split(value)[1:]
            return tuple(
                Message(ROLES[who], words.strip())
                for who, words in zip(pieces[::2], pieces[1::2], strict=True)
            )
        return (Message(role, _text(value)),)
    return tuple(Message(str(message["role"]), _text(message["content"])) for message in value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _rating(row: Json) -> float:
    found = [row[name] for name in RATINGS if row.get(name) is not None]
    if not found:
        raise KeyError(f"none of {', '.join(RATINGS)}")
    return float(found[0])
