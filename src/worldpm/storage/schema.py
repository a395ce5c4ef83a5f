"""The tables on disk, as Arrow schemas, and the rows of them as records."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from worldpm.errors import DataError
from worldpm.records import Answer, Message, Preference, PreferenceGroup, Response, Thread

Json = dict[str, Any]

INSTANT = pa.timestamp("us", tz="UTC")

POSTS = pa.schema(
    [
        ("post_id", pa.string()),
        ("parent_id", pa.string()),  # null for the post that opens a thread
        ("accepted_id", pa.string()),
        ("title", pa.string()),
        ("body", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("votes", pa.int64()),
        ("created", pa.timestamp("us")),
        ("closed", pa.timestamp("us")),  # when moderators closed a question, null if they did not
        ("author", pa.string()),
        ("url", pa.string()),
        ("licence", pa.string()),
    ]
)
"""What a forum format gives, before the posts are joined into threads."""

ANSWERS = pa.struct(
    [
        ("response_id", pa.string()),
        ("body", pa.string()),
        ("votes", pa.int64()),
        ("accepted", pa.bool_()),
        ("created", INSTANT),
        ("author", pa.string()),
        ("licence", pa.string()),
    ]
)

THREADS = pa.schema(
    [
        ("thread_id", pa.string()),
        ("source", pa.string()),
        ("site", pa.string()),
        ("title", pa.string()),
        ("body", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("votes", pa.int64()),
        ("created", INSTANT),
        ("closed", INSTANT),
        ("author", pa.string()),
        ("url", pa.string()),
        ("licence", pa.string()),
        ("responses", pa.list_(ANSWERS)),
    ]
)

PREFERENCES = pa.list_(
    pa.struct(
        [
            ("chosen", pa.int32()),
            ("rejected", pa.int32()),
            ("strength", pa.float32()),
            ("probability", pa.float32()),
            ("weight", pa.float32()),
        ]
    )
)

GROUPS = pa.schema(
    [
        ("group_id", pa.string()),
        ("source", pa.string()),
        ("site", pa.string()),
        ("split", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        (
            "responses",
            pa.list_(
                pa.struct(
                    [
                        ("content", pa.string()),
                        ("votes", pa.int64()),
                        ("created", INSTANT),
                        ("meta", pa.map_(pa.string(), pa.string())),
                    ]
                )
            ),
        ),
        ("preferences", PREFERENCES),
    ]
)

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PAIRS = pa.schema(
    [
        ("prompt", MESSAGES),
        ("chosen", MESSAGES),
        ("rejected", MESSAGES),
        ("strength", pa.float32()),
        ("probability", pa.float32()),
        ("weight", pa.float32()),
        ("group_id", pa.string()),
    ]
)
"""What others train on: the prompt is written again for every pair."""

ITEMS = pa.schema(
    [
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item", pa.string()),
        ("prompt_id", pa.string()),
        ("response", pa.int32()),
        ("preferred", pa.bool_()),
        ("quality", pa.float64()),  # where a set says more than better and worse
        ("prompt", pa.string()),  # on the row of the first response
        ("text", pa.string()),
        ("created", INSTANT),
        ("votes", pa.int64()),
        ("characters", pa.int64()),
        ("headers", pa.int64()),
        ("lists", pa.int64()),
        ("bold", pa.int64()),
        ("code", pa.int64()),
        ("links", pa.int64()),
    ]
)

REWARDS = pa.schema(
    [
        ("checkpoint", pa.string()),
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item", pa.string()),
        ("response", pa.int32()),
        ("preferred", pa.bool_()),
        ("reward", pa.float64()),
        ("prompt_id", pa.string()),
        ("quality", pa.float64()),
        ("length_tokens", pa.int64()),
        ("truncated", pa.bool_()),
    ]
)

ITEM_PREFERENCES = pa.schema(
    [
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item", pa.string()),
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("strength", pa.float32()),
        ("probability", pa.float32()),
        ("weight", pa.float32()),
    ]
)


def only(table: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    """Some columns of a schema."""
    return pa.schema([table.field(name) for name in columns])


def threads_of(batch: pa.RecordBatch) -> Iterator[Thread]:
    """Rows of `threads/*.parquet` as records."""
    lists, names = batch["responses"], [name for name in THREADS.names if name != "responses"]
    answers = map(Answer, *(lists.flatten().field(name).to_pylist() for name in ANSWERS.names))
    for size, *values in zip(
        lists.value_lengths().to_pylist(), *(batch[name].to_pylist() for name in names), strict=True
    ):
        row = dict(zip(names, values, strict=True))
        yield Thread(
            **{**row, "tags": tuple(row["tags"] or ())}, responses=tuple(islice(answers, size or 0))
        )


def thread_to_row(thread: Thread) -> Json:
    """The record as a row of `threads/*.parquet`."""
    row = {name: getattr(thread, name) for name in THREADS.names}
    row["tags"] = list(thread.tags)
    row["responses"] = [
        {name: getattr(answer, name) for name in ANSWERS.names} for answer in thread.responses
    ]
    return row


def group_from_row(row: Json, path: Path) -> PreferenceGroup:
    """A row of `groups/*.parquet` as a record.

    Raises:
        DataError: If it has no prompt or no preference, or a preference that points at nothing or
            weighs nothing sensible.
    """
    texts = [message["content"] for message in row["prompt"] or ()] + [
        response["content"] for response in row["responses"] or ()
    ]
    if not (row["prompt"] and row["preferences"] and all(isinstance(text, str) for text in texts)):
        raise DataError(
            path,
            f"group {row['group_id']!r} lacks a prompt, a text or a preference; leave it out, or"
            " make the table again",
        )
    for preference in row["preferences"]:
        if fault := _fault(preference, len(row["responses"] or ())):
            raise DataError(path, f"group {row['group_id']!r}: {fault}")
    return PreferenceGroup(
        group_id=row["group_id"],
        source=row["source"],
        site=row["site"],
        split=row["split"],
        prompt=tuple(Message(**message) for message in row["prompt"]),
        responses=tuple(
            Response(
                r["content"],
                votes=r.get("votes"),
                created=r.get("created"),
                meta=dict(r.get("meta") or ()),
            )
            for r in row["responses"]
        ),
        preferences=tuple(
            Preference(**{**preference, "probability": _probability(preference)})
            for preference in row["preferences"]
        ),
    )


def _fault(preference: Json, responses: int) -> str | None:
    """What is wrong with a preference of so many responses."""
    for side in ("chosen", "rejected"):
        if preference[side] not in range(responses):
            return (
                f"{side} is {preference[side]}; an index of its {responses} responses is needed,"
                " from 0"
            )
    if preference["chosen"] == preference["rejected"]:
        return f"response {preference['chosen']} is preferred to itself"
    weight, strength, probability = (
        preference["weight"],
        preference["strength"],
        _probability(preference),
    )
    if weight is None or not 0 < weight < math.inf:
        return f"a preference weighs {weight}; a finite number above 0 is needed"
    if strength is None or not 0 <= strength < math.inf:
        return (
            f"a preference has the strength {strength}; a finite number that is not negative is"
            " needed"
        )
    return (
        None
        if 0 <= probability <= 1
        else f"a preference has the probability {probability}; 0 to 1 is possible"
    )


def _probability(preference: Json) -> float:
    """That chosen is truly better; 1 where nothing is said."""
    found = preference.get("probability")
    return 1.0 if found is None else float(found)


def group_to_row(group: PreferenceGroup) -> Json:
    """The record as a row of `groups/*.parquet`."""
    return {
        "group_id": group.group_id,
        "source": group.source,
        "site": group.site,
        "split": group.split,
        "prompt": [asdict(message) for message in group.prompt],
        "responses": [
            {
                "content": r.content,
                "votes": r.votes,
                "created": r.created,
                "meta": list(r.meta.items()),
            }
            for r in group.responses
        ],
        "preferences": [
            {
                name: getattr(p, name)
                for name in ("chosen", "rejected", "strength", "probability", "weight")
            }
            for p in group.preferences
        ],
    }
