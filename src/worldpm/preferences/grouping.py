"""Make one preference group from one thread, or drop the thread for a counted reason. Both use
facts that were learned from all threads before."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import xxhash

from worldpm.options.group import GroupRules
from worldpm.preferences import cleaning, near_duplicates, repeats, splits, votes
from worldpm.preferences.bots import is_bot
from worldpm.preferences.outcomes import GroupCounts
from worldpm.preferences.vote_noise import VoteNoise
from worldpm.records import Answer, Message, Preference, PreferenceGroup, Response, Thread
from worldpm.storage.dialogues import single_spaced

NEAR_DUPLICATE = "that nearly repeats another with more votes"
REPEATED = "response that repeats another of the thread"


@dataclass(frozen=True)
class Learned:
    """Facts that only all threads together show."""

    noise: VoteNoise | None = None
    """Vote noise of the thread's site; None under rules that give no probabilities."""
    duplicates: frozenset[str] | set[str] = frozenset()
    """Names of threads, and `THREAD#RESPONSE` of answers, that repeat another with more votes."""
    repeats: frozenset[int] = frozenset()
    """Hashes, by `repeats.of`, of answers that their author repeats under many threads."""
    dates: splits.Dates | None = None
    """Dates between the splits; None unless threads are split by time."""
    site_split: splits.Split | None = None
    """Split of all threads of the site; None unless threads are split by site."""
    controversial_kept: float = 1.0
    """The probability of keeping a training pair with close votes."""


@dataclass
class Tally:
    """Counts and drops on the way from threads to groups."""

    counts: GroupCounts = field(default_factory=GroupCounts)
    drops: Counter[str] = field(default_factory=Counter)
    """Dropped threads, answers and pairs, by reason."""
    reject: Callable[[str, str, str], object] | None = None
    """Called with the name, the reason and the text of each thread or answer that is dropped as
    unfit. Pairs are only counted. None if rejects are not written."""

    def drop(self, reason: str, name: str, text: str = "") -> None:
        """Count a reason, and report the dropped thread or answer to `reject`."""
        self.drops[reason] += 1
        if self.reject is not None:
            self.reject(name, reason, text)


class FitThread(NamedTuple):
    """The fit parts of a thread."""

    question: str
    answers: Sequence[Answer]
    """Two or more."""


def group_thread(
    thread: Thread, rules: GroupRules, tally: Tally, learned: Learned = Learned()
) -> PreferenceGroup | None:
    """The thread as a preference group, or None if it is dropped. Reasons for dropped threads,
    answers and pairs are counted."""
    fit = _fit(thread, rules, tally, learned)
    if fit is None:
        return None

    # Every thread has its own seed, so that its draws do not depend on other threads.
    key = xxhash.xxh64_intdigest(thread.thread_id.encode())
    answers = votes.spread_sample(fit.answers, at_most=rules.max_responses, seed=[rules.seed, key])
    tally.drops["response beyond --max-responses"] += len(fit.answers) - len(answers)

    split = split_of(thread, rules, learned)
    preferences, reason = _preferences(answers, split, rules, tally, learned, key)
    if reason is not None:
        tally.drop(reason, thread.thread_id, fit.question)
        return None

    return PreferenceGroup(
        group_id=thread.thread_id,
        source=thread.source,
        site=thread.site,
        split=split,
        prompt=(Message("user", fit.question),),
        responses=tuple(_response(answer, thread) for answer in answers),
        preferences=preferences,
    )


def _preferences(
    answers: Sequence[Answer],
    split: splits.Split,
    rules: GroupRules,
    tally: Tally,
    learned: Learned,
    key: int,
) -> tuple[tuple[Preference, ...], str | None]:
    """The preferences of a thread's answers, or the reason why there are none."""
    # Rules and noise shape only the training data. Validation and test use the votes alone, so they
    # are the same under every rule.
    train = split == "train"
    rule = rules.rule if train else "default"
    noise = learned.noise if train else None
    preferences = votes.preferences(answers, rule=rule, seed=[rules.seed, key], noise=noise)

    if not preferences:
        if len({answer.votes for answer in answers}) == 1:
            return (), "thread whose responses have equal votes"
        return (), f"thread without a pair under --rule {rule}"

    if train:
        preferences = _thinned(answers, preferences, rules, tally, learned, key)
    return preferences, None if preferences else "thread without a pair left"


def split_of(thread: Thread, rules: GroupRules, learned: Learned) -> splits.Split:
    """The split of the thread under the rules. In a split by thread, threads whose questions have
    the same few words stay together."""
    if rules.split_by == "time" and learned.dates is not None:
        return splits.of_date(thread.created.timestamp(), learned.dates)
    if learned.site_split is not None:
        return learned.site_split

    # Short questions have no bands, so their near-duplicates are not dropped. With their words as
    # the key, they stay in one split instead.
    few_words = near_duplicates.words_of_short(question_of(thread))
    return splits.of_key(few_words or thread.thread_id, rules)


def question_of(thread: Thread) -> str:
    """The prompt's text: the question, and the comments that are older than all answers. Later
    comments may be about an answer, and would show its worth."""
    question = f"Title: {thread.title}\n\n{thread.body}".strip()
    first = min((answer.created for answer in thread.responses), default=None)
    comments = [
        f"Comment: {comment.body.strip()}"
        for comment in thread.comments
        if first is None or comment.created < first
    ]
    return "\n\n".join([question, *comments])


def fit_answers(thread: Thread, rules: GroupRules) -> list[Answer]:
    """The answers that pass the cleaning; none if the question fails, or fewer than two pass."""
    if _why_unfit(thread, rules) is not None:
        return []

    fit = [answer for answer in thread.responses if _why_answer_unfit(answer, rules) is None]
    return fit if len(fit) > 1 else []


def _why_unfit(thread: Thread, rules: GroupRules) -> str | None:
    """The first reason to drop a question, None if it is fit."""
    if rules.drop_closed and thread.closed is not None:
        return "closed by moderators"
    if not set(rules.drop_tags).isdisjoint(thread.tags):
        return "with a tag of --drop-tags"
    if not rules.keep_bots and is_bot(thread.author, rules.bots):
        return "written by a bot"
    return cleaning.why_unfit(_question_text(thread), rules, answer=False)


def _why_answer_unfit(answer: Answer, rules: GroupRules) -> str | None:
    """The first reason to drop an answer, None if it is fit."""
    if not rules.keep_bots and is_bot(answer.author, rules.bots):
        return "written by a bot"
    return cleaning.why_unfit(answer.body, rules, answer=True)


def _question_text(thread: Thread) -> str:
    """Title and body, without the label that the prompt puts before them."""
    return f"{thread.title}\n\n{thread.body}"


def _fit(thread: Thread, rules: GroupRules, tally: Tally, learned: Learned) -> FitThread | None:
    """The fit parts of a thread; None if it is dropped, which is counted."""
    name, text = thread.thread_id, _question_text(thread)
    duplicate = NEAR_DUPLICATE if name in learned.duplicates else None
    reason = _why_unfit(thread, rules) or duplicate
    if reason is not None:
        tally.drop(f"thread {reason}", name, text)
        return None

    answers = [
        answer for answer in thread.responses if _is_fit(answer, name, rules, tally, learned)
    ]
    fit = FitThread(question_of(thread), answers)
    if rules.mask_personal and len(answers) > 1:
        fit = _masked(fit, tally)

    # This follows the masking, which may make texts equal.
    fit = fit._replace(answers=_without_repeats(fit.answers, name, tally))
    if len(fit.answers) < 2:
        tally.drop("thread with fewer than two responses", name, text)
        return None
    return fit


def _without_repeats(answers: Sequence[Answer], thread: str, tally: Tally) -> list[Answer]:
    """The answers, with only one of equal texts: the one with the most votes, or the earliest of
    equally many votes. White space does not count."""
    firsts: dict[str, Answer] = {}
    for answer in sorted(answers, key=lambda answer: -answer.votes):
        firsts.setdefault(single_spaced(answer.body), answer)

    different: list[Answer] = []
    for answer in answers:
        if firsts[single_spaced(answer.body)] is answer:
            different.append(answer)
        else:
            tally.drop(REPEATED, f"{thread}#{answer.response_id}", answer.body)
    return different


def _is_fit(answer: Answer, thread: str, rules: GroupRules, tally: Tally, learned: Learned) -> bool:
    name = f"{thread}#{answer.response_id}"
    reason = _why_answer_unfit(answer, rules)
    if reason is None and learned.repeats and repeats.of(answer) in learned.repeats:
        reason = "that its author repeats under many threads"
    if reason is None and name in learned.duplicates:
        reason = NEAR_DUPLICATE
    if reason is not None:
        tally.drop(f"response {reason}", name, answer.body)
    return reason is None


def _masked(thread: FitThread, tally: Tally) -> FitThread:
    """The thread without personal data."""
    question, count = cleaning.masked(thread.question)
    tally.counts.masked += count

    answers = []
    for answer in thread.answers:
        body, count = cleaning.masked(answer.body)
        tally.counts.masked += count
        answers.append(replace(answer, body=body))
    return FitThread(question, answers)


def within_gaps(preferences: Sequence[Preference], rules: GroupRules) -> list[Preference]:
    """The pairs whose gap of votes is within --least-gap and --most-gap."""
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
    """The pairs with gaps in the limits, after thinning close votes and drawing at most
    --pairs-per-thread; the weights add up to 1 again."""
    pairs = within_gaps(preferences, rules)
    tally.drops["pair beyond --least-gap and --most-gap"] += len(preferences) - len(pairs)

    # The last number of the seed makes the draws of the two steps independent.
    if rules.controversial_share is not None:
        generator = np.random.default_rng([rules.seed, key, 1])
        pairs = _thin_close_votes(answers, pairs, tally, learned.controversial_kept, generator)

    if rules.pairs_per_thread is not None and len(pairs) > rules.pairs_per_thread:
        generator = np.random.default_rng([rules.seed, key, 2])
        drawn = generator.choice(len(pairs), size=rules.pairs_per_thread, replace=False)
        tally.drops["pair beyond --pairs-per-thread"] += len(pairs) - len(drawn)
        pairs = [pairs[index] for index in sorted(drawn.tolist())]

    if len(pairs) == len(preferences):
        return tuple(preferences)
    return tuple(replace(pair, weight=1 / len(pairs)) for pair in pairs)


def _thin_close_votes(
    answers: Sequence[Answer],
    pairs: Sequence[Preference],
    tally: Tally,
    kept_share: float,
    generator: np.random.Generator,
) -> list[Preference]:
    """Drop the pairs whose votes are too close, and keep a share of the controversial pairs."""
    thinned = []
    # A draw for every pair, so that a pair's draw does not depend on how close the others are.
    for pair, draw in zip(pairs, generator.random(len(pairs)).tolist(), strict=True):
        closeness = votes.closeness(answers, pair)
        if closeness == "too close":
            tally.drops["pair of votes too close"] += 1
        elif closeness == "controversial" and draw >= kept_share:
            tally.drops["controversial pair beyond its share"] += 1
        else:
            thinned.append(pair)
    return thinned


def controversial_kept(threads: Iterable[Mapping[str, int]], share: float) -> float:
    """The probability of keeping a controversial pair so that these pairs become this share; the
    counts are `clear` and `controversial`."""
    clear = controversial = 0
    for counts in threads:
        clear += counts.get("clear", 0)
        controversial += counts.get("controversial", 0)

    # kept * controversial / (kept * controversial + clear) = share, solved for kept
    return min(1.0, share / (1 - share) * clear / controversial) if controversial else 1.0


def _response(answer: Answer, thread: Thread) -> Response:
    """The answer with the origin that a derived set must keep to give credit."""
    origin = {
        "response_id": answer.response_id,
        "author": answer.author,
        "licence": answer.licence,
        "url": thread.url,
    }
    meta = {name: value for name, value in origin.items() if value is not None}
    return Response(answer.body, answer.votes, answer.created, meta)
