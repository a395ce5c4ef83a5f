"""One thread becomes one preference group, or is dropped for a counted reason; with what was
learned from all threads before."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import xxhash

from worldpm.options.group import GroupRules
from worldpm.preferences import cleaning, near_duplicates, splits, votes
from worldpm.preferences.vote_noise import VoteNoise
from worldpm.records import Answer, Message, Preference, PreferenceGroup, Response, Thread

NEAR = "that is nearly another of more votes"


@dataclass(frozen=True)
class Learned:
    """What the threads together say, and a thread alone cannot."""

    noise: VoteNoise | None = None
    """Of the thread's site."""
    duplicates: frozenset[str] | set[str] = frozenset()
    """Names of threads, and `THREAD#RESPONSE` of answers, that say again what a more voted one
    says."""
    dates: splits.Dates | None = None
    controversial_kept: float = 1.0
    """The chance of a training pair of close votes to be kept."""


@dataclass
class Tally:
    """What was counted and dropped, and the rejects where they are wanted."""

    counts: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    reject: Callable[[str, str, str], object] | None = None
    """Gets the name, the reason and the text of each thread or answer that is dropped as unfit; of
    pairs only the number is known."""

    def drop(self, reason: str, name: str, text: str = "") -> None:
        """Count a reason, and hand on what was dropped."""
        self.drops[reason] += 1
        if self.reject is not None:
            self.reject(name, reason, text)


class Kept(NamedTuple):
    """What of a thread is fit."""

    question: str
    answers: Sequence[Answer]


def group_thread(
    thread: Thread, rules: GroupRules, tally: Tally, learned: Learned = Learned()
) -> PreferenceGroup | None:
    """The thread as a preference group, or None with the reason counted; answers and pairs left out
    are counted likewise."""
    kept = _fit(thread, rules, tally, learned)
    if kept is None:
        return None
    key = xxhash.xxh64_intdigest(thread.thread_id.encode())
    chosen = votes.spread_sample(kept.answers, at_most=rules.max_responses, seed=[rules.seed, key])
    tally.drops["response beyond --max-responses"] += len(kept.answers) - len(chosen)
    split = split_of(thread, rules, learned)
    rule = rules.rule if split == "train" else "default"
    noise = learned.noise if split == "train" else None
    preferences = votes.preferences(chosen, rule=rule, seed=[rules.seed, key], noise=noise)
    if not preferences:
        equal = len({answer.votes for answer in chosen}) == 1
        reason = (
            "thread whose responses have equal votes"
            if equal
            else f"thread without a pair under --rule {rule}"
        )
        tally.drop(reason, thread.thread_id, kept.question)
        return None
    if split == "train":
        preferences = _thinned(chosen, preferences, rules, tally, learned, key)
        if not preferences:
            tally.drop("thread without a pair left", thread.thread_id, kept.question)
            return None
    return PreferenceGroup(
        group_id=thread.thread_id,
        source=thread.source,
        site=thread.site,
        split=split,
        prompt=(Message("user", kept.question),),
        responses=tuple(Response(a.body, a.votes, a.created, _origin(thread, a)) for a in chosen),
        preferences=preferences,
    )


def split_of(thread: Thread, rules: GroupRules, learned: Learned) -> splits.Split:
    """The split of the thread under the rules; by thread, those that ask the same few words are in
    one split."""
    if rules.split_by == "time" and learned.dates is not None:
        return splits.of_date(thread.created.timestamp(), learned.dates)
    if rules.split_by == "site":
        return splits.of_key(thread.site, rules)
    return splits.of_key(
        near_duplicates.words_of_short(question_of(thread)) or thread.thread_id, rules
    )


def question_of(thread: Thread) -> str:
    """The prompt's text."""
    return f"Title: {thread.title}\n\n{thread.body}".strip()


def fit_answers(thread: Thread, rules: GroupRules) -> list[Answer]:
    """The answers that pass the cleaning; none where the question does not, or fewer than two
    do."""
    if _why_unfit(thread, rules) is not None:
        return []
    fit = [
        answer
        for answer in thread.responses
        if cleaning.why_unfit(answer.body, rules, answer=True) is None
    ]
    return fit if len(fit) > 1 else []


def _why_unfit(thread: Thread, rules: GroupRules) -> str | None:
    """The first reason to drop a question, None if it is fit."""
    if rules.drop_closed and thread.closed is not None:
        return "closed by moderators"
    return cleaning.why_unfit(f"{thread.title}\n\n{thread.body}", rules, answer=False)


def _fit(thread: Thread, rules: GroupRules, tally: Tally, learned: Learned) -> Kept | None:
    name = thread.thread_id
    bare = f"{thread.title}\n\n{thread.body}"
    reason = _why_unfit(thread, rules) or (NEAR if name in learned.duplicates else None)
    if reason is not None:
        tally.drop(f"thread {reason}", name, bare)
        return None
    answers = [
        answer for answer in thread.responses if _is_fit(answer, name, rules, tally, learned)
    ]
    if len(answers) < 2:
        tally.drop("thread with fewer than two responses", name, bare)
        return None
    question = question_of(thread)
    if rules.mask_personal:
        question, masked = cleaning.masked(question)
        replaced = [cleaning.masked(answer.body) for answer in answers]
        answers = [
            replace(answer, body=body) for answer, (body, _) in zip(answers, replaced, strict=True)
        ]
        tally.counts["masked"] += masked + sum(count for _, count in replaced)
    return Kept(question, answers)


def _is_fit(answer: Answer, thread: str, rules: GroupRules, tally: Tally, learned: Learned) -> bool:
    name = f"{thread}#{answer.response_id}"
    reason = cleaning.why_unfit(answer.body, rules, answer=True) or (
        NEAR if name in learned.duplicates else None
    )
    if reason is not None:
        tally.drop(f"response {reason}", name, answer.body)
    return reason is None


def within_gaps(preferences: Sequence[Preference], rules: GroupRules) -> list[Preference]:
    """The pairs whose gap of votes lies within --least-gap and --most-gap."""
    least, most = rules.least_gap or 0, rules.most_gap or float("inf")
    return [preference for preference in preferences if least <= preference.strength <= most]


def _thinned(
    answers: Sequence[Answer],
    preferences: Sequence[Preference],
    rules: GroupRules,
    tally: Tally,
    learned: Learned,
    key: int,
) -> tuple[Preference, ...]:
    """Gaps within their limits, close votes thinned, then at most --pairs-per-thread drawn; the
    weights add up to 1 again."""
    kept = within_gaps(preferences, rules)
    tally.drops["pair beyond --least-gap and --most-gap"] += len(preferences) - len(kept)
    if rules.controversial_share is not None:
        draws = np.random.default_rng([rules.seed, key, 1]).random(len(kept)).tolist()
        closeness = [votes.closeness(answers, preference) for preference in kept]
        tally.drops["pair of votes too close"] += closeness.count("too close")
        fine = [
            c == "clear" or (c == "controversial" and draw < learned.controversial_kept)
            for c, draw in zip(closeness, draws, strict=True)
        ]
        tally.drops["controversial pair beyond its share"] += (
            len(kept) - sum(fine) - closeness.count("too close")
        )
        kept = [preference for preference, keep in zip(kept, fine, strict=True) if keep]
    if rules.pairs_per_thread is not None and len(kept) > rules.pairs_per_thread:
        generator = np.random.default_rng([rules.seed, key, 2])
        places = sorted(
            generator.choice(len(kept), size=rules.pairs_per_thread, replace=False).tolist()
        )
        tally.drops["pair beyond --pairs-per-thread"] += len(kept) - len(places)
        kept = [kept[place] for place in places]
    if len(kept) == len(preferences):
        return tuple(preferences)
    return tuple(replace(preference, weight=1 / len(kept)) for preference in kept)


def controversial_kept(threads: Iterable[Mapping[str, int]], share: float) -> float:
    """The chance to keep a controversial pair so that they become that share; the counts are
    `clear` and `controversial`."""
    clear, controversial = (
        sum(counts.get(name, 0) for counts in threads) for name in ("clear", "controversial")
    )
    return min(1.0, share / (1 - share) * clear / controversial) if controversial else 1.0


def _origin(thread: Thread, answer: Answer) -> dict[str, str]:
    """What a derived set must keep to give credit."""
    origin = {
        "response_id": answer.response_id,
        "author": answer.author,
        "licence": answer.licence,
        "url": thread.url,
    }
    return {name: value for name, value in origin.items() if value is not None}
