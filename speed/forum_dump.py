"""Write a dump of any size with the statistics of real dumps:

    python speed/forum_dump.py 3e9 OUT/large.example.com/Posts.xml

Lengths, answers per question, votes, and shares of accepted answers and of HTML elements match the
posts of ai.stackexchange.com and matheducators.stackexchange.com. Words follow Zipf's law with
Mandelbrot's shift. One post in a hundred repeats an earlier post with one word added. The same
arguments give the same bytes.
"""

import argparse
import heapq
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np

WORDS, SHIFT = 200_000, 2.7
SYLLABLES = [
    a + b
    for a in ("b", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "th", "st", "w")
    for b in ("a", "e", "i", "o", "u", "er")
]
ANSWERS = np.array([0.10, 0.33, 0.22, 0.14, 0.075, 0.04, 0.03, 0.017, 0.012, 0.01, 0.026])
"""Shares of questions with 0, 1, 2, ... answers; the last is for 10 or more."""
LOG_CHARACTERS = {"q": (6.45, 0.75), "a": (6.92, 0.78)}
"""Mean and standard deviation of the logarithm of a body's characters."""
CHARACTERS_A_WORD = 7.0
"""Characters of a word with its space and its share of HTML."""
INLINE = (
    ('<a href="https://example.com/{}">{}</a>', 0.9),
    ("<em>{}</em>", 0.8),
    ("<strong>{}</strong>", 0.5),
    ("<code>{}</code>", 0.5),
)
"""Elements around a word, and the mean number of each in a post."""
BLOCKS = (
    ("<ul>\n<li>{}</li>\n<li>{}</li>\n</ul>", 0.3),
    ("<blockquote>\n<p>{}</p>\n</blockquote>", 0.23),
    ("<pre><code>{}\n  {}\n</code></pre>", 0.15),
    ("<h2>{}</h2>", 0.04),
    ("<hr>", 0.06),
)
WORDS_A_PARAGRAPH, WORDS_A_PIECE = 42, 12
AGAIN, ACCEPTED = 0.01, 0.52
"""Share of posts that repeat another, and share of answered questions with an accepted answer."""


class Post(NamedTuple):
    """A row that is still to be written, sorted by its date."""

    date: datetime
    number: int
    parent: int | None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bytes", type=float, help="approximate size of the dump")
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with options.out.open("w", encoding="utf-8", newline="") as file:
        file.write('\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n')
        for row in rows(options.seed):
            written += file.write(row)
            if written >= options.bytes:
                break
        file.write("</posts>\n")


def rows(seed: int) -> Iterator[str]:
    """Endless rows in the order of their dates, so that an answer's row may follow later
    questions."""
    random = np.random.default_rng(seed)
    bodies = Bodies(random)
    waiting: list[Post] = []
    date, number = datetime(2010, 1, 1), 1
    while True:
        date += timedelta(seconds=float(random.exponential(300)))
        while waiting and waiting[0].date <= date:
            yield _row(heapq.heappop(waiting), None, bodies, random)
        answers = int(random.choice(len(ANSWERS), p=ANSWERS / ANSWERS.sum()))
        answers += int(random.geometric(0.3)) - 1 if answers == len(ANSWERS) - 1 else 0
        accepted = (
            number + int(random.integers(1, answers + 1))
            if answers and random.random() < ACCEPTED
            else None
        )
        yield _row(Post(date, number, None), accepted, bodies, random)
        for nth in range(1, answers + 1):
            delay = timedelta(hours=min(2000.0, float(random.lognormal(1.5, 2.5))))
            heapq.heappush(waiting, Post(date + delay, number + nth, number))
        number += answers + 1


def _row(post: Post, accepted: int | None, bodies: "Bodies", random: np.random.Generator) -> str:
    votes = int(random.negative_binomial(0.9, 0.15)) - int(random.random() < 0.06)
    date = post.date.isoformat(timespec="milliseconds")
    if post.parent is None:
        kind = (
            'PostTypeId="1"'
            + (f' AcceptedAnswerId="{accepted}"' if accepted else "")
            + f' ViewCount="{abs(votes) * 60}"'
        )
        rest = (
            f' Title={quoteattr(bodies.words(9))} Tags="&lt;one&gt;&lt;two-words&gt;"'
            ' AnswerCount="2"'
        )
    else:
        kind, rest = f'PostTypeId="2" ParentId="{post.parent}"', ""
    return (
        f'  <row Id="{post.number}" {kind} CreationDate="{date}" Score="{votes}"'
        f' Body="{bodies.next("a" if post.parent else "q")}"'
        f' OwnerUserId="{int(random.integers(1, 50_000))}" LastActivityDate="{date}"{rest}'
        ' CommentCount="0" ContentLicense="CC BY-SA 4.0" />\n'
    )


class Bodies:
    """HTML bodies, escaped as in a dump."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        lengths = 1 + random.binomial(3, np.minimum(0.6, 0.03 * np.log2(np.arange(WORDS) + 2)))
        parts = iter(random.integers(0, len(SYLLABLES), int(lengths.sum())).tolist())
        self._vocabulary = [
            "".join(SYLLABLES[next(parts)] for _ in range(n)) for n in lengths.tolist()
        ]
        shares = 1 / (np.arange(WORDS) + SHIFT)
        self._cumulative = np.cumsum(shares / shares.sum())
        self._pool: list[str] = []
        self._earlier: list[str] = []

    def words(self, count: int) -> str:
        """Random words; about one in twelve ends a clause."""
        while len(self._pool) < count:
            drawn = np.searchsorted(self._cumulative, self._random.random(1 << 20)).tolist()
            ends = np.searchsorted([0.92, 0.96], self._random.random(1 << 20)).tolist()
            self._pool += [
                self._vocabulary[word] + (", ", ". ")[end - 1][:1] * (end > 0)
                for word, end in zip(drawn, ends)
            ]
        taken = self._pool[-count:]
        del self._pool[-count:]
        return " ".join(taken)

    def next(self, kind: str) -> str:
        """One body; in some cases an earlier body with one word added at the start."""
        if self._earlier and self._random.random() < AGAIN:
            again = self._earlier[int(self._random.integers(len(self._earlier)))]
            return again.replace("&lt;p&gt;", f"&lt;p&gt;{self.words(1)} ", 1)
        mean, deviation = LOG_CHARACTERS[kind]
        count = max(3, int(self._random.lognormal(mean, deviation) / CHARACTERS_A_WORD))
        paragraphs = [
            self._paragraph(min(WORDS_A_PARAGRAPH, count - start))
            for start in range(0, count, WORDS_A_PARAGRAPH)
        ]
        for shape, often in BLOCKS:
            for _ in range(int(self._random.poisson(often))):
                pieces = [self.words(WORDS_A_PIECE) for _ in range(shape.count("{}"))]
                paragraphs.insert(
                    int(self._random.integers(len(paragraphs) + 1)), shape.format(*pieces)
                )
        body = escaped("\n\n".join(paragraphs) + "\n")
        if len(self._earlier) < 10_000:
            self._earlier.append(body)
        return body

    def _paragraph(self, count: int) -> str:
        text = self.words(count)
        share = count / 190
        for shape, often in INLINE:
            for _ in range(int(self._random.poisson(often * share))):
                text += " " + shape.format(*[self.words(1)] * shape.count("{}"))
        return f"<p>{text}</p>"


def escaped(html: str) -> str:
    """HTML as the value of an attribute."""
    return re.sub(r"[&<>\"\n]", lambda match: ESCAPES[match[0]], html)


ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\n": "&#xA;"}


if __name__ == "__main__":
    main()
