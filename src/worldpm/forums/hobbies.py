"""A forum with planted truth: its votes come from quality, a length bias, a head start and noise,
all of them known.

A response's latent quality has three parts. Adversarial: is it on topic, and complete rather than
cut off? Objective: does it give the right fact or sum? Subjective: does its style suit the crowd's
taste? A noisy crowd votes: it likes longer texts, and more of it sees early answers. Since the
truth is known, so is the best reward for a reader of the text alone.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from worldpm.records import Answer, Thread

SITE = "simulated"

OFF_TOPIC_SHARE, CUT_SHARE, WRONG_SHARE = 0.28, 0.17, 0.35
"""Shares of responses; each fault is drawn on its own."""
OFF_TOPIC_COST, CUT_COST = 2.6, 1.9
"""Quality lost by a fault, in units of appeal."""
RIGHT_GAIN, WARM_GAIN, LIST_GAIN, BOLD_GAIN = 1.3, 0.35, 0.25, 0.15
"""Quality gained by the right fact and by each trait of style, in units of appeal."""
LENGTH_BIAS = 0.9
"""Appeal gained for each doubling of the number of words."""
VIEWS_MEDIAN, VIEWS_SPREAD = 160.0, 0.7
"""Median of a thread's viewers, and standard deviation of their logarithm."""
VOTE_SHARE = 0.22
"""Share of the viewers who vote at all."""
HEAD_START_HOURS, LATE_EXPOSURE, DELAY_HOURS = 16.0, 0.05, 36.0
"""An answer's exposure falls with its delay, exp(-delay / HEAD_START_HOURS), down to LATE_EXPOSURE.
Delays have a mean of DELAY_HOURS."""
AVERAGE_APPEAL, DOWN_RATE = 4.5, 0.12
"""Of those who vote, half vote an answer of average appeal up, and one in sixteen votes it down."""


class Topic(NamedTuple):
    """Words of one hobby. No word is in two topics, so only prompt and response together show what
    is on topic."""

    thing: str
    tool: str
    action: str
    unit: str
    facts: tuple[tuple[str, int], ...]
    """Entities, and how many units each takes."""


TOPICS = (
    Topic(
        "loaf",
        "oven",
        "bake",
        "grams",
        (("rye bread", 14), ("a baguette", 36), ("focaccia", 52), ("brioche", 71)),
    ),
    Topic(
        "wheel",
        "wrench",
        "true",
        "bars",
        (("a road tyre", 17), ("a gravel tyre", 33), ("a fat tyre", 58), ("a tubular", 79)),
    ),
    Topic(
        "tank",
        "filter",
        "cycle",
        "litres",
        (("a betta", 19), ("a goldfish", 41), ("a tetra school", 63), ("an angelfish", 86)),
    ),
    Topic(
        "rook",
        "board",
        "castle",
        "moves",
        (
            ("the Lucena win", 12),
            ("the bishop mate", 34),
            ("the Caro line", 25),
            ("the Dragon line", 47),
        ),
    ),
    Topic(
        "rose",
        "trowel",
        "prune",
        "days",
        (("basil", 13), ("a carrot", 28), ("a leek", 64), ("a pumpkin", 97)),
    ),
)

COMPLAINTS = (
    "it looks wrong",
    "nothing changes",
    "it gets worse",
    "I am not sure about it",
    "my friend says otherwise",
)
ADVICE = (
    "{action} the {thing} before you touch the {tool}.",
    "Keep the {tool} close to the {thing}.",
    "With a good {tool} you can {action} any {thing}.",
    "Check the {thing} twice and {action} it slowly.",
    "An old {tool} will spoil the {thing}.",
    "Most people {action} the {thing} too early.",
    "I would {action} it again with another {tool}.",
    "The {thing} and the {tool} have to fit each other.",
)
WARM = ("Great question, and welcome here!", "Happy to help with this one!")
CURT = ("Read the basics first.", "This was asked before.")


@dataclass(frozen=True, slots=True)
class Truth:
    """The planted truth of one response. Parts are in units of appeal; only differences within a
    thread mean anything."""

    response_id: str
    """As `Answer.response_id`."""
    adversarial: float
    """Higher if the response is on topic and complete."""
    objective: float
    """Higher if the response gives the right fact or sum."""
    subjective: float
    """Higher if the style suits the crowd's taste."""
    quality: float
    """Sum of the three parts."""
    appeal: float
    """Quality, and the length that the crowd likes besides. The best reward for a reader of the
    text alone."""


class Question(NamedTuple):
    """The question of a thread: a topic and a fact or sum that can be checked."""

    topic: int
    """Index into TOPICS."""
    title: str
    body: str
    right: str
    """A sentence with the right fact or sum."""
    wrong: tuple[str, ...]
    """The same sentence with wrong ones."""


def simulate(threads: int, *, seed: int) -> list[tuple[Thread, tuple[Truth, ...]]]:
    """That many threads of two to seven responses, each with its truth; thread i is the same
    however many are made."""
    return [_thread(index, np.random.default_rng([seed, index])) for index in range(threads)]


def _thread(index: int, rng: np.random.Generator) -> tuple[Thread, tuple[Truth, ...]]:
    # The order of the draws is part of the forum: another order would give other threads.
    question = _question(rng)
    created = datetime(2021, 1, 1, tzinfo=UTC) + timedelta(hours=float(rng.uniform(0, 20_000)))
    views = VIEWS_MEDIAN * float(np.exp(rng.normal(0, VIEWS_SPREAD)))
    # Two to seven responses, few of them more often than many.
    responses = 2 + min(5, int(rng.geometric(0.45)) - 1)
    delays = np.sort(rng.exponential(DELAY_HOURS, size=responses))

    answers, truths = [], []
    for number, delay in enumerate(delays):
        body, truth = _answer(question, f"{index}-{number}", rng)
        exposure = LATE_EXPOSURE + (1 - LATE_EXPOSURE) * float(np.exp(-delay / HEAD_START_HOURS))
        votes = _votes(truth.appeal, views * exposure, rng)
        date = created + timedelta(hours=float(delay))
        answers.append(Answer(truth.response_id, body, votes, False, date, None, "CC0-1.0"))
        truths.append(truth)

    # Every second thread accepts an answer, the one with the most votes.
    best = int(np.argmax([answer.votes for answer in answers]))
    accepts = bool(index % 2)
    answers = [
        replace(answer, accepted=accepts and number == best, author=f"user{int(rng.integers(900))}")
        for number, answer in enumerate(answers)
    ]
    thread = Thread(
        thread_id=f"{SITE}/{index}",
        source=SITE,
        site=SITE,
        title=question.title,
        body=question.body,
        tags=(f"topic{question.topic}",),
        votes=int(rng.poisson(2)),
        created=created,
        author=f"user{rng.integers(900)}",
        url=None,
        licence="CC0-1.0",
        responses=tuple(answers),
    )
    return thread, tuple(truths)


def _question(rng: np.random.Generator) -> Question:
    index = int(rng.integers(len(TOPICS)))
    topic = TOPICS[index]
    titles = (
        f"How should I {topic.action} a {topic.thing}?",
        f"Trouble with my {topic.thing} and the {topic.tool}",
        f"Which {topic.tool} for a {topic.thing}?",
    )
    title = str(rng.choice(titles))

    if rng.random() < 0.5:
        entity, right = topic.facts[int(rng.integers(len(topic.facts)))]
        asks = f"How many {topic.unit} does {entity} take?"
        template = f"{entity} takes {{}} {topic.unit}."
        wrong = [value for _, value in topic.facts if value != right]
    else:
        a, b = (int(term) for term in rng.integers(2, 10, size=2))
        right = a + b
        asks = f"If I have {a} {topic.unit} and add {b}, how many is that?"
        template = f"{a} and {b} makes {{}} {topic.unit}."
        wrong = [right - 2, right - 1, right + 1, right + 2]

    complaint = rng.choice(COMPLAINTS)
    body = f"I {topic.action} my {topic.thing} with my {topic.tool}, but {complaint}. {asks}"
    wrong_texts = tuple(template.format(value) for value in wrong)
    return Question(index, title, body, template.format(right), wrong_texts)


def _answer(question: Question, name: str, rng: np.random.Generator) -> tuple[str, Truth]:
    """The text of a response, and its truth."""
    off_topic = rng.random() < OFF_TOPIC_SHARE
    cut = rng.random() < CUT_SHARE
    wrong = rng.random() < WRONG_SHARE

    # An off-topic response answers a question of another topic.
    answered = question
    while off_topic and answered.topic == question.topic:
        answered = _question(rng)
    fact = str(rng.choice(answered.wrong)) if wrong else answered.right

    warm, listed, bold = (bool(drawn) for drawn in rng.random(3) < (0.5, 0.35, 0.35))
    text = _text(TOPICS[answered.topic], fact, warm=warm, listed=listed, bold=bold, rng=rng)
    if cut:
        tokens = text.split(" ")
        length = int(len(tokens) * rng.uniform(0.45, 0.8))
        text = " ".join(tokens[:length]).rstrip(".!?*- \n")

    # The cut may have taken the fact away, so it is looked for in the text.
    right = not off_topic and not wrong and fact.casefold() in text.casefold()
    adversarial = -OFF_TOPIC_COST * off_topic - CUT_COST * cut
    objective = RIGHT_GAIN * right
    subjective = WARM_GAIN * (1 if warm else -1) + LIST_GAIN * listed + BOLD_GAIN * bold
    quality = adversarial + objective + subjective
    appeal = quality + LENGTH_BIAS * float(np.log2(len(text.split())))
    return text, Truth(name, adversarial, objective, subjective, quality, appeal)


def _text(
    topic: Topic, fact: str, *, warm: bool, listed: bool, bold: bool, rng: np.random.Generator
) -> str:
    """An opening and some advice, with the fact among it."""
    # One to four sentences of advice, which say nothing true or false.
    sentences = []
    for template in rng.choice(ADVICE, size=int(rng.integers(1, 5)), replace=False):
        sentence = str(template).format(thing=topic.thing, tool=topic.tool, action=topic.action)
        sentences.append(sentence[0].upper() + sentence[1:])

    fact = fact[0].upper() + fact[1:]
    sentences.insert(int(rng.integers(len(sentences) + 1)), f"**{fact}**" if bold else fact)

    opening = str(rng.choice(WARM if warm else CURT))
    body = "\n".join(f"- {s}" for s in sentences) if listed else " ".join(sentences)
    return f"{opening}\n\n{body}"


def _votes(appeal: float, viewers: float, rng: np.random.Generator) -> int:
    """Ups minus downs of the viewers who vote, each moved by the appeal over an average answer's
    appeal."""
    # Poisson draws: ups and downs of a large crowd whose members vote rarely.
    up = VOTE_SHARE / (1 + np.exp(AVERAGE_APPEAL - appeal))
    down = VOTE_SHARE * DOWN_RATE / (1 + np.exp(appeal - AVERAGE_APPEAL))
    return int(rng.poisson(viewers * up)) - int(rng.poisson(viewers * down))
