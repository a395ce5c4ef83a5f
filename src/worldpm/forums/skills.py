"""A forum of separate skills with planted truth, for ladders: each domain can be tested alone, and
one skill needs depth.

Adversarial: does the answer's word belong to the question's word? A model must store hundreds of
such associations, from common to rare. Objective, recall: facts from common to rare, which a model
must store too. Objective, moves: where is the ball after k moves of three cups? There are only two
kinds of moves, but the effect of a move depends on all moves before it, so k moves are a
composition of depth k. There are 381 such questions in all, and a long training shows all of them.
A model that can answer them may have composed the moves, or stored a table no larger than the table
of facts. If a model cannot answer them, storage was not its limit. Subjective: four tastes without
relation to truth; the forum likes one side of each.

The votes come from a crowd of independent voters. The tests have no noise. The tests of taste ask
other people, who share two of the forum's tastes and have the opposite of the other two.

Frozen: ladders that were trained on other versions of this module cannot be compared.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worldpm.forums.hobbies import Truth
from worldpm.records import Answer, Message, Preference, PreferenceGroup, Response, Thread

SITE = "skills"
Task = Literal["moves", "recall"]
Variant = Literal["skills", "control"]
"""`control` is the same forum without moves: all its threads ask for facts."""

TOPICS, FACTS = 200, 200
"""Numbers of topics and facts; each is drawn with a frequency of one over its rank."""
MOST_MOVES = 6
MOVES_SHARE = 0.7
"""Share of the threads that ask for moves; the others ask for facts."""
OFF_TOPIC_SHARE, WRONG_SHARE = 0.3, 0.5
"""Shares of responses; the two faults are drawn independently."""
ON_TOPIC_GAIN, RIGHT_GAIN, TASTE_GAIN = 2.0, 1.5, 0.3
"""Quality gained by a trait, in logits of an up vote."""
VOTERS = 300
"""Each votes up with probability sigmoid(appeal - 2), and otherwise does not vote."""
LEAST_RESPONSES, MOST_RESPONSES = 3, 5

CUPS = ("left", "middle", "right")
MOVES = {"near": (1, 0, 2), "far": (0, 2, 1)}
"""The cup of a ball after each move, by its cup before. A move swaps the two left or the two right
cups."""
ANSWERS = ("red", "blue", "green", "white", "black", "brown", "pink", "gold")
TASTES = (("Friend", "Look"), ("try", "use"), ("Surely", "Perhaps"), ("Cheers", "Done"))
"""The forum likes the first of each pair."""
SHARED_TASTES = 2
"""The people of the tests share this number of the first tastes, and have the opposite of the
others."""
ADVERSARIAL_ITEMS, RECALL_ITEMS, MOVES_ITEMS, TASTE_ITEMS = 400, 300, 200, 100
"""Items of each test; the last two are for each number of moves, and for each taste."""
TESTED_MOVES = (0, 1, 2, 4, 6)


class Wording(NamedTuple):
    """The traits of an answer."""

    off_topic: bool
    wrong: bool
    sides: tuple[int, ...]
    """Index of its side in each of TASTES."""

    def with_side(self, taste: int, side: int) -> "Wording":
        """The same traits with this side of a taste."""
        return self._replace(sides=(*self.sides[:taste], side, *self.sides[taste + 1 :]))


class Question(NamedTuple):
    """The question of a thread."""

    topic: int
    """Rank of the topic, from 0."""
    body: str
    right: str
    wrong: tuple[str, ...]


def _vocabulary() -> list[str]:
    """Invented words, in a fixed order that separates similar words."""
    syllables = [a + b for a, b in product("bdfgklmnprstvz", "aeiou")]
    pairs = [first + second for first, second in product(syllables, syllables)]

    # 1597 has no factor in common with the number of pairs, so no word is repeated.
    return [pairs[(number * 1597) % len(pairs)] for number in range(3 * TOPICS + FACTS)]


def _frequencies(count: int) -> NDArray[np.float64]:
    """Probabilities in proportion to one over the rank."""
    shares = 1 / np.arange(1, count + 1)
    return np.asarray(shares / shares.sum())


WORDS = _vocabulary()
"""Three words of each topic, then one of each fact."""
RANKED = {count: _frequencies(count) for count in {TOPICS, FACTS}}


def question_word(topic: int) -> str:
    """The word for a topic in questions."""
    return WORDS[3 * topic]


def answer_word(topic: int, choice: int) -> str:
    """One of the two words for a topic in answers."""
    return WORDS[3 * topic + 1 + choice]


def simulate(
    threads: int, *, seed: int, variant: Variant
) -> Iterator[tuple[Thread, tuple[Truth, ...]]]:
    """This number of threads, each with its truth; thread i does not depend on the number."""
    for index in range(threads):
        rng = np.random.default_rng([seed, index])
        asks_moves = variant == "skills" and rng.random() < MOVES_SHARE
        question = _question(rng, "moves" if asks_moves else "recall")
        created = datetime(2022, 1, 1, tzinfo=UTC) + timedelta(hours=index)

        answers, truths = [], []
        for number in range(int(rng.integers(LEAST_RESPONSES, MOST_RESPONSES + 1))):
            wording = _wording(rng)
            truth = _truth(f"{index}-{number}", wording)
            text = _answer(question, wording, rng)
            # An answer without any quality is voted up by one voter in eight.
            votes = int(rng.binomial(VOTERS, 1 / (1 + np.exp(2 - truth.appeal))))
            date = created + timedelta(minutes=number)
            answers.append(Answer(truth.response_id, text, votes, False, date, None, "CC0-1.0"))
            truths.append(truth)

        yield _thread(index, question, created, answers), tuple(truths)


def _wording(rng: np.random.Generator) -> Wording:
    """Traits of an answer of the forum."""
    off_topic = bool(rng.random() < OFF_TOPIC_SHARE)
    wrong = bool(rng.random() < WRONG_SHARE)
    sides = rng.integers(0, 2, size=len(TASTES))
    return Wording(off_topic, wrong, tuple(map(int, sides)))


def _thread(index: int, question: Question, created: datetime, answers: Sequence[Answer]) -> Thread:
    return Thread(
        thread_id=f"{SITE}/{index}",
        source="simulated",
        site=SITE,
        title=question_word(question.topic),
        body=question.body,
        tags=(),
        votes=1,
        created=created,
        author=None,
        url=None,
        licence="CC0-1.0",
        responses=tuple(answers),
    )


def tests(*, seed: int, variant: Variant) -> dict[str, list[PreferenceGroup]]:
    """The test sets by name: two responses to each prompt that differ in one thing, the better one
    first."""
    adversarial_task: Task | None = "recall" if variant == "control" else None
    groups = {
        "adversarial": [
            _item("adversarial", number, seed, adversarial_task)
            for number in range(ADVERSARIAL_ITEMS)
        ],
        "recall": [_item("recall", number, seed, "recall") for number in range(RECALL_ITEMS)],
        "taste": [
            _item(f"taste {taste}", number, seed, "recall")
            for taste in range(len(TASTES))
            for number in range(TASTE_ITEMS)
        ],
    }

    if variant == "skills":
        groups["moves"] = [
            _item(f"moves {moves}", number, seed, "moves", moves)
            for moves in TESTED_MOVES
            for number in range(MOVES_ITEMS)
        ]
    return groups


def _item(
    subset: str, number: int, seed: int, task: Task | None, moves: int | None = None
) -> PreferenceGroup:
    # The large number keeps the seeds of the tests apart from those of threads.
    rng = np.random.default_rng([seed, 1 << 30, number, *subset.encode()])
    question = _question(rng, task or ("moves" if number % 2 else "recall"), moves)
    sides = rng.integers(0, 2, size=len(TASTES))
    better = worse = Wording(off_topic=False, wrong=False, sides=tuple(map(int, sides)))

    if subset == "adversarial":
        worse = worse._replace(off_topic=True)
    elif subset.startswith("taste"):
        taste = int(subset.split()[1])
        shared = taste < SHARED_TASTES
        liked = 0 if shared else 1
        better, worse = better.with_side(taste, liked), worse.with_side(taste, 1 - liked)
        subset = f"{'shared' if shared else 'opposed'} taste {taste + 1}"
    else:
        worse = worse._replace(wrong=True)

    # Write both with the same draws, so that they differ in nothing else.
    draws = int(rng.integers(1 << 30))
    texts = [_answer(question, side, np.random.default_rng(draws)) for side in (better, worse)]

    prompt = f"Title: {question_word(question.topic)}\n\n{question.body}"
    return PreferenceGroup(
        group_id=f"{subset}/{number}",
        source="simulated",
        site=subset,
        split="test",
        prompt=(Message("user", prompt),),
        responses=tuple(map(Response, texts)),
        preferences=(Preference(0, 1, 1.0),),
    )


def _question(rng: np.random.Generator, task: Task, moves: int | None = None) -> Question:
    """A question; a question about moves has this number of moves, or a drawn number."""
    topic = int(rng.choice(TOPICS, p=RANKED[TOPICS]))

    if task == "recall":
        fact = int(rng.choice(FACTS, p=RANKED[FACTS]))
        # 5 has no factor in common with the number of colours: neighbours in rank differ.
        right = ANSWERS[fact * 5 % len(ANSWERS)]
        body = f"colour of {WORDS[3 * TOPICS + fact]}"
        return Question(topic, body, right, _all_but(ANSWERS, right))

    count = int(rng.integers(MOST_MOVES + 1)) if moves is None else moves
    steps = [tuple(MOVES)[int(step)] for step in rng.integers(0, len(MOVES), size=count)]
    start = ball = int(rng.integers(len(CUPS)))
    for step in steps:
        ball = MOVES[step][ball]
    body = " ".join([f"ball {CUPS[start]}", *steps])
    return Question(topic, body, CUPS[ball], _all_but(CUPS, CUPS[ball]))


def _all_but(answers: Sequence[str], right: str) -> tuple[str, ...]:
    return tuple(answer for answer in answers if answer != right)


def _answer(question: Question, wording: Wording, rng: np.random.Generator) -> str:
    # All draws are always made, so that answers that differ in one trait share the others.
    foreign = int(rng.choice(TOPICS, p=RANKED[TOPICS]))
    while foreign == question.topic:
        foreign = int(rng.choice(TOPICS, p=RANKED[TOPICS]))
    topic = foreign if wording.off_topic else question.topic
    word = answer_word(topic, int(rng.integers(2)))
    mistake = str(rng.choice(question.wrong))
    fact = mistake if wording.wrong else question.right

    opening, verb, hedge, closing = (
        taste[side] for taste, side in zip(TASTES, wording.sides, strict=True)
    )
    return f"{opening}, {verb} {word}. {hedge} {fact}. {closing}."


def _truth(name: str, wording: Wording) -> Truth:
    adversarial = ON_TOPIC_GAIN * (not wording.off_topic)
    objective = RIGHT_GAIN * (not wording.wrong)
    subjective = TASTE_GAIN * sum(1 - 2 * side for side in wording.sides)
    quality = adversarial + objective + subjective
    return Truth(name, adversarial, objective, subjective, quality, quality)
