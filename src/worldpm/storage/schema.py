"""The tables on disk as Arrow schemas, and their rows as records."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pyarrow as pa

from worldpm.errors import DataError
from worldpm.records import Answer, Message, Preference, PreferenceGroup, Response, Thread
from worldpm.storage.json_files import Json, Plain

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
"""Posts as a forum format reads them, before they are joined into threads."""

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

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

GROUPS = pa.schema(
    [
        ("group_id", pa.string()),
        ("source", pa.string()),
        ("site", pa.string()),
        ("split", pa.string()),
        ("prompt", MESSAGES),
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
"""Pairs for other trainers: every pair repeats its prompt."""

ITEMS = pa.schema(
    [
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("item", pa.string()),
        ("prompt_id", pa.string()),
        ("response", pa.int32()),
        ("preferred", pa.bool_()),
        ("quality", pa.float64()),  # where a set rates responses
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
    """The schema of some columns of a table."""
    return pa.schema([table.field(name) for name in columns])


def threads_of(batch: pa.RecordBatch) -> Iterator[Thread]:
    """Rows of `threads/*.parquet` as records."""
    lists = batch["responses"]
    names = [name for name in THREADS.names if name != "responses"]

    # The answers of all threads are converted in one go, column by column, and then dealt out:
    # `to_pylist` of the nested rows would build a dict for every answer.
    columns = [lists.flatten().field(name).to_pylist() for name in ANSWERS.names]
    answers = map(Answer, *columns)
    sizes = lists.value_lengths().to_pylist()

    for size, *values in zip(sizes, *(batch[name].to_pylist() for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        row["tags"] = tuple(row["tags"] or ())
        yield Thread(**row, responses=tuple(islice(answers, size or 0)))


def thread_to_row(thread: Thread) -> Plain:
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
        DataError: If the row has no prompt or no preference, or a preference has an index, a
            strength, a probability or a weight out of its range.
    """
    _check_group(row, path)

    return PreferenceGroup(
        group_id=row["group_id"],
        source=row["source"],
        site=row["site"],
        split=row["split"],
        prompt=tuple(Message(**message) for message in row["prompt"]),
        responses=tuple(map(_response_from_row, row["responses"])),
        preferences=tuple(map(_preference_from_row, row["preferences"])),
    )


def _check_group(row: Json, path: Path) -> None:
    """Raise an error for a row that is not a group."""
    messages, responses = row["prompt"] or (), row["responses"] or ()
    texts = [entry["content"] for entry in (*messages, *responses)]

    if not (messages and row["preferences"] and all(isinstance(text, str) for text in texts)):
        raise DataError(
            path,
            f"group {row['group_id']!r} lacks a prompt, a text or a preference. Leave it out, or"
            " make the table again.",
        )

    for preference in row["preferences"]:
        fault = _fault(preference, len(responses))
        if fault is not None:
            raise DataError(path, f"group {row['group_id']!r}: {fault}")


def _fault(preference: Json, responses: int) -> str | None:
    """The first fault of a preference in a group of that many responses, or None."""
    for side in ("chosen", "rejected"):
        if preference[side] not in range(responses):
            return (
                f"{side} is {preference[side]}; an index of its {responses} responses is needed,"
                " from 0"
            )

    if preference["chosen"] == preference["rejected"]:
        return f"response {preference['chosen']} is preferred to itself"

    # NaN fails every comparison, so each check is written as the range that passes.
    weight, strength = preference["weight"], preference["strength"]
    if weight is None or not 0 < weight < math.inf:
        return f"a preference weighs {weight}; a finite number above 0 is needed"
    if strength is None or not 0 <= strength < math.inf:
        return (
            f"a preference has the strength {strength}; a finite number that is not negative is"
            " needed"
        )

    probability = _probability(preference)
    if not 0 <= probability <= 1:
        return f"a preference has the probability {probability}; 0 to 1 is possible"
    return None


def _probability(preference: Json) -> float:
    """The probability that chosen is truly better; 1 if the row gives none."""
    probability = preference.get("probability")
    return 1.0 if probability is None else float(probability)


def _response_from_row(row: Json) -> Response:
    return Response(
        row["content"],
        votes=row.get("votes"),
        created=row.get("created"),
        meta=dict(row.get("meta") or ()),
    )


def _preference_from_row(row: Json) -> Preference:
    return Preference(**{**row, "probability": _probability(row)})


def group_to_row(group: PreferenceGroup) -> Plain:
    """The record as a row of `groups/*.parquet`."""
    return {
        "group_id": group.group_id,
        "source": group.source,
        "site": group.site,
        "split": group.split,
        "prompt": [asdict(message) for message in group.prompt],
        "responses": [_response_to_row(response) for response in group.responses],
        "preferences": [_preference_to_row(preference) for preference in group.preferences],
    }


def _response_to_row(response: Response) -> Plain:
    return {
        "content": response.content,
        "votes": response.votes,
        "created": response.created,
        "meta": list(response.meta.items()),
    }


def _preference_to_row(preference: Preference) -> Plain:
    # `asdict` copies deeply, which costs much where a group has a hundred pairs.
    return {
        "chosen": preference.chosen,
        "rejected": preference.rejected,
        "strength": preference.strength,
        "probability": preference.probability,
        "weight": preference.weight,
    }
