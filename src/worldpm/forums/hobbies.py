"""A forum with planted truth: its votes come from known quality, a length bias, a head start and
noise.

The quality of a response has three parts. Adversarial: is it on topic, and complete rather than
cut off? Objective: does it advise the right method? Subjective: does its style suit the taste of
the crowd? A noisy crowd votes: it likes longer texts, and more of its members see early answers.
The truth is known, so the best reward for a reader of the text alone is known too.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import numpy as np

from worldpm.records import Answer, Thread

SITE = "simulated"

OFF_TOPIC_SHARE, CUT_SHARE, WRONG_SHARE = 0.28, 0.17, 0.35
"""Shares of responses; each fault is drawn on its own."""
OFF_TOPIC_COST, CUT_COST = 3.0, 2.4
"""Quality lost by a fault, in units of appeal."""
RIGHT_GAIN, WARM_GAIN, LIST_GAIN, BOLD_GAIN = 2.0, 0.7, 0.5, 0.3
"""Quality gained by the right method and by each trait of style, in units of appeal."""
LENGTH_BIAS = 0.65
"""Appeal gained for each doubling of the number of words."""
VIEWS_MEDIAN, VIEWS_SPREAD = 270.0, 0.7
"""Median of a thread's viewers, and standard deviation of their logarithm."""
VOTE_SHARE = 0.22
"""Share of the viewers who vote at all."""
HEAD_START_HOURS, LATE_EXPOSURE, DELAY_HOURS = 16.0, 0.05, 36.0
"""An answer's exposure falls with its delay, exp(-delay / HEAD_START_HOURS), down to LATE_EXPOSURE.
Delays have a mean of DELAY_HOURS."""
AVERAGE_APPEAL, DOWN_RATE = 4.5, 0.02
"""Half of the voters vote an answer of average appeal up, and one in a hundred votes it down."""


class Topic(NamedTuple):
    """Words of one hobby. No word is in two topics, so only prompt and response together show
    whether a response is on topic."""

    tool: str
    action: str
    slow: str
    """A thing to treat slowly."""
    quick: str
    """A thing to treat quickly."""


TOPICS = (
    Topic("oven", "bake", slow="rye", quick="brioche"),
    Topic("wrench", "fix", slow="brakes", quick="tyres"),
    Topic("filter", "feed", slow="guppies", quick="tetras"),
    Topic("board", "move", slow="rooks", quick="knights"),
    Topic("trowel", "prune", slow="roses", quick="basil"),
)


class Method(NamedTuple):
    """Words of a way to treat a thing."""

    manner: str
    other_manner: str
    state: str
    other_state: str


SLOW = Method("slowly", "gently", "cold", "soft")
QUICK = Method("quickly", "firmly", "hot", "hard")

COMPLAINTS = (
    "it looks wrong",
    "nothing changes",
    "it gets worse",
    "I am not sure about it",
    "my friend does not agree",
    "it takes too long",
    "the book differs",
    "nobody could help",
    "it smells odd",
    "I lost patience",
    "it broke last week",
    "it feels strange",
    "my neighbour laughed",
    "the result is uneven",
    "it was fine last year",
    "I have little time",
)
ADVICE = (
    "For {thing} keep the {tool} {state} and {other_state}.",
    "Use a {state} {tool} and {action} {manner}, {other_manner}.",
    "I {action} {thing} with a {other_state} {tool}, always {manner}.",
    "Work {manner} and {other_manner}, and {thing} will be fine.",
    "A {state} {tool} is best, so {action} {other_manner}.",
    "Go {manner}: {thing} should stay {state} and {other_state}.",
    "Most people {action} {other_manner} with a {state} {tool}.",
    "My {thing} came out well {other_state}, and I worked {other_manner}.",
)
"""Each sentence gives the method, right or wrong, and shows the topic."""
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
    """Higher if the response advises the right method."""
    subjective: float
    """Higher if the style suits the crowd's taste."""
    quality: float
    """Sum of the three parts."""
    appeal: float
    """Quality, and the length that the crowd likes besides. The best reward for a reader of the
    text alone."""


class Question(NamedTuple):
    """The question of a thread: how to treat a thing of a topic."""

    topic: int
    """Index into TOPICS."""
    thing: str
    is_slow: bool
    """Whether the slow method is right."""
    title: str
    body: str


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
    is_slow = bool(rng.random() < 0.5)
    thing = topic.slow if is_slow else topic.quick

    titles = (
        f"How should I {topic.action} {thing}?",
        f"Trouble with {thing} and the {topic.tool}",
        f"Which {topic.tool} for {thing}?",
        f"Is my {topic.tool} right for {thing}?",
    )
    title = str(rng.choice(titles))
    complaint = rng.choice(COMPLAINTS)
    body = f"I {topic.action} {thing}, but {complaint}. What does {thing} need?"
    return Question(index, thing, is_slow, title, body)


def _answer(question: Question, name: str, rng: np.random.Generator) -> tuple[str, Truth]:
    """The text of a response, and its truth."""
    off_topic = rng.random() < OFF_TOPIC_SHARE
    cut = rng.random() < CUT_SHARE
    wrong = rng.random() < WRONG_SHARE

    # An off-topic response answers a question of another topic.
    answered = question
    while off_topic and answered.topic == question.topic:
        answered = _question(rng)
    method = SLOW if answered.is_slow != wrong else QUICK

    warm, listed, bold = (bool(drawn) for drawn in rng.random(3) < (0.5, 0.35, 0.35))
    text = _text(answered, method, warm=warm, listed=listed, bold=bold, rng=rng)
    if cut:
        tokens = text.split(" ")
        length = int(len(tokens) * rng.uniform(0.45, 0.8))
        text = " ".join(tokens[:length]).rstrip(".!?*- \n")

    # A cut may have removed the method.
    right = not off_topic and not wrong and any(word in text for word in method)
    adversarial = -OFF_TOPIC_COST * off_topic - CUT_COST * cut
    objective = RIGHT_GAIN * right
    subjective = WARM_GAIN * (1 if warm else -1) + LIST_GAIN * listed + BOLD_GAIN * bold
    quality = adversarial + objective + subjective
    appeal = quality + LENGTH_BIAS * float(np.log2(len(text.split())))
    return text, Truth(name, adversarial, objective, subjective, quality, appeal)


def _text(
    question: Question,
    method: Method,
    *,
    warm: bool,
    listed: bool,
    bold: bool,
    rng: np.random.Generator,
) -> str:
    """An opening and one to four sentences that give the method."""
    topic = TOPICS[question.topic]
    templates = rng.choice(ADVICE, size=int(rng.integers(1, 5)), replace=False)
    sentences = [
        str(template).format(
            thing=question.thing, tool=topic.tool, action=topic.action, **method._asdict()
        )
        for template in templates
    ]
    if bold:
        sentences[0] = f"**{sentences[0]}**"

    opening = str(rng.choice(WARM if warm else CURT))
    body = "\n".join(f"- {sentence}" for sentence in sentences) if listed else " ".join(sentences)
    return f"{opening}\n\n{body}"


def _votes(appeal: float, viewers: float, rng: np.random.Generator) -> int:
    """Ups minus downs of the viewers who vote, each moved by the appeal over an average answer's
    appeal."""
    # Poisson draws: ups and downs of a large crowd whose members vote rarely.
    up = VOTE_SHARE / (1 + np.exp(AVERAGE_APPEAL - appeal))
    down = VOTE_SHARE * DOWN_RATE / (1 + np.exp(appeal - AVERAGE_APPEAL))
    return int(rng.poisson(viewers * up)) - int(rng.poisson(viewers * down))
