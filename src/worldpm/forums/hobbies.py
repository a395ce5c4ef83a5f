"""A forum with planted truth: threads whose votes are known to come from quality, a length bias, a
head start and noise.

A response's latent quality has three parts. Adversarial: is it on topic, and whole rather than cut
off? Objective: does it give the right fact or sum? Subjective: is its style to the crowd's taste? A
noisy crowd votes: it likes longer texts, and early answers are seen by more of it. Since the truth
is known, so is the best that a reader of the text alone can do.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from worldpm.records import Answer, Thread

SITE = "simulated"

OFF_TOPIC_SHARE, CUT_SHARE, WRONG_SHARE = 0.28, 0.17, 0.35
OFF_TOPIC_COST, CUT_COST, RIGHT_GAIN, WARM_GAIN, LIST_GAIN, BOLD_GAIN = (
    2.6,
    1.9,
    1.3,
    0.35,
    0.25,
    0.15,
)
LENGTH_BIAS = 0.9
"""Appeal gained for each doubling of the number of words."""
VIEWS_MEDIAN, VIEWS_SPREAD, VOTE_SHARE = 160.0, 0.7, 0.22
HEAD_START_HOURS, LATE_EXPOSURE, DELAY_HOURS = 16.0, 0.05, 36.0
"""An answer's exposure falls with its delay, exp(-delay / HEAD_START_HOURS), down to
LATE_EXPOSURE."""
AVERAGE_APPEAL, DOWN_RATE = 4.5, 0.12
"""An answer of average appeal is voted up by half of those who vote, and down by one in sixteen."""


class Topic(NamedTuple):
    """Words of one hobby; no word stands in two topics, so only prompt and response together tell
    what is on topic."""

    thing: str
    tool: str
    action: str
    unit: str
    facts: tuple[tuple[str, int], ...]
    """How many units each entity takes."""


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
WARM, CURT = (
    ("Great question, and welcome here!", "Happy to help with this one!"),
    ("Read the basics first.", "This was asked before."),
)


@dataclass(frozen=True, slots=True)
class Truth:
    """What was planted in one response. Parts are in units of appeal; only differences within a
    thread mean anything."""

    response_id: str
    adversarial: float
    """Higher where the response is on topic and whole."""
    objective: float
    """Higher where the fact or sum asked for is given and right."""
    subjective: float
    quality: float
    """Sum of the three parts."""
    appeal: float
    """What the crowd sees: quality, and what it likes besides. The best reward for a reader of the
    text alone."""


class Question(NamedTuple):
    """What a thread asks: a topic and something that can be checked."""

    topic: int
    title: str
    body: str
    right: str
    wrong: tuple[str, ...]


def simulate(threads: int, *, seed: int) -> list[tuple[Thread, tuple[Truth, ...]]]:
    """That many threads of two to seven responses, each with its truth; thread i is the same
    however many are made."""
    return [_thread(index, np.random.default_rng([seed, index])) for index in range(threads)]


def _thread(index: int, rng: np.random.Generator) -> tuple[Thread, tuple[Truth, ...]]:
    question = _question(rng)
    asked = datetime(2021, 1, 1, tzinfo=UTC) + timedelta(hours=float(rng.uniform(0, 20_000)))
    views = VIEWS_MEDIAN * float(np.exp(rng.normal(0, VIEWS_SPREAD)))
    delays = np.sort(rng.exponential(DELAY_HOURS, size=2 + min(5, int(rng.geometric(0.45)) - 1)))
    answers, truths = [], []
    for place, delay in enumerate(delays):
        name = f"{index}-{place}"
        body, truth = _answer(question, name, rng)
        exposure = LATE_EXPOSURE + (1 - LATE_EXPOSURE) * float(np.exp(-delay / HEAD_START_HOURS))
        answers.append(
            (
                name,
                body,
                _votes(truth.appeal, views * exposure, rng),
                asked + timedelta(hours=float(delay)),
            )
        )
        truths.append(truth)
    best = int(np.argmax([votes for _, _, votes, _ in answers]))
    responses = tuple(
        Answer(
            name,
            body,
            votes,
            place == best and bool(index % 2),
            created,
            f"user{rng.integers(900)}",
            "CC0-1.0",
        )
        for place, (name, body, votes, created) in enumerate(answers)
    )
    thread = Thread(
        thread_id=f"{SITE}/{index}",
        source=SITE,
        site=SITE,
        title=question.title,
        body=question.body,
        tags=(f"topic{question.topic}",),
        votes=int(rng.poisson(2)),
        created=asked,
        author=f"user{rng.integers(900)}",
        url=None,
        licence="CC0-1.0",
        responses=responses,
    )
    return thread, tuple(truths)


def _question(rng: np.random.Generator) -> Question:
    number = int(rng.integers(len(TOPICS)))
    topic = TOPICS[number]
    thing, tool, action = topic.thing, topic.tool, topic.action
    title = str(
        rng.choice(
            (
                f"How should I {action} a {thing}?",
                f"Trouble with my {thing} and the {tool}",
                f"Which {tool} for a {thing}?",
            )
        )
    )
    if rng.random() < 0.5:
        entity, value = topic.facts[int(rng.integers(len(topic.facts)))]
        asks = f"How many {topic.unit} does {entity} take?"
        say = f"{entity} takes {{}} {topic.unit}."
        others = [number for _, number in topic.facts if number != value]
    else:
        a, b = (int(x) for x in rng.integers(2, 10, size=2))
        asks = f"If I have {a} {topic.unit} and add {b}, how many is that?"
        say, value = f"{a} and {b} makes {{}} {topic.unit}.", a + b
        others = [value - 2, value - 1, value + 1, value + 2]
    body = f"I {action} my {thing} with my {tool}, but {rng.choice(COMPLAINTS)}. {asks}"
    return Question(
        number, title, body, say.format(value), tuple(say.format(other) for other in others)
    )


def _answer(question: Question, name: str, rng: np.random.Generator) -> tuple[str, Truth]:
    off_topic, cut, wrong = (
        rng.random() < OFF_TOPIC_SHARE,
        rng.random() < CUT_SHARE,
        rng.random() < WRONG_SHARE,
    )
    answered = question
    while off_topic and answered.topic == question.topic:
        answered = _question(rng)
    fact = str(rng.choice(answered.wrong)) if wrong else answered.right
    warm, listed, bold = (bool(x) for x in rng.random(3) < (0.5, 0.35, 0.35))
    text = _text(TOPICS[answered.topic], fact, warm=warm, listed=listed, bold=bold, rng=rng)
    if cut:
        words = text.split(" ")
        text = " ".join(words[: int(len(words) * rng.uniform(0.45, 0.8))]).rstrip(".!?*- \n")
    adversarial = -OFF_TOPIC_COST * off_topic - CUT_COST * cut
    objective = RIGHT_GAIN * (not off_topic and not wrong and fact.casefold() in text.casefold())
    subjective = WARM_GAIN * (1 if warm else -1) + LIST_GAIN * listed + BOLD_GAIN * bold
    quality = adversarial + objective + subjective
    appeal = quality + LENGTH_BIAS * float(np.log2(len(text.split())))
    return text, Truth(name, adversarial, objective, subjective, quality, appeal)


def _text(
    topic: Topic, fact: str, *, warm: bool, listed: bool, bold: bool, rng: np.random.Generator
) -> str:
    sentences = []
    for template in rng.choice(ADVICE, size=int(rng.integers(1, 5)), replace=False):
        sentence = str(template).format(thing=topic.thing, tool=topic.tool, action=topic.action)
        sentences.append(sentence[0].upper() + sentence[1:])
    fact = fact[0].upper() + fact[1:]
    sentences.insert(int(rng.integers(len(sentences) + 1)), f"**{fact}**" if bold else fact)
    opening = str(rng.choice(WARM if warm else CURT))
    return (
        opening
        + "\n\n"
        + ("\n".join(f"- {s}" for s in sentences) if listed else " ".join(sentences))
    )


def _votes(appeal: float, viewers: float, rng: np.random.Generator) -> int:
    """Ups minus downs of the viewers who vote at all, each moved by the appeal against an average
    answer's."""
    up = VOTE_SHARE / (1 + np.exp(AVERAGE_APPEAL - appeal))
    down = VOTE_SHARE * DOWN_RATE / (1 + np.exp(appeal - AVERAGE_APPEAL))
    return int(rng.poisson(viewers * up)) - int(rng.poisson(viewers * down))
