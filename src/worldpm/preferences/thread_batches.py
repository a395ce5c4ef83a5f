"""What is done with a batch of threads, by one process or by many: what it says of votes and
duplicates, and the groups made of it."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import xxhash

from worldpm.options.group import GroupRules
from worldpm.preferences import cleaning, near_duplicates, vote_noise, votes
from worldpm.preferences.contamination import Index
from worldpm.preferences.grouping import (
    Learned,
    Tally,
    fit_answers,
    group_thread,
    question_of,
    within_gaps,
)
from worldpm.preferences.near_duplicates import ANSWER, QUESTION, Text
from worldpm.records import PreferenceGroup, Thread
from worldpm.storage import schema

CREDIT = ("site", "group_id", "response_id", "author", "url", "licence")


class Seen(NamedTuple):
    """What a batch says, for all threads together to learn from."""

    threads: int
    bands: pa.RecordBatch
    dated: list[vote_noise.Dated]
    """Of the threads that votes are learned from."""
    closeness: Counter[str]
    """Of their pairs, where --controversial-share asks for it."""


def see(batch: pa.RecordBatch, *, rules: GroupRules, one_in: int) -> Seen:
    """What a batch of threads says: its texts' bands, and the votes of one thread in so many, drawn
    by the hash of its id."""
    texts: list[Text] = []
    dated: list[vote_noise.Dated] = []
    closeness: Counter[str] = Counter()
    for thread in schema.threads_of(batch):
        if (
            len(thread.responses) > 1
            and xxhash.xxh64_intdigest(thread.thread_id.encode(), seed=1) % one_in == 0
        ):
            dated.append(vote_noise.Dated.of(thread.responses))
            if rules.controversial_share:
                pairs = votes.preferences(
                    thread.responses[: rules.max_responses], rule=rules.rule, seed=[0]
                )
                closeness.update(
                    votes.closeness(thread.responses, pair) for pair in within_gaps(pairs, rules)
                )
        if rules.near_duplicates and (
            fit := fit_answers(thread, rules)
        ):  # what is dropped anyway must not oust another
            name = thread.thread_id
            texts.append(Text(QUESTION, name, thread.votes, question_of(thread), name))
            texts += [
                Text(ANSWER, f"{name}#{answer.response_id}", answer.votes, answer.body, name)
                for answer in fit
            ]
    return Seen(batch.num_rows, near_duplicates.bands(texts), dated, closeness)


@dataclass(frozen=True)
class Sieves:
    """What groups go through after they are made; each only where it is asked for."""

    index: Index | None = None
    """Of the benchmarks that must not be met again."""
    contaminated: bool = True
    """Whether groups that overlap with one are dropped, or only told."""
    filter: Callable[[Iterable[PreferenceGroup], Tally], Iterator[PreferenceGroup]] | None = None
    """What a reward model keeps of the training pairs; it stays in the process that loaded the
    model."""
    rejects: bool = False
    """Whether what is dropped is written."""


class Made(NamedTuple):
    """The groups of a batch of threads, with what was counted and dropped on the way."""

    groups: pa.RecordBatch
    """As `schema.GROUPS`."""
    counts: Counter[str]
    drops: Counter[str]
    credits: str
    """Lines of CSV, in the columns of CREDIT."""
    overlaps: str
    """Lines of JSON."""
    rejects: str
    """Lines of JSON."""


def make(batch: pa.RecordBatch, *, rules: GroupRules, learned: Learned, sieves: Sieves) -> Made:
    """The groups of a batch of threads."""
    credit, overlaps, rejects = io.StringIO(newline=""), io.StringIO(), io.StringIO()

    def reject(name: str, reason: str, text: str) -> None:
        told = cleaning.masked(text)[0] if rules.mask_personal else text
        rejects.write(json.dumps({"name": name, "reason": reason, "text": told}) + "\n")

    tally = Tally(reject=reject if sieves.rejects else None)
    asked: dict[str, Thread] = {}
    groups = _groups(batch, rules, learned, tally, asked)
    if sieves.index is not None:
        groups = _decontaminated(groups, sieves.index, sieves, tally, overlaps)
    if sieves.filter is not None:
        groups = sieves.filter(groups, tally)
    rows = [schema.group_to_row(group) for group in _counted(groups, asked, tally, credit)]
    made = pa.RecordBatch.from_pylist(rows, schema=schema.GROUPS)
    return Made(
        made, tally.counts, tally.drops, credit.getvalue(), overlaps.getvalue(), rejects.getvalue()
    )


def _groups(
    batch: pa.RecordBatch,
    rules: GroupRules,
    learned: Learned,
    tally: Tally,
    asked: dict[str, Thread],
) -> Iterator[PreferenceGroup]:
    """The groups of a batch; their threads are put into `asked`."""
    for thread in schema.threads_of(batch):
        tally.counts["threads"] += 1
        group = group_thread(thread, rules, tally, learned)
        if group is not None:
            asked[group.group_id] = thread
            yield group


def _decontaminated(
    groups: Iterable[PreferenceGroup],
    index: Index,
    sieves: Sieves,
    tally: Tally,
    overlaps: io.StringIO,
) -> Iterator[PreferenceGroup]:
    """The groups that share no run of words with a benchmark, or all; those that do are written
    down."""
    for group in groups:
        found = index.overlaps(group)
        for one in found:
            row = {
                "group_id": one.group_id,
                "split": group.split,
                **one.place._asdict(),
                "words": one.words,
            }
            overlaps.write(json.dumps({**row, "dropped": sieves.contaminated}) + "\n")
        if found and sieves.contaminated:
            tally.drop(
                "thread that overlaps with a benchmark", group.group_id, group.prompt[0].content
            )
        else:
            tally.counts["groups that overlap with a benchmark"] += bool(found)
            yield group


def _counted(
    groups: Iterable[PreferenceGroup], asked: dict[str, Thread], tally: Tally, credit: io.StringIO
) -> Iterator[PreferenceGroup]:
    """The groups as they are written, with what they hold counted, and who is to be credited: who
    asked, then who answered."""
    writer = csv.writer(credit)
    for group in groups:
        tally.counts[f"{group.split} groups"] += 1
        tally.counts[f"{group.split} responses"] += len(group.responses)
        tally.counts[f"{group.split} pairs"] += len(group.preferences)
        thread = asked.pop(group.group_id)
        writer.writerow([group.site, group.group_id, "", thread.author, thread.url, thread.licence])
        for response in group.responses:
            writer.writerow(
                [group.site, group.group_id, *(response.meta.get(name, "") for name in CREDIT[2:])]
            )
        yield group
