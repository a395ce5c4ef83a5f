"""Per-batch work of `worldpm group`: collect vote and duplicate statistics, then build groups.

One or many processes do it, so functions here depend on their batch alone.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import pyarrow as pa
import xxhash

from worldpm.options.group import GroupRules
from worldpm.preferences import cleaning, near_duplicates, repeats, vote_noise, votes
from worldpm.preferences.contamination import Index, Overlap
from worldpm.preferences.grouping import (
    Learned,
    Tally,
    fit_answers,
    group_thread,
    question_of,
    within_gaps,
)
from worldpm.preferences.near_duplicates import ANSWER, QUESTION, Text
from worldpm.preferences.outcomes import GroupCounts, OverlapLine, RejectLine
from worldpm.records import PreferenceGroup, Thread
from worldpm.storage import schema

CREDIT = ("site", "group_id", "response_id", "author", "url", "licence")
"""Columns of `ATTRIBUTION.csv`."""
ORIGIN = CREDIT[2:]
"""The columns that differ between the responses of a group."""
FORMULA = tuple("=+-@\t\r\uff1d\uff0b\uff0d\uff20")
"""First characters of a formula in spreadsheets, including the wide characters of Japanese."""


class BatchEvidence(NamedTuple):
    """Contribution of a batch to the facts from all threads."""

    threads: int
    """Threads of the batch."""
    bands: pa.RecordBatch
    """Bands of its texts, as `near_duplicates.SCHEMA`."""
    answers: pa.RecordBatch
    """Its answers, as `repeats.SCHEMA`; empty with --keep-bots."""
    dated: list[vote_noise.Dated]
    """Votes and dates of the threads that votes are learned from."""
    closeness: Counter[str]
    """Pairs of these threads by the closeness of their votes; empty without
    --controversial-share."""


def see(batch: pa.RecordBatch, *, rules: GroupRules, one_in: int) -> BatchEvidence:
    """The evidence in a batch of threads: bands of its texts, and the votes of one in `one_in`
    threads, drawn by the hash of the thread's id."""
    texts: list[Text] = []
    dated: list[vote_noise.Dated] = []
    closeness: Counter[str] = Counter()
    threads = list(schema.threads_of(batch))
    # Languages are detected once, in the second pass: near-duplicates have the same language.
    fit_rules = replace(rules, languages=())

    for thread in threads:
        # A hash instead of a random number, so that workers and engines draw the same threads.
        drawn = xxhash.xxh64_intdigest(thread.thread_id.encode(), seed=1) % one_in == 0
        if drawn and len(thread.responses) > 1:
            dated.append(vote_noise.Dated.of(thread.responses))
            if rules.controversial_share:
                closeness.update(_closeness(thread, rules))
        if rules.near_duplicates:
            texts += _texts(thread, fit_rules)

    answers = repeats.rows([] if rules.keep_bots else threads)
    bands = near_duplicates.bands(texts)
    return BatchEvidence(batch.num_rows, bands, answers, dated, closeness)


def _closeness(thread: Thread, rules: GroupRules) -> list[str]:
    """The closeness of the votes of each pair of a thread."""
    answers = thread.responses[: rules.max_responses]
    pairs = votes.preferences(answers, rule=rules.rule, seed=[0])
    return [votes.closeness(thread.responses, pair) for pair in within_gaps(pairs, rules)]


def _texts(thread: Thread, rules: GroupRules) -> list[Text]:
    """The question and the answers of a thread that may have near-duplicates."""
    # Unfit texts are always dropped, and must not replace texts that are kept.
    answers = fit_answers(thread, rules)
    if not answers:
        return []

    name = thread.thread_id
    question = Text(QUESTION, name, thread.votes, question_of(thread), name)
    return [
        question,
        *(
            Text(ANSWER, f"{name}#{answer.response_id}", answer.votes, answer.body, name)
            for answer in answers
        ),
    ]


@dataclass(frozen=True)
class Sieves:
    """Filters that groups pass after they are made; each is optional."""

    index: Index | None = None
    """Runs of words in benchmarks that training must not contain."""
    contaminated: bool = True
    """Whether groups that overlap with a benchmark are dropped, or only reported."""
    filter: Callable[[Iterable[PreferenceGroup], Tally], Iterator[PreferenceGroup]] | None = None
    """Filter of training pairs by a reward model. It reads the groups of a table in order, so one
    process filters the table."""
    rejects: bool = False
    """Whether dropped threads and answers are written."""


class BatchGroups(NamedTuple):
    """The groups of a batch of threads, with counts and drops."""

    groups: pa.RecordBatch
    """As `schema.GROUPS`."""
    counts: GroupCounts
    drops: Counter[str]
    """Dropped threads, answers and pairs, by reason."""
    credits: str
    """Lines of CSV, in the columns of CREDIT."""
    overlaps: str
    """Lines of JSON."""
    rejects: str
    """Lines of JSON."""


def make(
    batch: pa.RecordBatch, *, rules: GroupRules, learned: Learned, sieves: Sieves
) -> BatchGroups:
    """The groups of a batch of threads."""
    return _Grouping(rules, learned, sieves).run(batch)


def candidates(
    batch: pa.RecordBatch, *, rules: GroupRules, learned: Learned, sieves: Sieves
) -> Iterator[PreferenceGroup]:
    """The groups of a batch of threads before the filter by a reward model."""
    return _Grouping(rules, learned, sieves).candidates(batch)


class _Grouping:
    """The steps from a batch of threads to its groups.

    They are generators: a group passes all steps before the next thread is read.
    """

    def __init__(self, rules: GroupRules, learned: Learned, sieves: Sieves) -> None:
        self._rules, self._learned, self._sieves = rules, learned, sieves
        self._tally = Tally(reject=self._reject if sieves.rejects else None)
        self._threads: dict[str, Thread] = {}
        """Threads of the groups that are not yet counted, by the group's id."""
        # Without newline="", csv's own line ends would be translated.
        self._credits = io.StringIO(newline="")
        self._overlaps = io.StringIO()
        self._rejects = io.StringIO()

    def candidates(self, batch: pa.RecordBatch) -> Iterator[PreferenceGroup]:
        groups = self._groups(batch)
        if self._sieves.index is not None:
            groups = self._decontaminated(groups, self._sieves.index)
        return groups

    def run(self, batch: pa.RecordBatch) -> BatchGroups:
        groups = self.candidates(batch)
        if self._sieves.filter is not None:
            groups = self._sieves.filter(groups, self._tally)

        rows = [schema.group_to_row(group) for group in self._counted(groups)]
        return BatchGroups(
            groups=pa.RecordBatch.from_pylist(rows, schema=schema.GROUPS),
            counts=self._tally.counts,
            drops=self._tally.drops,
            credits=self._credits.getvalue(),
            overlaps=self._overlaps.getvalue(),
            rejects=self._rejects.getvalue(),
        )

    def _groups(self, batch: pa.RecordBatch) -> Iterator[PreferenceGroup]:
        """The groups of the threads."""
        for thread in schema.threads_of(batch):
            self._tally.counts.threads += 1
            group = group_thread(thread, self._rules, self._tally, self._learned)
            if group is not None:
                self._threads[group.group_id] = thread
                yield group

    def _decontaminated(
        self, groups: Iterable[PreferenceGroup], index: Index
    ) -> Iterator[PreferenceGroup]:
        """Drop (or only report) groups that overlap with a benchmark."""
        reason = "thread that overlaps with a benchmark"

        for group in groups:
            overlaps = index.overlaps(group)
            for overlap in overlaps:
                self._report(overlap, group)

            if overlaps and self._sieves.contaminated:
                self._tally.drop(reason, group.group_id, group.prompt[0].content)
                continue
            if overlaps:
                self._tally.counts.overlapping_groups += 1
            yield group

    def _report(self, overlap: Overlap, group: PreferenceGroup) -> None:
        """Write a line of `contamination.jsonl`."""
        line = OverlapLine(
            group_id=overlap.group_id,
            split=group.split,
            benchmark=overlap.item.benchmark,
            item=overlap.item.item,
            shared_words=overlap.length_words,
            dropped=self._sieves.contaminated,
        )
        self._overlaps.write(json.dumps(asdict(line)) + "\n")

    def _counted(self, groups: Iterable[PreferenceGroup]) -> Iterator[PreferenceGroup]:
        """Pass the groups on, count them, and write lines that credit the author of the question
        and then the authors of the answers."""
        writer = csv.writer(self._credits)

        for group in groups:
            self._tally.counts.count(group)
            names = [group.site, group.group_id]
            thread = self._threads.pop(group.group_id)
            origins = [["", thread.author, thread.url, thread.licence]]
            origins += [
                [response.meta.get(column, "") for column in ORIGIN] for response in group.responses
            ]
            writer.writerows(map(_cell, [*names, *origin]) for origin in origins)
            yield group

    def _reject(self, name: str, reason: str, text: str) -> None:
        """Write a line of `rejects.jsonl`."""
        # Masking applies to all written texts, including dropped texts.
        shown = cleaning.masked(text)[0] if self._rules.mask_personal else text
        line = RejectLine(name, reason, shown)
        self._rejects.write(json.dumps(asdict(line)) + "\n")


def _cell(value: object) -> object:
    """A cell that spreadsheets do not run as a formula, because people may choose any name."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
