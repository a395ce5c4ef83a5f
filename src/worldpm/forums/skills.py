"""A forum of separate skills with planted truth, for ladders: each domain can be tested alone, and
one skill needs depth.

Adversarial: does the answer's word belong to the question's? Hundreds of such associations, from
common to rare, are to be stored. Objective, recall: facts from common to rare, to be stored too.
Objective, moves: where is the ball after k moves of three cups? Only two kinds of moves, but what
one move does depends on all before it, so k moves are a composition of depth k. There are 381 such
questions in all, which a long training shows: who learns them may have composed them, or stored a
table no larger than that of the facts; who does not was not short of storage. Subjective: four
tastes that say nothing of truth; the forum likes one side of each.

The votes are those of a crowd of independent voters. The tests are without noise. Those of taste
ask other people: two of the forum's tastes they share, two they turn round.

Frozen: ladders that were trained on other versions of this module cannot be compared.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from worldpm.forums.hobbies import Truth
from worldpm.records import Answer, Message, Preference, PreferenceGroup, Response, Thread

SITE = "skills"
Task = Literal["moves", "recall"]
Variant = Literal["skills", "control"]
"""`control` is the same forum without moves: all its threads ask for facts."""

TOPICS, FACTS = 200, 200
"""Drawn with a frequency of one over their rank."""
MOST_MOVES = 6
OFF_TOPIC_SHARE, WRONG_SHARE = 0.3, 0.5
ON_TOPIC_GAIN, RIGHT_GAIN, TASTE_GAIN = 2.0, 1.5, 0.3
VOTERS = 300
"""Each votes up with probability sigmoid(appeal - 2), and stays silent otherwise."""
LEAST_RESPONSES, MOST_RESPONSES = 3, 5

PLACES = ("left", "middle", "right")
MOVES = {"near": (1, 0, 2), "far": (0, 2, 1)}
"""Where a ball at each place is after a move: the two left cups swap, or the two right ones."""
ANSWERS = ("red", "blue", "green", "white", "black", "brown", "pink", "gold")
TASTES = (("Friend", "Look"), ("try", "use"), ("Surely", "Perhaps"), ("Cheers", "Done"))
"""Of each pair the forum likes the first."""
SHARED_TASTES = 2
"""The first so many tastes are shared by the people of the tests; the others they turn round."""
ADVERSARIAL_ITEMS, RECALL_ITEMS, MOVES_ITEMS, TASTE_ITEMS = 400, 300, 200, 100
"""Of each test; the last two for each number of moves, and for each taste."""
TESTED_MOVES = (0, 1, 2, 4, 6)


class Wording(NamedTuple):
    """What an answer is like."""

    off_topic: bool
    wrong: bool
    sides: tuple[int, ...]
    """Which side of each taste it is on."""

    def turned(self, taste: int, side: int) -> "Wording":
        """The same on that side of a taste."""
        return self._replace(sides=(*self.sides[:taste], side, *self.sides[taste + 1 :]))


class Question(NamedTuple):
    """What a thread asks."""

    topic: int
    body: str
    right: str
    wrong: tuple[str, ...]


def _words() -> list[str]:
    """Invented words, in a fixed order that puts similar ones apart."""
    syllables = [a + b for a, b in product("bdfgklmnprstvz", "aeiou")]
    words = [first + second for first, second in product(syllables, syllables)]
    return [words[(number * 1597) % len(words)] for number in range(3 * TOPICS + FACTS)]


WORDS = _words()
RANKED = {
    count: (1 / np.arange(1, count + 1)) / (1 / np.arange(1, count + 1)).sum()
    for count in {TOPICS, FACTS}
}


def asked(topic: int) -> str:
    """The word by which questions name a topic."""
    return WORDS[3 * topic]


def answered(topic: int, choice: int) -> str:
    """One of the two words by which answers show that they are on topic."""
    return WORDS[3 * topic + 1 + choice]


def simulate(
    threads: int, *, seed: int, variant: Variant
) -> Iterator[tuple[Thread, tuple[Truth, ...]]]:
    """That many threads, each with its truth; thread i is the same however many are made."""
    for index in range(threads):
        rng = np.random.default_rng([seed, index])
        question = _question(
            rng, "moves" if variant == "skills" and rng.random() < 0.7 else "recall"
        )
        start = datetime(2022, 1, 1, tzinfo=UTC) + timedelta(hours=index)
        answers, truths = [], []
        for place in range(int(rng.integers(LEAST_RESPONSES, MOST_RESPONSES + 1))):
            off_topic, wrong = (
                bool(rng.random() < OFF_TOPIC_SHARE),
                bool(rng.random() < WRONG_SHARE),
            )
            how = Wording(off_topic, wrong, tuple(map(int, rng.integers(0, 2, size=len(TASTES)))))
            truth, text = _truth(f"{index}-{place}", how), _answer(question, how, rng)
            votes = int(rng.binomial(VOTERS, 1 / (1 + np.exp(2 - truth.appeal))))
            answers.append(
                Answer(
                    truth.response_id,
                    text,
                    votes,
                    False,
                    start + timedelta(minutes=place),
                    None,
                    "CC0-1.0",
                )
            )
            truths.append(truth)
        thread = Thread(
            thread_id=f"{SITE}/{index}",
            source="simulated",
            site=SITE,
            title=asked(question.topic),
            body=question.body,
            tags=(),
            votes=1,
            created=start,
            author=None,
            url=None,
            licence="CC0-1.0",
            responses=tuple(answers),
        )
        yield thread, tuple(truths)


def tests(*, seed: int, variant: Variant) -> dict[str, list[PreferenceGroup]]:
    """The test sets by name: two responses to each prompt that differ in one thing, the better one
    first."""
    found = {
        "adversarial": [
            _item("adversarial", number, seed, "recall" if variant == "control" else None)
            for number in range(ADVERSARIAL_ITEMS)
        ],
        "recall": [_item("recall", number, seed, "recall") for number in range(RECALL_ITEMS)],
        "taste": [
            _item(f"taste {taste}", n, seed, "recall")
            for taste in range(len(TASTES))
            for n in range(TASTE_ITEMS)
        ],
    }
    if variant == "skills":
        found["moves"] = [
            _item(f"moves {k}", number, seed, "moves", k)
            for k in TESTED_MOVES
            for number in range(MOVES_ITEMS)
        ]
    return found


def _item(
    subset: str, number: int, seed: int, task: Task | None, moves: int | None = None
) -> PreferenceGroup:
    rng = np.random.default_rng([seed, 1 << 30, number, *subset.encode()])
    question = _question(rng, task or ("moves" if number % 2 else "recall"), moves)
    sides = rng.integers(0, 2, size=len(TASTES))
    better = worse = Wording(off_topic=False, wrong=False, sides=tuple(map(int, sides)))
    if subset == "adversarial":
        worse = worse._replace(off_topic=True)
    elif subset.startswith("taste"):
        taste = int(subset.split()[1])
        shared = taste < SHARED_TASTES
        better, worse = (
            better.turned(taste, 0 if shared else 1),
            worse.turned(taste, 1 if shared else 0),
        )
        subset = f"{'shared' if shared else 'opposed'} taste {taste + 1}"
    else:
        worse = worse._replace(wrong=True)
    # both are written with the same draws, so that they differ in nothing else
    draws = int(rng.integers(1 << 30))
    texts = [_answer(question, how, np.random.default_rng(draws)) for how in (better, worse)]
    prompt = (Message("user", f"Title: {asked(question.topic)}\n\n{question.body}"),)
    name = f"{subset}/{number}"
    return PreferenceGroup(
        name,
        "simulated",
        subset,
        "test",
        prompt,
        tuple(Response(text) for text in texts),
        (Preference(0, 1, 1.0),),
    )


def _question(rng: np.random.Generator, task: Task, moves: int | None = None) -> Question:
    topic = int(rng.choice(TOPICS, p=RANKED[TOPICS]))
    if task == "recall":
        fact = int(rng.choice(FACTS, p=RANKED[FACTS]))
        right = ANSWERS[fact * 5 % len(ANSWERS)]
        return Question(
            topic,
            f"colour of {WORDS[3 * TOPICS + fact]}",
            right,
            tuple(other for other in ANSWERS if other != right),
        )
    count = int(rng.integers(MOST_MOVES + 1)) if moves is None else moves
    steps = [tuple(MOVES)[int(step)] for step in rng.integers(0, len(MOVES), size=count)]
    start = place = int(rng.integers(len(PLACES)))
    for step in steps:
        place = MOVES[step][place]
    body = " ".join([f"ball {PLACES[start]}", *steps])
    return Question(
        topic, body, PLACES[place], tuple(other for other in PLACES if other != PLACES[place])
    )


def _answer(question: Question, how: Wording, rng: np.random.Generator) -> str:
    other = int(rng.choice(TOPICS, p=RANKED[TOPICS]))
    while other == question.topic:
        other = int(rng.choice(TOPICS, p=RANKED[TOPICS]))
    word = answered(other if how.off_topic else question.topic, int(rng.integers(2)))
    mistake = str(rng.choice(question.wrong))
    opening, verb, hedge, closing = (
        pair[side] for pair, side in zip(TASTES, how.sides, strict=True)
    )
    return (
        f"{opening}, {verb} {word}. {hedge} {mistake if how.wrong else question.right}. {closing}."
    )


def _truth(name: str, how: Wording) -> Truth:
    adversarial, objective = ON_TOPIC_GAIN * (not how.off_topic), RIGHT_GAIN * (not how.wrong)
    subjective = TASTE_GAIN * sum(1 - 2 * side for side in how.sides)
    quality = adversarial + objective + subjective
    return Truth(name, adversarial, objective, subjective, quality, quality)
